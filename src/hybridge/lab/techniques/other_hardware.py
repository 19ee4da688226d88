"""Other hardware, and libraries that cannot run here: each row looks, says what it missed, and names what lives.

Where the hardware is there and moving the pipeline to it is all that the technique asks, it is moved.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Callable

import torch

from ...errors import RequestError
from .evidence import looked_at
from .pipeline_context import PipelineContext
from .requirements import not_installed
from .technique import Applied, Missing, Proof, Technique


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


def _nowhere(_: PipelineContext) -> Applied:
    raise RequestError("this technique cannot be applied by the workbench", hint="see why it is missing")


def _version(distribution: str) -> str:
    try:
        return f"{distribution} {importlib.metadata.version(distribution)}"
    except importlib.metadata.PackageNotFoundError:
        return distribution


def _no_xdit(_: PipelineContext) -> Missing:
    living = "guidance split over two processes by hand: a chunk of the batch each, and all_gather"
    missing = not_installed("xfuser", instead=living)
    if missing is not None:
        return missing
    if importlib.util.find_spec("triton") is None:
        return Missing("unavailable", f"{_version('xfuser')} imports triton, which is not installed", living)
    reason = f"{_version('xfuser')} splits SDXL's guidance over two processes, and the workbench measures one"
    return Missing("unavailable", reason, living)


def _no_pruna(_: PipelineContext) -> Missing:
    living = "what it wraps, each a row here: deepcache, fused-qkv, fp16, compile, torchao-int8, pab"
    missing = not_installed("pruna", instead=living)
    if missing is not None:
        return missing
    if importlib.util.find_spec("torchvision") is None:
        return Missing("unavailable", f"{_version('pruna')} imports torchvision, which is not installed", living)
    return Missing(
        "unavailable", f"{_version('pruna')} wraps other libraries, which are measured by themselves", living
    )


def _no_core_ml(_: PipelineContext) -> Missing:
    living = "mps on a Mac, openvino elsewhere"
    if sys.platform != "darwin":
        return Missing("unavailable", f"Core ML is a part of macOS, and this is {platform.system()}", living)
    missing = not_installed("coremltools", instead=living)
    if missing is not None:
        return missing
    reason = f"{_version('coremltools')} converts for a Swift program of Apple's; diffusers has no pipeline for it"
    return Missing("unavailable", reason, living)


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
    Technique(
        name="xdit",
        title="xDiT",
        claim="One picture on several GPUs; for SDXL it splits guidance over two.",
        source="https://github.com/xdit-project/xDiT",
        exactness="rounding",
        stage="compile",
        apply=_nowhere,
        why_missing=_no_xdit,
        needs=("xfuser",),
    ),
    Technique(
        name="pruna",
        title="Pruna",
        claim="Caching, quantising and compiling from one configuration.",
        source="https://docs.pruna.ai/",
        exactness="approximate",
        stage="compile",
        apply=_nowhere,
        why_missing=_no_pruna,
        needs=("pruna",),
    ),
    Technique(
        name="core-ml",
        title="Core ML",
        claim="The parts as Core ML models, for Apple's Neural Engine.",
        source="https://github.com/apple/ml-stable-diffusion",
        exactness="approximate",
        stage="compile",
        apply=_nowhere,
        why_missing=_no_core_ml,
        group="engine",
        needs=("coremltools",),
    ),
    Technique(
        name="mps",
        title="Apple's GPU",
        claim="torch's own backend for Apple silicon: the pipeline moved, nothing else.",
        source="https://huggingface.co/docs/diffusers/optimization/mps",
        exactness="rounding",
        stage="dtype",
        apply=_moved_to("mps"),
        why_missing=_no_mps,
        group="device",
    ),
    Technique(
        name="gaudi",
        title="Intel Gaudi",
        claim="The pipeline moved to an HPU; diffusers knows the device.",
        source="https://huggingface.co/docs/diffusers/optimization/habana",
        exactness="rounding",
        stage="dtype",
        apply=_moved_to("hpu"),
        why_missing=_no_gaudi,
        group="device",
        needs=("habana-torch-plugin",),
    ),
    Technique(
        name="neuron",
        title="AWS Neuron",
        claim="The pipeline moved to Trainium or Inferentia; SDXL's pipeline knows the device.",
        source="https://huggingface.co/docs/diffusers/optimization/neuron",
        exactness="rounding",
        stage="dtype",
        apply=_moved_to("neuron"),
        why_missing=_no_neuron,
        group="device",
        needs=("torch-neuronx",),
    ),
)
