"""The pipeline of a study: where it is, loading it, and what is said of it in the record."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from ...engine.options import choose_device
from ...errors import ModelUnavailable, RequestError
from ...models.catalogue import STARTER as STARTER_FOLDER
from ..techniques.pipeline_context import PipelineContext, default_side, modules
from .arguments import STARTER, TINY, Arguments
from .tiny_pipeline import save_tiny

#: What the call of a text-to-image pipeline takes.
_CALL = {"prompt", "height", "width", "num_inference_steps", "guidance_scale", "num_images_per_prompt", "generator"}

#: What the call of other pipelines takes besides.
_OF_OTHERS = {"image", "video", "num_frames", "audio_length_in_s"}


def located(name: str, folder: Path) -> str:
    """Where ``from_pretrained`` finds it; the tiny one is written into ``folder`` unless it is there."""
    if name == STARTER:
        return str(STARTER_FOLDER)
    if name != TINY:
        return str(Path(name).resolve()) if Path(name).exists() else name
    if not (folder / "base").exists():
        save_tiny(folder)
    return str(folder / "base")


def load(source: str, **parts: Any) -> Any:
    """The pipeline on the CPU.

    Args:
        source: A folder or a hub id.
        **parts: Of ``from_pretrained``: ``dtype``, ``unet=None``, …

    Raises:
        ModelUnavailable: when it cannot be had.
        RequestError: when it is not a text-to-image pipeline.
    """
    try:
        # Nothing from the network is ever unpickled.
        pipe = DiffusionPipeline.from_pretrained(source, use_safetensors=True, **parts)
    except OSError as error:
        raise _unavailable(source, error) from None
    takes = set(inspect.signature(type(pipe).__call__).parameters)
    if not takes >= _CALL or takes & _OF_OTHERS:
        raise RequestError(
            "not a text-to-image pipeline",
            saw=f"{type(pipe).__name__}, whose call takes {', '.join(sorted(takes & _OF_OTHERS)) or 'no size'}",
            expected="one whose call takes a prompt and a size: StableDiffusionXLPipeline",
        )
    if getattr(pipe, "watermark", None) is not None:
        pipe.watermark = None  # pictures are compared, and it is there only where its package is
    pipe.set_progress_bar_config(disable=True)
    for module in modules(pipe).values():
        module.eval().requires_grad_(False)
        _own_memory(module)
    return pipe


def settled(asked: Arguments, source: str) -> Arguments:
    """The arguments with device and dtype chosen, from what the pipeline says of itself before it is loaded."""
    device = choose_device(asked.device).value
    return replace(asked, device=str(device), dtype=_dtype(asked.dtype, device, source))


def sized(asked: Arguments, pipe: Any) -> Arguments:
    """The arguments with the size that the pipeline is made for, unless one was asked for."""
    return replace(asked, size=asked.size or default_side(pipe))


def context(settled: Arguments, source: str, folder: Path, *, is_placed: bool = True) -> PipelineContext:
    """The pipeline on the bench: loaded, on its device, with the arguments of its call.

    Args:
        settled: Arguments as :func:`settled` returns them.
        source: From :func:`located`.
        folder: For what techniques write.
        is_placed: Whether it is moved to its device; else it stays on the CPU for techniques to place.
    """
    dtype, device = getattr(torch, settled.dtype), choose_device(settled.device).value

    def reload(**parts: Any) -> Any:
        return load(source, **{"dtype": dtype, **parts})

    pipe = reload()
    settled = sized(settled, pipe)
    return PipelineContext(
        pipe=pipe.to(device) if is_placed else pipe,
        arguments={
            "num_inference_steps": settled.steps,
            "guidance_scale": settled.guidance_scale,
            "height": settled.size,
            "width": settled.size,
            "num_images_per_prompt": settled.batch,
        },
        folder=folder,
        device=device,
        reload=reload,
        is_kept=False,
        origin=source,
        server=settled.server,
    )


def about(name: str, pipe: Any) -> dict[str, Any]:
    """For the record."""
    return {
        "name": name,
        "class": type(pipe).__name__,
        "weights": "random" if name == TINY else name,
        "parameters": {part: sum(p.numel() for p in module.parameters()) for part, module in modules(pipe).items()},
    }


def _dtype(asked: str, device: torch.device, source: str) -> str:
    if asked != "auto":
        return asked
    if device.type == "cpu":
        return "float32"
    # Transformers were trained in bfloat16 and overflow in float16; UNets were made for float16.
    return "bfloat16" if "transformer" in _index(source) else "float16"


def _index(source: str) -> dict[str, Any]:
    try:
        index: dict[str, Any] = DiffusionPipeline.load_config(source)
    except OSError as error:
        raise _unavailable(source, error) from None
    return index


def _unavailable(source: str, error: OSError) -> ModelUnavailable:
    return ModelUnavailable(f"{source} cannot be loaded", saw=str(error).strip().splitlines()[0])


def _own_memory(module: torch.nn.Module) -> None:
    """The loader leaves weights in the mapped file, and one that stays there keeps all of it resident."""
    for tensor in (*module.parameters(), *module.buffers()):
        is_plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)  # what quantises makes memory of its own
        if is_plain and tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()
