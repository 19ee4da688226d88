"""The forms in which text embeddings leave a server, and two wires of others that ask for them.

* SD.Next's ``SD_REMOTE_T5``: the body is a bare JSON text or list of texts, the answer a tensor's bytes with its
  shape in a header.  No dtype is read, so the address says it: ``/te?dtype=float16``, else bfloat16.
* FLUX.2's remote text encoder: ``{"prompt": …}`` to ``/predict``, answered with ``torch.save`` of one tensor.  Such
  a file is written here and never read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from ..errors import RequestError
from .json_bodies import read_small_json
from .messages import HttpResponse
from .prompt import PromptAnswer, PromptLimits, PromptRequest
from .prompt_answers import padding_of, write_prompt_answer
from .query import Parameters, format_query, read_query
from .requests import BINARY
from .safetensors_bytes import SAFETENSORS
from .tensor import WireTensor

#: What the wires of others expect where nothing is said.
_USUAL_DTYPE = "bfloat16"

#: The tensor that is sent where only one can be.
_MAIN = "prompt_embeds"


def write_prompt_response(request: PromptRequest, answer: PromptAnswer, masks: Mapping[str, str]) -> HttpResponse:
    """The answer in the form that was asked for.

    Args:
        request: What was asked for.
        answer: The embeddings.
        masks: For tensors whose padding may be left out, the name of the mask; see :func:`padding_of`.

    Raises:
        RequestError: when there is no single tensor to send.
    """
    if request.envelope == "safetensors":
        answer = answer if request.dtype is None else _cast(answer, request.dtype)
        padding = padding_of(answer, masks) if request.drop_padding else {}
        return HttpResponse(200, {"content-type": SAFETENSORS}, write_prompt_answer(answer, padding))
    tensor = answer.tensors.get(_MAIN)
    if not isinstance(tensor, WireTensor):
        raise RequestError(
            f"these embeddings are not one tensor `{_MAIN}`",
            saw=", ".join(f"{name} as {answer.layouts[name]}" for name in answer.tensors),
            expected="envelope=safetensors, which holds them all",
        )
    from .torch import cast_floats, saved

    tensor = tensor if request.dtype is None else cast_floats(tensor, request.dtype)
    about = {"shape": json.dumps(list(tensor.shape)), "dtype": tensor.dtype}
    if request.envelope == "torch":
        return HttpResponse(200, {"content-type": "application/octet-stream", **about}, saved(tensor))
    return HttpResponse(200, {"content-type": BINARY, **about}, bytes(tensor.data))


def _cast(answer: PromptAnswer, dtype: str) -> PromptAnswer:
    from .torch import cast_floats

    tensors = {
        name: tuple(cast_floats(one, dtype) for one in value)
        if isinstance(value, tuple)
        else cast_floats(value, dtype)
        for name, value in answer.tensors.items()
    }
    return PromptAnswer(tensors, answer.layouts, {**answer.metadata, "dtype": dtype}, answer.truncated)


def from_sd_next(query: str, body: bytes, limits: PromptLimits) -> tuple[str, bytes]:
    """SD.Next's request as the query and the body of one of ours.

    Raises:
        RequestError: when it is not one.
    """
    form = '"a text", or a list of texts'
    document = read_small_json(body, most_bytes=limits.max_json_bytes, form=form)
    if not isinstance(document, (str, list)):
        raise RequestError("the body has another form", saw=type(document).__name__, expected=form)
    return _query("binary", query), json.dumps({"prompt": document}, ensure_ascii=False).encode()


def from_flux2(query: str, content_type: str, body: bytes, limits: PromptLimits) -> tuple[str, bytes] | None:
    """A request for FLUX.2's remote text encoder as query and body of one of ours; None where it is none."""
    is_json = content_type.partition(";")[0].strip().lower() == "application/json"
    if not is_json or len(body) > limits.max_json_bytes or b'"prompt"' not in body or b'"inputs"' in body:
        return None
    document = read_small_json(body, most_bytes=limits.max_json_bytes, form='{"prompt": …}')
    return (_query("torch", query), body) if isinstance(document, dict) and "prompt" in document else None


def _query(envelope: str, query: str) -> str:
    parameters = Parameters(read_query(query))
    parameters.refuse_unknown(("dtype",))
    return format_query({"envelope": envelope, "dtype": parameters.dtype() or _USUAL_DTYPE})
