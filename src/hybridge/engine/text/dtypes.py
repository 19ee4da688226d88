"""The precision of text encoders, from what their files hold."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch

from ...errors import EngineFailure, ModelUnavailable
from ..options import Choice, DtypeName
from ..weights import checked_shapes

#: The dtypes of files that encoders run in, by safetensors' names.
STORED_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

#: Ends of names by which ComfyUI marks fp8 weights that are multiplied by a scale.  Without it they are wrong.
_SCALES = (".scale_weight", ".comfy_quant")


def stored_numbers(name: str, files: Sequence[Path]) -> Counter[str]:
    """How many numbers of each dtype files of weights hold, by safetensors' names of dtypes.

    Raises:
        ModelUnavailable: when a file is damaged, or its weights need scales that transformers does not apply.
    """
    from safetensors import safe_open

    counted: Counter[str] = Counter()
    for path in files:
        others: set[str] = set()
        shapes = checked_shapes(name, path, others)
        scales = [key for key in sorted({*shapes, *others}) if key == "scaled_fp8" or key.endswith(_SCALES)]
        if scales:
            raise ModelUnavailable(
                f"the weights of {name} are fp8 with scales, which transformers does not read",
                saw=scales[0],
                hint="the weights in 16 bits, and --text-quantisation torchao-fp8",
                where=path,
            )
        with safe_open(path, framework="pt") as file:
            for key, shape in shapes.items():
                counted[file.get_slice(key).get_dtype()] += math.prod(shape)
    return counted


def choose_text_dtype(asked: str, stored: Counter[str], device: torch.device) -> Choice[torch.dtype]:
    """The precision to run in.

    Two encoders of the same weights in two precisions give embeddings that differ visibly, so the files decide:
    what was saved in bfloat16 stays in it.  Only float32 becomes bfloat16 on a GPU, as pipelines run there, and
    float16 becomes float32 on a CPU, which is an order of magnitude faster.

    Args:
        asked: ``auto`` or a floating dtype's name.
        stored: What the files hold.
        device: Where they will be.

    Raises:
        EngineFailure: for another dtype.
    """
    if asked not in get_args(DtypeName):
        raise EngineFailure(f"unknown dtype {asked!r}", expected="one of " + ", ".join(get_args(DtypeName)))
    if asked != "auto":
        return Choice(getattr(torch, asked), "asked for")
    most = stored.most_common(1)[0][0] if stored else "F32"
    if most == "BF16":
        return Choice(torch.bfloat16, "its weights are bfloat16")
    if device.type == "cpu":
        return Choice(torch.float32, "exact on a CPU, where float16 is slow")
    if most == "F16":
        return Choice(torch.float16, "its weights are float16")
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return Choice(torch.float32, "this GPU has no bfloat16")
    return Choice(torch.bfloat16, "half of the memory of float32; float16 would overflow in T5")
