"""The pack in a real ComfyUI, whose folder ``COMFYUI_DIR`` names; docs/comfyui.md says how to install one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from comfyui_models import VAES, spec_of
from diffusers import AutoencoderKL, AutoencoderKLWan
from text_servers import case_of, saved, serving

from hybridge.engine import Engine, EngineOptions
from hybridge.models import TextSpec
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.middleware.key_file import KeyRing, hash_key
from hybridge.server.process.server import running

pytestmark = pytest.mark.skipif("COMFYUI_DIR" not in os.environ, reason="COMFYUI_DIR names no ComfyUI")

KEY = "hk-secret-of-the-test"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=2,
        latent_channels=4,
    )
    specs = [spec_of(folder / "vae", vae), spec_of(folder / "wan", AutoencoderKLWan(base_dim=8, num_res_blocks=1))]
    text = saved(case_of("StableDiffusionPipeline"), folder / "pipeline")
    texts = [TextSpec("text", text.source, text.class_name)]
    with serving(texts, cold=specs, keys=KeyRing({"me": hash_key(KEY)})) as made:
        yield made


def run(script: str, address: str, *folders: Path) -> None:
    env = {**os.environ, "HYBRIDGE_PROFILE_DESKTOP_URL": address, "HYBRIDGE_PROFILE_DESKTOP_KEY": KEY}
    env |= {"ADDRESS": address.partition("//")[2], "KEY": KEY}
    command = [sys.executable, Path(__file__).with_name(script), *folders]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout.splitlines()[-1])  # noqa: T201 - for whoever runs this by hand


@pytest.mark.parametrize("script", ["real_comfyui.py", "real_prompts.py"])
def test_the_pack_in_a_real_comfyui(address: str, folder: Path, script: str) -> None:
    run(script, address, folder / "vae", folder / "pipeline" / "text")


def test_vaes_beside_comfyui_s_own(tmp_path: Path) -> None:
    options = EngineOptions(device="cpu")
    engines = {name: Engine.load(spec_of(tmp_path / name, make()), options) for name, make in VAES.items()}
    with running(create_app(LocalBackend(engines), keys=KeyRing({"me": hash_key(KEY)}))) as address:
        run("real_vaes.py", address, tmp_path)
        run("real_qwen.py", address, tmp_path)
