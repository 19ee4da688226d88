"""Text encoders whose weights have 8 or 4 bits: how transformers is told so, and whether that runs here."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import EngineFailure
from ...models import QUANTISATIONS

#: An encoder with a smaller part of all weights stays as it is: there is little memory to gain.
_LEAST_PART = 1 / 10

#: The size of the model that is tried first; a multiple of every library's groups.
_TRIED_WIDTH, _TRIED_TOKENS = 256, 4

#: Where bitsandbytes keeps a weight's scales.
_SCALES = ("SCB", "absmax", "code", "offset")


@dataclass(frozen=True, slots=True)
class _Bits:
    """How one kind of quantisation is made.

    Attributes:
        config: Name of transformers' config.
        bits: Of a weight, without its scales.
        arguments: Of the config, without the dtype in which is computed.
    """

    config: str
    bits: int
    arguments: Mapping[str, object]


_KINDS = {
    "bitsandbytes-int8": _Bits("BitsAndBytesConfig", 8, {"load_in_8bit": True}),
    "bitsandbytes-nf4": _Bits("BitsAndBytesConfig", 4, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    "torchao-int8": _Bits("TorchAoConfig", 8, {"quant_type": "Int8WeightOnlyConfig"}),
    "torchao-fp8": _Bits("TorchAoConfig", 8, {"quant_type": "Float8WeightOnlyConfig"}),
    "quanto-int8": _Bits("QuantoConfig", 8, {"weights": "int8"}),
    "quanto-int4": _Bits("QuantoConfig", 4, {"weights": "int4"}),
    "quanto-fp8": _Bits("QuantoConfig", 8, {"weights": "float8"}),
}


def check_installed(kind: str) -> None:
    """Raise EngineFailure unless ``kind`` is known and the library for it is installed."""
    if kind not in QUANTISATIONS:
        raise EngineFailure(f"unknown quantisation {kind!r}", expected="one of " + ", ".join(QUANTISATIONS))
    package = QUANTISATIONS[kind]
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise EngineFailure(f"{kind} needs {package}", hint=f"pip install {package}") from None


def quantisation_config(kind: str, dtype: torch.dtype) -> Any:
    """Return transformers' config for a kind of quantisation.

    Args:
        kind: One of :data:`hybridge.models.QUANTISATIONS`, whose library is installed.
        dtype: The dtype in which is computed.
    """
    import transformers

    known = _KINDS[kind]
    arguments = dict(known.arguments)
    if "quant_type" in arguments:
        quantization = importlib.import_module("torchao.quantization")
        arguments["quant_type"] = getattr(quantization, str(arguments["quant_type"]))()
    if arguments.get("load_in_4bit"):
        arguments["bnb_4bit_compute_dtype"] = dtype
    return getattr(transformers, known.config)(**arguments)


@functools.cache
def check_runs(kind: str, dtype: torch.dtype, device: torch.device) -> None:
    """Quantise a tiny model and run it, so that a machine that cannot is found out before gigabytes are read.

    Raises:
        EngineFailure: when the library is not installed, or does not run with this dtype on this device.
    """
    check_installed(kind)
    import transformers

    config = transformers.T5Config(
        d_model=_TRIED_WIDTH, d_kv=_TRIED_WIDTH, num_heads=1, d_ff=_TRIED_WIDTH, num_layers=1, vocab_size=8
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            transformers.T5EncoderModel(config).save_pretrained(folder)
            made: Any = transformers.T5EncoderModel.from_pretrained(
                folder, dtype=dtype, **loading_arguments(kind, dtype, device)
            )
        ids = torch.ones((1, _TRIED_TOKENS), dtype=torch.int64, device=device)
        with no_gradients(is_quantised=True):
            made.eval()(ids)
    except Exception as error:  # each library raises its own
        said = str(error).strip().splitlines()
        failure = EngineFailure(
            f"{kind} does not run here",
            saw=f"{type(error).__name__} in {str(dtype).removeprefix('torch.')} on {device.type}"
            + (f": {said[0][:160]}" if said else ""),
            hint="another --text-quantisation, or --dtype",
        )
    else:
        return
    raise failure


def loading_arguments(kind: str | None, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` for a quantised model; some cannot be moved once they are loaded.

    Args:
        kind: How it is quantised; None if its files are.
        dtype: The dtype in which is computed.
        device: Where it is loaded to.
    """
    arguments = {} if kind is None else {"quantization_config": quantisation_config(kind, dtype)}
    return arguments if device.type == "cpu" else {**arguments, "device_map": {"": device}}


def no_gradients(*, is_quantised: bool) -> AbstractContextManager[object]:
    """Return the mode in which encoders run; quanto's weights do not run in inference mode."""
    return torch.no_grad() if is_quantised else torch.inference_mode()


def is_worth_it(numbers: int, all_numbers: int) -> bool:
    """Return whether an encoder with this many weights is quantised, of so many in all encoders."""
    return numbers >= _LEAST_PART * all_numbers


def expected_bytes(model: Any, kind: str, dtype: torch.dtype) -> int:
    """Return the bytes of a quantised model, at most.

    Args:
        model: The model on the meta device.
        kind: How it is quantised.
        dtype: The dtype of what stays as it is: embeddings, norms, and layers that need their precision.
    """
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    bits = _KINDS[kind].bits
    total = 0
    for name, module in model.named_modules():
        is_quantised = isinstance(module, torch.nn.Linear) and not kept.intersection(name.split("."))
        for parameter in module.parameters(recurse=False):
            if is_quantised and parameter.ndim == 2:
                # Scales: a few for each row and, with four bits, at most four bytes for each 64 weights.
                scales = 16 * parameter.shape[0] + (parameter.numel() // 16 if bits < 8 else 0)
                total += parameter.numel() * bits // 8 + scales
            else:
                total += parameter.numel() * max(dtype.itemsize, 4 if kept.intersection(name.split(".")) else 0)
    return total


def held_bytes(tensor: torch.Tensor) -> int:
    """Return the bytes of a tensor; of a quantised one, with its scales."""
    return sum(one.nbytes for one in _held(tensor))


def _held(tensor: Any) -> Iterator[torch.Tensor]:
    if hasattr(tensor, "__tensor_flatten__"):  # torchao's and quanto's
        for name in tensor.__tensor_flatten__()[0]:
            yield from _held(getattr(tensor, name))
        return
    yield tensor
    for holder in (tensor, getattr(tensor, "quant_state", None)):
        beside = [getattr(holder, name, None) for name in _SCALES]
        yield from (one for one in beside if isinstance(one, torch.Tensor))
