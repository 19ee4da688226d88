"""What every rival is given: the same module, the same input; and how far a picture is from the untiled one."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import torch

from ...engine import loading, reference, resolve
from ...engine.device_profile import device_profile_for
from ...engine.latents import to_module
from ...engine.options import choose_device
from ...engine.planning.plan import plan
from ...engine.program.folding import folded
from ...engine.program.lowering import lower, skeleton
from ...engine.program.program import Program
from ...engine.whole_plan import WholePlanner
from ...errors import CannotLower
from ...models import ModelSpec
from ..harness.environment import memory_bytes
from .cases import Case

#: diffusers' tile where weights are random and no tile was asked for: what Stable Diffusion v1's VAE was tiled with
#: in the tables of diffusers' documentation.
TILE_PIXELS = 512


def build(case: Case, dtype: torch.dtype | None = None) -> Any:
    """diffusers' module, in eval mode and frozen, on the case's device.

    Args:
        case: Which model, and whether with its own weights.
        dtype: Another than the case's.

    Raises:
        ModelUnavailable: when weights or config cannot be had.
    """
    import diffusers

    spec = resolve(case.model)
    device = choose_device(case.device).value
    wanted = dtype or getattr(torch, case.dtype)
    if case.weights:
        return loading.load(spec, wanted, device)
    kind = getattr(diffusers, spec.class_name)
    torch.manual_seed(case.seed)
    module = kind.from_config(dict(architecture(spec))).eval().requires_grad_(False)
    # Asked of torch itself, because diffusers' own ``to`` warns of float16 on a CPU.
    return torch.nn.Module.to(module, device=device, dtype=wanted)


def architecture(spec: ModelSpec) -> dict[str, Any]:
    """What of the model's ``config.json`` shapes it; read from its folder or the hub if the catalogue has none."""
    if spec.architecture is None:
        import diffusers

        return dict(getattr(diffusers, spec.class_name).load_config(spec.source, subfolder=spec.subfolder))
    shaped = dict(spec.architecture)
    if spec.kind == "kl" and not spec.frames.has_axis:
        shaped.setdefault("sample_size", TILE_PIXELS)
    return shaped


def program_of(case: Case, spec: ModelSpec) -> Program:
    """What the case computes, as data.

    Raises:
        CannotLower: when the exact engine does not know the module.
    """
    program = lower(skeleton(spec.class_name, architecture(spec)), case.task)
    return program if case.frames > 1 else folded(program)


def check_plain_fits(case: Case, dtype: torch.dtype) -> None:
    """Raises TooLarge where the plain forward would fill the machine and be killed; a GPU refuses by itself."""
    device, spec = choose_device(case.device).value, resolve(case.model)
    if device.type != "cpu":
        return
    if spec.frames.has_axis:
        blank = torch.nn.Module.to(skeleton(spec.class_name, architecture(spec)), dtype)
        WholePlanner(spec, blank, device_profile_for(device.type, dtype), dtype, is_bitwise=False).plan(
            case.task, shape(case, spec), "the class's own forward", memory_bytes()
        )
        return
    batch, _, height, width = shape(case, spec)
    with suppress(CannotLower):  # nobody knows what it takes
        plan(
            program_of(case, spec),
            batch=batch,
            height=height,
            width=width,
            arithmetic=device_profile_for(device.type, dtype),
            budget_bytes=memory_bytes(),
            modes=("whole",),
        )


def shape(case: Case, spec: ModelSpec) -> tuple[int, ...]:
    """Of the input, (1, C, H, W) or with frames (1, C, T, H, W): latents for ``decode``, pixels for ``encode``."""
    is_decode = case.task == "decode"
    side = case.size // spec.spatial_factor if is_decode else case.size
    times = (spec.frames.latent_frames(case.frames) if is_decode else case.frames,) if spec.frames.has_axis else ()
    return (1, spec.latent_channels if is_decode else spec.vae_class.pixel_channels, *times, side, side)


def source(case: Case, dtype: torch.dtype) -> torch.Tensor:
    """The input on the CPU: seeded noise, as latents of a pipeline's scale or as pixels in [-1, 1].

    Rounded to the case's dtype, whichever it is given in, so that a reference reads the same numbers.
    """
    spec = resolve(case.model)
    generator = torch.Generator().manual_seed(case.seed)
    drawn = torch.randn(shape(case, spec), generator=generator)
    ready = to_module(drawn, spec, spec.normalisation, drawn.dtype) if case.task == "decode" else drawn.clamp(-1, 1)
    return ready.to(getattr(torch, case.dtype)).to(dtype)


def forward(module: Any, case: Case, given: torch.Tensor) -> torch.Tensor:
    """Latents → picture, or picture → the posterior's mode; by diffusers' module or by what stands in for it.

    Films are computed all at once where their class's own call blends tiles of frames.
    """
    if case.task == "decode":
        return reference.decode(module, given)
    mean_and_log_variance: torch.Tensor = reference.moments(module, given)  # the mode is the mean
    return mean_and_log_variance[:, : resolve(case.model).latent_channels]


def reference_dtype(case: Case) -> torch.dtype:
    """Of the untiled picture that others are compared with.

    float32, which half precision is far from; float64 where a float32 picture is judged and that is affordable.
    """
    return torch.float64 if case.dtype == "float32" and case.size <= 256 else torch.float32


def distance(picture: torch.Tensor, untiled: torch.Tensor) -> dict[str, float | None]:
    """How far a picture is from the untiled one, both (B, C, H, W), in float64.

    ``relative_l2`` is ‖a − b‖ / ‖b‖; ``psnr_db`` takes the untiled one's range for its peak.  Both are None for a
    picture with numbers that are not finite, and ``psnr_db`` is None for equal pictures.
    """
    difference = (picture.double() - untiled.double()).square_()
    error = float(difference.sum())
    if not math.isfinite(error):
        return {"relative_l2": None, "psnr_db": None}
    peak = float(untiled.max() - untiled.min())
    mean = error / difference.numel()
    return {
        "relative_l2": math.sqrt(error) / float(untiled.double().norm()),
        "psnr_db": 10 * math.log10(peak**2 / mean) if mean else None,
    }
