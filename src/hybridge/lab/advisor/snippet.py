"""The lines of Python that put an option in force."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from ..estimator.shapes import PipelineShape
from .options import BITSANDBYTES


@dataclass(frozen=True, slots=True)
class Script:
    """What the lines are about, besides the techniques.

    Attributes:
        steps: Of denoising.
        height, width: Of the picture in pixels.
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
    program = _imports(shape, stack, vae_class)
    if "prompts-first" in stack:
        program += _prompt(shape, stack, script)
    if vae_class:
        source = script.vae_path or (shape.tiny_source if "tiny-vae" in stack else shape.fixed_source)
        program.append(f"vae = {vae_class}.from_pretrained({_quoted(source)}, dtype={half})")
    program += [
        *_from_pretrained(shape, _loading(shape, stack, script, has_vae=vae_class is not None)),
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
    about = f"{_encoded(shape, '{0}={0}')},\n    " if "prompts-first" in stack else f"{_PROMPT}, "
    program += [
        "",
        f"picture = pipe({about}{size}).images[0]",
        'picture.save("lighthouse.png")',
    ]
    return "\n".join(program) + "\n"


#: Longer lines of arguments are broken.
_LINE = 110

_PROMPT = '"a lighthouse in a storm"'


def _imports(shape: PipelineShape, stack: Sequence[str], vae_class: str | None) -> list[str]:
    names = {vae_class, shape.pipeline_class} - {None}
    program, narrow = [], BITSANDBYTES & set(stack)
    if narrow:
        program.append("# pip install bitsandbytes")
    if "prompts-first" in stack:
        program += ["import gc", ""]
    program.append("import torch")
    if narrow - {"bitsandbytes-nf4"}:
        program.append("import transformers")
    if "bitsandbytes-nf4" in narrow:
        names.add("BitsAndBytesConfig")
    program.append(f"from diffusers import {', '.join(sorted(map(str, names)))}")
    if narrow:
        program.append("from diffusers.quantizers import PipelineQuantizationConfig")
    if {"remote-vae", "exact-vae"} & set(stack):
        program += ["", "import hybridge"]
    return [*program, ""]


def _encoders(shape: PipelineShape) -> list[str]:
    """What diffusers calls them."""
    return ["text_encoder", *(f"text_encoder_{place}" for place in range(2, len(shape.texts) + 1))]


def _encoded(shape: PipelineShape, form: str) -> str:
    """What ``encode_prompt`` gives, in its order."""
    names = ["prompt_embeds", "pooled_prompt_embeds"]
    if shape.is_guided:
        names = [name for positive in names for name in (positive, f"negative_{positive}")]
    return ", ".join(form.format(name) for name in names)


def _prompt(shape: PipelineShape, stack: Sequence[str], script: Script) -> list[str]:
    """Lines that load the encoders alone, encode the prompt, and free them."""
    arguments = [*_source(shape, script), f"{_denoiser(shape)}=None", "vae=None"]
    bits = next((name for name in ("text-int8", "text-nf4") if name in stack), None)
    if bits:
        t5 = _encoders(shape)[[part.call for part in shape.texts].index("t5")]
        how = "load_in_8bit=True" if bits == "text-int8" else _nf4(shape)
        arguments.append(_narrowing(t5, f"transformers.BitsAndBytesConfig({how})"))
    place = next((name for name in ("model-offload", "group-offload") if name in stack), None)
    # What is narrowed was loaded onto the device.
    there = f"pipe.to({_quoted(script.device)})" if place is None or bits else _LINES[place](shape, script)
    others = "".join(f", prompt_{number}=None" for number in range(2, len(shape.texts) + 1))
    rest = "" if shape.is_guided else ", _"  # the places of the tokens, which are made anew
    is_cuda = script.device.startswith("cuda")
    return [
        "# The prompt first: its encoders are gone before the denoiser comes.",
        *_from_pretrained(shape, arguments),
        there,
        "with torch.no_grad():",
        f"    {_encoded(shape, '{0}')}{rest} = pipe.encode_prompt(",
        f"        {_PROMPT}{others}, device={_quoted(script.device)}",
        "    )",
        "del pipe",
        "gc.collect()",
        *(["torch.cuda.empty_cache()"] if is_cuda else []),
        "",
    ]


def _from_pretrained(shape: PipelineShape, arguments: Sequence[str]) -> list[str]:
    line = ", ".join(arguments)
    within = [line] if len(line) <= _LINE else [f"{argument}," for argument in arguments]
    return [f"pipe = {shape.pipeline_class}.from_pretrained(", *(f"    {text}" for text in within), ")"]


def _nf4(shape: PipelineShape) -> str:
    return f'load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.{shape.half}'


def _narrowing(component: str, config: str) -> str:
    return (
        f'quantization_config=PipelineQuantizationConfig(\n        quant_mapping={{"{component}": {config}}}\n    )'
    )


def _denoiser(shape: PipelineShape) -> str:
    return "unet" if shape.denoiser.call.startswith("unet") else "transformer"


def _source(shape: PipelineShape, script: Script) -> list[str]:
    arguments = [_quoted(script.path or shape.source), f"dtype=torch.{shape.half}"]
    if shape.variant and script.path is None:
        arguments.append(f"variant={_quoted(shape.variant)}")
    return arguments


def _loading(shape: PipelineShape, stack: Sequence[str], script: Script, *, has_vae: bool) -> list[str]:
    """The arguments of ``from_pretrained``."""
    arguments = _source(shape, script)
    if "prompts-first" in stack:
        arguments += [f"{name}=None" for name in _encoders(shape)]
    if "bitsandbytes-nf4" in stack:
        arguments.append(_narrowing(_denoiser(shape), f"BitsAndBytesConfig({_nf4(shape)})"))
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
    dtypes = f"storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.{shape.half}"
    return f"pipe.{_denoiser(shape)}.enable_layerwise_casting({dtypes})"


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
