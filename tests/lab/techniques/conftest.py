"""Pipelines on the bench: the tiny SDXL, and small ones of the other families."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from pipelines import load_small_pipelines

from hybridge.lab.studies.tiny_pipeline import save_tiny
from hybridge.lab.techniques.catalogue import named
from hybridge.lab.techniques.pipeline_context import PipelineContext
from hybridge.lab.techniques.technique import Applied, Proof

STEPS = 4

PROMPT = "a cat in the rain"

#: Of a trial's pictures, unless it asks for others: as little as shows a change.
_QUICK = {"num_inference_steps": 2, "height": 64, "width": 64}


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base and what goes with it on disk, in the hub's layout."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder)
    return folder


@pytest.fixture(scope="session")
def _loaded() -> dict[Path, Any]:
    """Pipelines as they were loaded; nobody changes them."""
    return {}


@pytest.fixture
def context(tiny_folder: Path, tmp_path: Path, _loaded: dict[Path, Any]) -> PipelineContext:
    """A fresh one, with few steps; copied, which is quicker than loading."""
    arguments = {"num_inference_steps": STEPS, "guidance_scale": 5.0}
    return _context(tiny_folder / "base", tmp_path, _loaded, arguments, add_watermarker=False)


def _context(
    folder: Path, scratch: Path, loaded: dict[Path, Any], arguments: dict[str, Any], **always: Any
) -> PipelineContext:
    def reload(**parts: Any) -> Any:
        pipe = DiffusionPipeline.from_pretrained(folder, **{**always, **parts})
        pipe.set_progress_bar_config(disable=True)
        return pipe

    if folder not in loaded:
        loaded[folder] = reload()
    pipe = loaded[folder]
    # What nobody changes is shared: most of the time of a copy goes there.
    shared = [part for name, part in pipe.components.items() if "tokenizer" in name]
    return PipelineContext(
        pipe=copy.deepcopy(pipe, {id(part): part for part in shared}),
        arguments=arguments,
        folder=scratch,
        device=torch.device("cpu"),
        reload=reload,
        origin=str(folder),
    )


@pytest.fixture(scope="session")
def small_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """SD 1.5, SD3 and Flux, small, each with a tiny VAE beside."""
    small = load_small_pipelines()
    made = {
        "sd-v1": small.stable_diffusion(small.vae(4)),
        "sd3": small.stable_diffusion_3(small.vae(16, seed=5, scaling_factor=1.5305, shift_factor=0.0609)),
        "flux": small.flux(small.vae(16, seed=3, scaling_factor=0.3611, shift_factor=0.1159)),
    }
    folders = {}
    for name, pipe in made.items():
        folder = tmp_path_factory.mktemp(name)
        folders[name] = folder / "base"
        pipe.save_pretrained(folders[name])
        widths = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
        channels = pipe.vae.config.latent_channels
        diffusers.AutoencoderTiny(latent_channels=channels, **widths).save_pretrained(folder / "taesd")
    return folders


@pytest.fixture(params=["sd-v1", "sd3", "flux"])
def other_context(
    request: pytest.FixtureRequest, small_folders: dict[str, Path], tmp_path: Path, _loaded: dict[Path, Any]
) -> PipelineContext:
    """A fresh one of another family."""
    # A pipeline that was saved without a part is loaded without it only if told so.
    absent = {"text_encoder_3": None, "tokenizer_3": None} if request.param == "sd3" else {}
    arguments = {"num_inference_steps": STEPS, "guidance_scale": 5.0, "height": 64, "width": 64}
    return _context(small_folders[request.param], tmp_path, _loaded, arguments, **absent)


@pytest.fixture
def from_disk(request: pytest.FixtureRequest) -> None:
    """Loads the context's pipeline instead: a kernel's last bits depend on how weights are aligned in memory.

    For techniques that take weights from the disk again, whose pictures are to be those of weights from the disk.
    """
    for name in {"context", "other_context"} & set(request.fixturenames):
        context = request.getfixturevalue(name)
        context.pipe = context.reload()


@dataclass
class Trial:
    """A technique on trial.

    Attributes:
        applied: What it returned.
        before: The picture without it.
        after: With it; there once :meth:`picture` was called.
    """

    context: PipelineContext
    applied: Applied
    arguments: dict[str, Any]
    before: Any = None
    after: Any = None
    proofs: list[Proof] = field(default_factory=list)

    def picture(self) -> Proof:
        """Makes one, watched."""
        with self.applied.witness() as proof:
            self.after = self.context.picture(PROMPT, seed=0, **self.arguments)
        self.proofs.append(proof())
        return self.proofs[-1]


@pytest.fixture(scope="module")
def _baselines() -> dict[str, Any]:
    """Pictures without any technique, by what they are of; the same in every test of a file, to the bit."""
    return {}


@pytest.fixture
def trial(_baselines: dict[str, Any]) -> Callable[..., Any]:
    """Applies a row, and at the end of the block undoes it: the picture must be the former one, to the bit."""

    @contextmanager
    def begin(context: PipelineContext, name: str, *, fresh: bool = True, **arguments: Any) -> Iterator[Trial]:
        (technique,) = named([name])
        arguments = {**_QUICK, **arguments}
        key = f"{context.origin} {context.arguments} {arguments}"
        if not fresh or key not in _baselines:
            before = context.picture(PROMPT, seed=0, **arguments)
            if fresh:
                _baselines[key] = before
        else:
            before = _baselines[key]
        assert float(before.std()) > 0.005  # a picture, not a grey area
        missing = technique.why_missing(context)
        assert missing is None, missing
        run = Trial(context, technique.apply(context), arguments, before)
        yield run
        assert run.applied.undo is not None
        run.applied.undo()
        with run.applied.witness() as proof:
            again = context.picture(PROMPT, seed=0, **arguments)
        assert not proof().took_effect, proof().evidence
        assert np.array_equal(again, before)

    return begin
