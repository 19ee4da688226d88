"""Who takes part: one row and one function each.

A rival is asked first why it cannot take part, then made ready, then run again and again on the same input.  Every
one computes the same thing from the same weights; what differs is how.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ...engine import resolve
from ...engine.options import choose_device
from ...engine.vae_adapters import adapter_of
from ..harness.environment import no_cpp_compiler
from .cases import Case
from .subject import build, check_plain_fits, forward, shape, source


@dataclass(frozen=True, slots=True)
class Ready:
    """A rival with its weights loaded.

    Attributes:
        run: Input → picture or latents.
        given: The input, as it wants it.
        first: What the first call is given, which is not timed; None for the same.
        release: Gives back what it keeps between calls; activations that are kept would not be seen as taken.
    """

    run: Callable[[Any], Any]
    given: Any
    first: Any = None
    release: Callable[[], None] = lambda: None
    about: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a rival is told about memory.

    Attributes:
        budget_bytes: For ours: what a call may take on top of the weights.
        tile_pixels: For diffusers' tiling: the side of a tile; None for the model's own.
    """

    budget_bytes: int | None = None
    tile_pixels: int | None = None


@dataclass(frozen=True, slots=True)
class Rival:
    """A row.

    Attributes:
        name: On the command line and in records; ``title`` is its name in tables.
        budget_of: The rival whose measured peak is this one's budget.
    """

    name: str
    title: str
    make: Callable[[Case, Limits], Ready]
    why_missing: Callable[[Case], str | None] = lambda _: None
    budget_of: str | None = None


def _exact(case: Case, limits: Limits) -> Ready:
    from ...engine.exact import exact  # brings diffusers along, which takes seconds

    vae = exact(build(case), limits.budget_bytes)
    about: dict[str, Any] = {"budget_bytes": limits.budget_bytes}
    plain = vae.why_plain(case.task)
    if plain is not None:
        about["plan"] = {"mode": "plain", "reason": plain}
    else:
        batch, _, *frames, height, width = shape(case, resolve(case.model))
        plan = asdict(vae.plan(case.task, batch, height, width, *frames))
        about["plan"] = {key: plan[key] for key in ("mode", "reason", "peak_bytes", "flops")}
    return _ready(vae, case, about=about)


def _plain(case: Case, _: Limits, dtype: torch.dtype | None = None) -> Ready:
    dtype = dtype or getattr(torch, case.dtype)
    check_plain_fits(case, dtype)
    return _ready(all_at_once(build(case, dtype)), case, lambda given: given.to(dtype))


def all_at_once(module: Any) -> Any:
    """Turn off what makes a class's own call an approximation, such as HunyuanVideo's tiles of frames."""
    for name, value in adapter_of(module).at_once.items():
        setattr(module, name, value)
    return module


def _in_float32(case: Case, limits: Limits) -> Ready:
    return _plain(case, limits, torch.float32)


def _why_not_in_float32(case: Case) -> str | None:
    return "that is how it comes" if case.dtype == "float32" else None


def _channels_last(case: Case, _: Limits) -> Ready:
    check_plain_fits(case, getattr(torch, case.dtype))
    kind = torch.channels_last_3d if resolve(case.model).frames.has_axis else torch.channels_last
    module = all_at_once(build(case))
    formats: dict[type[Any], torch.memory_format] = {
        torch.nn.Conv2d: torch.channels_last,
        torch.nn.Conv3d: torch.channels_last_3d,
    }
    for part in module.modules():  # a film's module has layers of pictures, too
        for layer, memory_format in formats.items():
            if isinstance(part, layer):
                part.to(memory_format=memory_format)
    return _ready(module, case, lambda given: given.to(memory_format=kind))


def _tiled(case: Case, limits: Limits) -> Ready:
    module = build(case)
    module.enable_tiling()
    if hasattr(module, "tile_sample_min_size"):
        tile = limits.tile_pixels or module.tile_sample_min_size
        if limits.tile_pixels is not None:
            module.tile_sample_min_size = tile
            module.tile_latent_min_size = tile // resolve(case.model).spatial_factor
    else:  # classes of films
        own = module.tile_sample_min_height
        tile = limits.tile_pixels or own
        module.tile_sample_min_height = module.tile_sample_min_width = tile
        if hasattr(module, "tile_sample_stride_height"):
            # The overlap stays the same part of a tile: tiles below the step between them shrink the picture.
            step = module.tile_sample_stride_height * tile // own
            module.tile_sample_stride_height = module.tile_sample_stride_width = step
    return _ready(module, case, about={"tile_pixels": tile})


def _compiled(case: Case, _: Limits) -> Ready:
    check_plain_fits(case, getattr(torch, case.dtype))
    module = build(case).to(memory_format=torch.channels_last)
    given = _input(case).to(memory_format=torch.channels_last)
    return Ready(torch.compile(lambda given: forward(module, case, given), dynamic=False), given)


def _why_not_compiled(case: Case) -> str | None:
    if resolve(case.model).frames.has_axis:
        return _PICTURES_ALONE
    return no_cpp_compiler() if choose_device(case.device).value.type == "cpu" else None


_PICTURES_ALONE = "it is measured with models of pictures alone"

#: On a CPU, first calls for pictures with sides longer than this are made with a small one.
_FIRST_CALL_PIXELS, _SMALL_PIXELS = 1024, 256

#: OpenVINO's names of dtypes: as an inference precision, and among a CPU's capabilities.
_OPENVINO_PRECISION = {"float32": ("f32", "FP32"), "bfloat16": ("bf16", "BF16"), "float16": ("f16", "FP16")}


class _Exported(torch.nn.Module):
    """The forward of one task as a module, which is what OpenVINO converts."""

    def __init__(self, module: torch.nn.Module, case: Case) -> None:
        super().__init__()
        self.module = module
        self._case = case

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return forward(self.module, self._case, given)


def _openvino(case: Case, _: Limits) -> Ready:
    check_plain_fits(case, torch.float32)
    openvino: Any = importlib.import_module("openvino")
    given = source(case, torch.float32)
    with torch.no_grad():
        exported = _Exported(build(case, torch.float32), case)
        model = openvino.convert_model(exported, example_input=given, input=[list(given.shape)])
    del exported
    precision, _capability = _OPENVINO_PRECISION[case.dtype]
    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = openvino.Core().compile_model(model, "CPU", hints)
    request = compiled.create_infer_request()
    # It would keep its activations until the next call.
    return Ready(lambda given: request.infer([given])[0], given.numpy(), release=compiled.release_memory)


def _why_not_openvino(case: Case) -> str | None:
    if importlib.util.find_spec("openvino") is None:
        return "openvino is not installed"
    if resolve(case.model).frames.has_axis:
        return _PICTURES_ALONE
    device = choose_device(case.device).value.type
    if device != "cpu":
        return f"openvino is measured on CPUs, not on {device}"
    openvino: Any = importlib.import_module("openvino")
    _precision, capability = _OPENVINO_PRECISION[case.dtype]
    if capability not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return f"openvino has no {case.dtype} on this CPU"
    return None


def _ready(
    module: Any,
    case: Case,
    convert: Callable[[torch.Tensor], torch.Tensor] = lambda given: given,
    about: dict[str, Any] | None = None,
) -> Ready:
    """The forward of a module, whose inputs are converted."""
    return Ready(
        lambda given: forward(module, case, given), convert(_input(case)), convert(_first(case)), about=about
    )


def _input(case: Case) -> torch.Tensor:
    return source(case, getattr(torch, case.dtype)).to(choose_device(case.device).value)


def _first(case: Case) -> torch.Tensor:
    """For rivals that load and pack as much for a small picture: a smaller input, where a call takes minutes."""
    takes_minutes = case.size > _FIRST_CALL_PIXELS and choose_device(case.device).value.type == "cpu"
    return _input(replace(case, size=_SMALL_PIXELS) if takes_minutes else case)


_ROWS = (
    Rival("exact", "exact", _exact),
    Rival("diffusers", "diffusers, as it comes", _plain),
    Rival("float32", "diffusers, in float32", _in_float32, _why_not_in_float32),
    Rival("channels-last", "diffusers, channels-last", _channels_last),
    Rival("tiled", "diffusers, tiled", _tiled),
    Rival("exact-tight", "exact, in what tiling took", _exact, budget_of="tiled"),
    Rival("compile", "torch.compile, channels-last", _compiled, _why_not_compiled),
    Rival("openvino", "OpenVINO", _openvino, _why_not_openvino),
)

#: By name, in the order in which they take turns.
RIVALS: dict[str, Rival] = {row.name: row for row in _ROWS}
