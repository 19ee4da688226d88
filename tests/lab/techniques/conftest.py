"""The tiny pipeline on the bench."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from hybridge.lab.techniques.rig import Rig
from hybridge.lab.tiny import save_tiny

STEPS = 4


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base, refiner and TAESD on disk, in the hub's layout."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder)
    return folder


@pytest.fixture
def rig(tiny_folder: Path, tmp_path: Path) -> Rig:
    """A fresh one, with few steps."""

    def reload(**parts: object) -> StableDiffusionXLPipeline:
        pipe = StableDiffusionXLPipeline.from_pretrained(tiny_folder / "base", add_watermarker=False, **parts)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return Rig(
        pipe=reload(),
        arguments={"num_inference_steps": STEPS, "guidance_scale": 5.0},
        folder=tmp_path,
        device=torch.device("cpu"),
        reload=reload,
    )
