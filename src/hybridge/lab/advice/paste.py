"""The lines of Python that put an option in force."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from ..estimate.shapes import PipelineShape


@dataclass(frozen=True, slots=True)
class Script:
    """What the lines are about, besides the techniques.

    Attributes:
        steps: Of denoising.
        height: Of the picture in pixels.
        width: The same.
        path: Of the pipeline, in place of the one that everybody knows.
        vae_path: The same of another VAE that it should have: the one that survives float16, or the tiny one.
        device: Where the pipeline computes.
        server: Address, for a remote VAE.
        model: The server's model.
        decode_budget_bytes: For the exact VAE.
    """

    steps: int
    height: int
    width: int
    path: str | None = None
    vae_path: str | None = None
    device: str = "cuda"
    server: str | None = None
    model: str | None = None
    decode_budget_bytes: int | None = None


def lines(shape: PipelineShape, stack: Sequence[str], script: Script) -> str:
    """A program that makes one picture, in the order in which techniques must be applied."""
    half = f"torch.{shape.half}"
    other_vae = {"vae-fp16-fix": "AutoencoderKL", "tiny-vae": "AutoencoderTiny"}
    vae_class = next((other_vae[name] for name in stack if name in other_vae), None)
    imports = ", ".join(sorted(name for name in (vae_class, shape.pipeline_class) if name))
    program = ["import torch", f"from diffusers import {imports}", ""]
    if {"remote-vae", "exact-vae"} & set(stack):
        program += ["import hybridge", ""]
    if vae_class:
        source = script.vae_path or (shape.tiny_source if "tiny-vae" in stack else shape.fixed_source)
        program.append(f"vae = {vae_class}.from_pretrained({_quoted(source)}, dtype={half})")
    program += [
        f"pipe = {shape.pipeline_class}.from_pretrained(",
        f"    {', '.join(_loading(shape, stack, script, has_vae=vae_class is not None))}",
        ")",
        *(_LINES[name](shape, script) for name in stack if name in _LINES),
    ]
    if not set(stack) & {"model-offload", "group-offload"}:
        program.append(f"pipe.to({_quoted(script.device)})")
    if "remote-vae" in stack:
        # Afterwards: the VAE takes its dtype and device from the pipeline.
        program.append(
            f"connection = hybridge.connect(pipe, {_quoted(script.server)}, model={_quoted(script.model)})"
        )
    size = f"num_inference_steps={script.steps}, height={script.height}, width={script.width}"
    program += [
        "",
        f'picture = pipe("a lighthouse in a storm", {size}).images[0]',
        'picture.save("lighthouse.png")',
    ]
    return "\n".join(program) + "\n"


def _loading(shape: PipelineShape, stack: Sequence[str], script: Script, *, has_vae: bool) -> list[str]:
    """The arguments of ``from_pretrained``."""
    arguments = [_quoted(script.path or shape.source), f"dtype=torch.{shape.half}"]
    if shape.variant and script.path is None:
        arguments.append(f"variant={_quoted(shape.variant)}")
    if "remote-vae" in stack:
        arguments.append("vae=None")
    elif has_vae:
        arguments.append("vae=vae")
    return arguments


def _quoted(text: str | None) -> str:
    return json.dumps(text, ensure_ascii=False)


def _exact(_: PipelineShape, script: Script) -> str:
    budget = "" if script.decode_budget_bytes is None else f', budget="{script.decode_budget_bytes // 2**20}MiB"'
    return f"pipe.vae = hybridge.exact(pipe.vae{budget})"


def _fp8(shape: PipelineShape, _: Script) -> str:
    denoiser = "unet" if shape.denoiser.call.startswith("unet") else "transformer"
    dtypes = f"storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.{shape.half}"
    return f"pipe.{denoiser}.enable_layerwise_casting({dtypes})"


def _model_offload(_: PipelineShape, script: Script) -> str:
    device = "" if script.device == "cuda" else f"device={_quoted(script.device)}"
    return f"pipe.enable_model_cpu_offload({device})"


def _group_offload(_: PipelineShape, script: Script) -> str:
    # A stream brings the next layer while this one computes; only CUDA has them.
    stream = ", use_stream=True" if script.device == "cuda" else ""
    device = f"onload_device=torch.device({_quoted(script.device)})"
    return f'pipe.enable_group_offload({device}, offload_type="leaf_level"{stream})'


#: A line for each technique that is a line; the others are arguments.
_LINES = {
    "exact-vae": _exact,
    "vae-tiling": lambda *_: "pipe.vae.enable_tiling()",
    "fp8-storage": _fp8,
    "model-offload": _model_offload,
    "group-offload": _group_offload,
}
