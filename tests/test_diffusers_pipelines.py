"""``benchmarks/diffusers_pipelines``: pipelines of its own and of diffusers' tests, and how equal they are.

In a process of its own, because it patches ``from_pretrained`` and lets no warning through.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "diffusers_pipelines"

#: As diffusers writes them: mixins and constants from files beside it, a tokenizer from the hub.
FILE = """
import unittest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from ...testing_utils import enable_full_determinism, slow
from ..pipeline_params import TEXT_TO_IMAGE_PARAMS
from ..test_pipelines_common import PipelineTesterMixin

enable_full_determinism()


class SmallTests(PipelineTesterMixin, unittest.TestCase):
    pipeline_class = StableDiffusionPipeline
    params = TEXT_TO_IMAGE_PARAMS - {"height"}

    def get_dummy_components(self):
        torch.manual_seed(0)
        return {
            "unet": UNet2DConditionModel(
                sample_size=8, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
                down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
                cross_attention_dim=8,
            ),
            "vae": AutoencoderKL(
                block_out_channels=[8, 8], norm_num_groups=4,
                down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
            ),
            "text_encoder": CLIPTextModel(CLIPTextConfig(
                hidden_size=8, intermediate_size=8, num_attention_heads=1, num_hidden_layers=1, vocab_size=1000
            )),
            "tokenizer": CLIPTokenizer.from_pretrained("hf-internal-testing/tiny-random-clip"),
            "scheduler": DDIMScheduler(), "safety_checker": None, "feature_extractor": None,
        }

    def get_dummy_inputs(self, device, seed=0):
        return {
            "prompt": "a cat", "num_inference_steps": 1, "output_type": "np",
            "generator": torch.Generator(device).manual_seed(seed),
        }


@slow
class SlowTests(unittest.TestCase):
    pass
"""


def run(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(folder / "out"), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "## Counts" in (folder / "out" / "diffusers-pipelines.md").read_text()
    cases: list[dict[str, Any]] = json.loads((folder / "out" / "diffusers-pipelines.json").read_text())["cases"]
    return cases


def test_its_own_pipelines(tmp_path: Path) -> None:
    usual, deep = run(tmp_path, "--only", "PRXPipeline")
    assert [usual[way]["kind"] for way in ("connect", "vae=None", "exact")] == ["bitwise", "bitwise", "rounding"]
    assert deep["vae"] == "AutoencoderDC"
    assert [deep[way]["kind"] for way in ("connect", "vae=None", "exact")] == ["bitwise", "bitwise", "rounding"]


def test_those_of_diffusers_tests(tmp_path: Path) -> None:
    (tmp_path / "stable_diffusion").mkdir()
    (tmp_path / "stable_diffusion" / "test_small.py").write_text(FILE)
    (tmp_path / "stable_diffusion" / "test_broken.py").write_text("import no_such_module")
    case, broken = run(tmp_path, "--tests", str(tmp_path))
    assert case["name"] == "StableDiffusionPipeline (SmallTests)"
    assert case["connect"]["kind"] == case["vae=None"]["kind"] == "bitwise"
    assert case["exact"]["kind"] in ("bitwise", "rounding")
    assert broken["local"].startswith("ModuleNotFoundError")
