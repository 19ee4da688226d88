"""Other hardware, and libraries that cannot run here: each row looks, says what it missed, and names what lives.

Where the hardware is there and moving the pipeline to it is all that the technique asks, it is moved.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from collections.abc import Callable

import torch

from .evidence import looked_at
from .pipeline_context import PipelineContext
from .requirements import not_installed
from .technique import Applied, Missing, Proof, Technique, row


def _moved_to(kind: str) -> Callable[[PipelineContext], Applied]:
    """The ``apply`` of hardware that ``pipe.to`` reaches."""

    def apply(context: PipelineContext) -> Applied:
        before = context.device

        def move(device: torch.device) -> None:
            context.pipe.to(device)
            context.device = device

        def look() -> Proof:
            devices = {parameter.device.type for parameter in context.denoiser.parameters()}
            return Proof(devices == {kind}, f"the denoiser's weights are on {', '.join(sorted(devices))}")

        try:
            move(torch.device(kind))
        except BaseException:
            move(before)
            raise
        return Applied(looked_at(look), lambda: move(before))

    return apply


def _no_mps(_: PipelineContext) -> Missing | None:
    if not torch.backends.mps.is_built():
        return Missing("unavailable", f"torch {torch.__version__} is built without MPS", "openvino on a CPU")
    if not torch.backends.mps.is_available():
        return Missing("unavailable", f"{platform.platform()} has no GPU that MPS can use", "openvino on a CPU")
    return None


def _no_gaudi(_: PipelineContext) -> Missing | None:
    # Intel's bridge adds torch.hpu when it is imported; optimum-habana's own pipelines pin an older diffusers.
    missing = not_installed("habana-torch-plugin", instead="openvino on an Intel CPU")
    if missing is not None:
        return missing
    if not _accelerator("hpu", "habana_frameworks.torch"):
        return Missing("unavailable", "habana_frameworks finds no Gaudi", "openvino on an Intel CPU")
    return None


def _no_neuron(_: PipelineContext) -> Missing | None:
    # diffusers' SDXL pipeline knows the device; optimum-neuron's own pipelines pin an older transformers.
    missing = not_installed("torch-neuronx", instead="compile on another accelerator")
    if missing is not None:
        return missing
    if not _accelerator("neuron", "torch_neuronx"):
        return Missing("unavailable", "torch_neuronx finds no Neuron core", "compile on another accelerator")
    return None


def _accelerator(kind: str, plugin: str) -> bool:
    """Whether torch has a device of this kind once its plugin is loaded."""
    importlib.import_module(plugin)
    module = getattr(torch, kind, None)
    return module is not None and bool(module.is_available())


ROWS: tuple[Technique, ...] = (
    row("mps", _moved_to("mps"), _no_mps),
    row("gaudi", _moved_to("hpu"), _no_gaudi),
    row("neuron", _moved_to("neuron"), _no_neuron),
)
