"""The pack in a real ComfyUI, whose folder ``COMFYUI_DIR`` names; docs/comfyui.md says how to install one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from text_servers import case_of, saved, serving

from hybridge.models import TextSpec
from hybridge.models.spec import spec_from_config
from hybridge.server.middleware.key_file import KeyRing, hash_key

pytestmark = pytest.mark.skipif("COMFYUI_DIR" not in os.environ, reason="COMFYUI_DIR names no ComfyUI")

KEY = "hk-secret-of-the-test"


def test_the_pack_in_a_real_comfyui(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=2,
        latent_channels=4,
    )
    vae.save_pretrained(tmp_path / "vae")
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    text = saved(case_of("StableDiffusionPipeline"), tmp_path / "pipeline")
    spec = spec_from_config("vae", str(tmp_path / "vae"), None, config)
    texts = [TextSpec("text", text.source, text.class_name)]
    with serving(texts, cold=[spec], keys=KeyRing({"me": hash_key(KEY)})) as address:
        env = {**os.environ, "HYBRIDGE_PROFILE_DESKTOP_URL": address, "HYBRIDGE_PROFILE_DESKTOP_KEY": KEY}
        env |= {"ADDRESS": address.partition("//")[2], "KEY": KEY}
        script = Path(__file__).with_name("real_comfyui.py")
        done = subprocess.run(
            [sys.executable, script, tmp_path / "vae", text.source], env=env, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout.splitlines()[-1])  # noqa: T201 - for whoever runs this by hand
