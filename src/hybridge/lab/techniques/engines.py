"""The denoiser in another engine: OpenVINO, ONNX Runtime, TensorRT.

The first two get what the pipeline gives its denoiser, seen in a call of one step, as a flat list of tensors; a
stand-in takes the denoiser's place and gives the engine the same list.  The denoiser itself is kept for the way
back, so the weights are there twice meanwhile.
"""

from __future__ import annotations

import gc
import importlib
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ...errors import EngineFailure
from ..harness.memory import storage_bytes
from .evidence import CallLog, watching
from .pipeline_context import PipelineContext
from .requirements import no_room
from .technique import Missing, Proof, Undo, Watch

#: Gives the denoiser's output for the tensors of a call.
Run = Callable[[Sequence[torch.Tensor]], torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Call:
    """How the pipeline calls its denoiser: the tensors, and around them what does not change from step to step.

    ``rest`` has a mark where the tensors are.
    """

    tensors: tuple[torch.Tensor, ...]
    rest: tuple[Any, ...]
    shape: pytree.TreeSpec

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
        leaves, shape = pytree.tree_flatten((args, kwargs))
        tensors = tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))
        rest = tuple(torch.Tensor if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves)
        return cls(tensors, rest, shape)

    def around(self, tensors: Sequence[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with other tensors."""
        given = iter(tensors)
        leaves = [next(given) if leaf is torch.Tensor else leaf for leaf in self.rest]
        args, kwargs = pytree.tree_unflatten(leaves, self.shape)
        return args, kwargs


def _seen(context: PipelineContext) -> _Call:
    """The denoiser's call in one step of the context's pipeline."""
    calls: list[_Call] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(_Call.of(args, kwargs))

    hook = context.denoiser.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.no_grad():
            context.pipe("", **{**context.arguments, "num_inference_steps": 1, "output_type": "latent"})
    finally:
        hook.remove()
    return calls[0]


class _Flat(nn.Module):
    """The denoiser as exporters want it: tensors in, a tensor out."""

    def __init__(self, denoiser: nn.Module, call: _Call) -> None:
        super().__init__()
        self.denoiser = denoiser
        self._call = call

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        args, kwargs = self._call.around(tensors)
        output: torch.Tensor = self.denoiser(*args, **kwargs)[0]
        return output


class StandIn(nn.Module):
    """In the denoiser's place; has of it what pipelines ask for.

    Attributes:
        runs: Calls that the engine has answered.
    """

    def __init__(self, denoiser: Any, call: _Call, run: Run) -> None:
        super().__init__()
        self.config = denoiser.config
        self.dtype = denoiser.dtype
        self.device = denoiser.device
        if hasattr(denoiser, "add_embedding"):  # SDXL's pipeline looks up the width of its first layer
            self.add_embedding = denoiser.add_embedding
        self._call = call
        self._run = run
        self.runs = 0

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        call = _Call.of(args, kwargs)
        if (call.shape, call.rest) != (self._call.shape, self._call.rest):
            raise EngineFailure(
                "the pipeline calls its denoiser in another way than when it was exported",
                saw=call.rest,
                expected=self._call.rest,
                hint="export with the arguments of the call that is to be made",
            )
        output = self._run(call.tensors)
        self.runs += 1
        return (output.to(self.device, self.dtype),)

    def cache_context(self, _: str) -> AbstractContextManager[None]:
        """Flux's pipeline names the branches of guidance to its transformer's caches; there are none here."""
        return nullcontext()


def elsewhere(context: PipelineContext, undo: Undo, engine: str) -> Watch:
    """Builds the engine, and puts a stand-in into the pipeline."""
    build = {"openvino": _openvino, "onnxruntime": _onnxruntime}[engine]
    denoiser, call = context.denoiser, _seen(context)
    with torch.no_grad():
        stand_in = StandIn(denoiser, call, build(_Flat(denoiser, call).eval(), call, context))
    undo.set(context.pipe, context.denoiser_name, stand_in)

    def judge(before: int, in_torch: CallLog) -> Proof:
        ran = stand_in.runs - before
        return Proof(ran > 0 and not in_torch, f"{ran} forwards in the engine, {len(in_torch)} in torch")

    return watching(judge, lambda: nullcontext(stand_in.runs), lambda: CallLog(denoiser))


def _openvino(flat: nn.Module, call: _Call, _: PipelineContext) -> Run:
    openvino = importlib.import_module("openvino")
    # Traced, and without shapes given, every size stays open: a batch of one runs after a batch of two.
    model = openvino.convert_model(flat, example_input=call.tensors)
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.from_numpy(compiled([tensor.contiguous().numpy() for tensor in tensors])[0])

    return run


def _onnxruntime(flat: nn.Module, call: _Call, context: PipelineContext) -> Run:
    onnxruntime = importlib.import_module("onnxruntime")
    names = [f"input_{number}" for number in range(len(call.tensors))]
    path = Path(tempfile.mkdtemp(prefix="onnx-", dir=context.folder)) / "denoiser.onnx"
    torch.onnx.export(
        flat,
        call.tensors,
        path,
        input_names=names,
        output_names=["output"],
        **_export_options(context, names, call),
    )
    session = onnxruntime.InferenceSession(path, providers=[_provider(context)])
    wanted = {given.name for given in session.get_inputs()}  # what is not used is not there

    def run(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        given = {name: tensor.cpu().contiguous().numpy() for name, tensor in zip(names, tensors, strict=True)}
        (output,) = session.run(None, {name: array for name, array in given.items() if name in wanted})
        return torch.from_numpy(output)

    return run


def _export_options(context: PipelineContext, names: Sequence[str], call: _Call) -> dict[str, Any]:
    """Which exporter, and how it is told that a batch may have another size; sizes of 1 are fixed by an export."""
    batch = call.tensors[0].shape[0]
    batched = [batch > 1 and tensor.dim() > 0 and tensor.shape[0] == batch for tensor in call.tensors]
    if context.denoiser_name == "transformer":
        # Transformers normalise by their root mean square, which the older exporter does not know.
        return {
            "dynamo": True,
            "dynamic_shapes": (tuple({0: torch.export.Dim.DYNAMIC} if b else {} for b in batched),),
        }
    # The same graph in a quarter of the time.
    axes = {name: {0: "batch"} for name, is_batched in zip(names, batched, strict=True) if is_batched}
    return {"dynamo": False, "dynamic_axes": axes}


def _provider(context: PipelineContext) -> str:
    return "CUDAExecutionProvider" if context.device.type == "cuda" else "CPUExecutionProvider"


def tensorrt(context: PipelineContext, undo: Undo) -> Watch:
    """The denoiser compiled by torch-tensorrt."""
    torch_tensorrt = importlib.import_module("torch_tensorrt")

    def engines() -> int:
        kinds = (torch_tensorrt.runtime.TorchTensorRTModule, torch_tensorrt.runtime.PythonTorchTensorRTModule)
        return sum(isinstance(thing, kinds) for thing in gc.get_objects())

    before = engines()

    def look() -> Proof:
        # Built at the first picture; what TensorRT cannot take runs in torch without a word.
        built = engines() - before
        return Proof(built > 0, f"{built} TensorRT engines built")

    for step in (gc.collect, torch._dynamo.reset):
        undo.by(step)
    undo.by(setattr, context.denoiser, "_compiled_call_impl", None)
    context.denoiser.compile(backend="tensorrt", dynamic=False)
    return watching(look)


def no_onnxruntime(context: PipelineContext) -> Missing | None:
    """An onnxruntime without the device, or a disk without room."""
    have = importlib.import_module("onnxruntime").get_available_providers()
    if _provider(context) not in have:
        reason = f"onnxruntime here has {', '.join(have)}, and no {_provider(context)}"
        return Missing("unavailable", reason, "compile")
    return no_room(context.folder, storage_bytes(context.denoiser))


def no_tensorrt(_: PipelineContext) -> Missing | None:
    """A torch_tensorrt that does not load."""
    try:
        importlib.import_module("torch_tensorrt")
    except (ImportError, OSError) as why:  # its libraries come in a package of their own, of one exact version
        living = "openvino or onnxruntime on a CPU, compile on a GPU"
        return Missing("unavailable", f"torch_tensorrt does not load: {why}", living)
    return None
