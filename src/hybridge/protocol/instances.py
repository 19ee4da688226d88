"""Read and write the JSON of Vertex AI: several requests in one body, and their answers in another.

``{"instances": [{"inputs": "<base64>", "parameters": {…}}], "parameters": {…}}`` is answered with
``{"predictions": [{"b64": "<base64>", "content_type": "image/jpeg"}]}``.  An instance may also be a prompt,
``{"prompt": "…"}`` with the options of that request, and name its ``model`` and its ``task``.
"""

from __future__ import annotations

import base64
import codecs
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from ..errors import RequestError, TooLarge, UnknownParameter
from .json_bodies import cut_out_texts, parse_json
from .messages import HttpResponse, Task

_FORM = '{"instances": [{"inputs": "<base64>", "parameters": {…}}]}'
_TASKS = ("decode", "encode", "prompt")
_FIELDS = ("inputs", "parameters", "model", "task")


@dataclass(frozen=True, slots=True)
class Instance:
    """One request of several.

    Attributes:
        body: Its JSON, as the body of a request of its own.
        model: The model that it names; None if that is to be inferred.
        task: Its task; None if that follows from the rest.
    """

    body: bytes
    model: str | None
    task: Task | None


def read_instances(body: bytes, most: int) -> list[Instance] | None:
    """Return the requests of a JSON body; None if it has no ``instances``.

    Parameters beside the instances hold for all of them, those of an instance have priority.

    Args:
        body: The body.
        most: The most instances.

    Raises:
        RequestError: when it has them in another form.
        TooLarge: when there are more, or the body without the base64 is too large.
    """
    if b'"instances"' not in body:
        return None
    rest, texts = cut_out_texts(body.removeprefix(codecs.BOM_UTF8))
    document = parse_json(rest, _FORM)
    if not isinstance(document, dict) or "instances" not in document:
        return None
    instances, parameters = document.pop("instances"), document.pop("parameters", None) or {}
    if document:
        raise UnknownParameter(
            "unknown field beside `instances`", saw=repr(next(iter(document))[:40]), expected=_FORM
        )
    if not isinstance(instances, list) or not instances or not isinstance(parameters, dict):
        raise RequestError("`instances` has another form", saw=type(instances).__name__, expected=_FORM)
    if len(instances) > most:
        raise TooLarge(
            "too many instances", saw=len(instances), expected=f"at most {most}", hint="several requests"
        )
    try:
        return [_read_instance(instance, parameters, texts) for instance in instances]
    except RecursionError:
        raise RequestError(
            "`instances` has another form", saw="brackets that are nested too deeply", expected=_FORM
        ) from None


def _read_instance(instance: Any, shared: dict[str, Any], texts: dict[str, memoryview]) -> Instance:
    if not isinstance(instance, dict):
        raise RequestError("an instance is no object", saw=type(instance).__name__, expected=_FORM)
    model, task = instance.pop("model", None), instance.pop("task", None)
    if not isinstance(model, str | None) or (task is not None and task not in _TASKS):
        raise RequestError(
            "an instance has a wrong model or task",
            saw=str(task)[:40],
            expected=f"a name, and one of {', '.join(_TASKS)}",
        )
    if task == "prompt" or "prompt" in instance:
        return Instance(json.dumps({**shared, **instance}).encode(), model, "prompt")
    unknown = next((name for name in instance if name not in _FIELDS), None)
    if unknown is not None:
        raise UnknownParameter(
            "an instance has an unknown field",
            saw=repr(unknown[:40]),
            expected=", ".join(_FIELDS),
            hint="parameters",
        )
    inputs, own = instance.get("inputs"), instance.get("parameters") or {}
    if not isinstance(inputs, str) or not isinstance(own, dict):
        names = [name[:40] for name in instance]
        raise RequestError("an instance has another form", saw=f"the keys {names}", expected=_FORM)
    # Still escaped, as it came; a placeholder that the client wrote itself is a text like any other.
    cut_out = texts.pop(inputs, None)
    encoded = json.dumps(inputs).encode() if cut_out is None else b'"%b"' % bytes(cut_out)
    parameters = json.dumps({**shared, **own}).encode()
    return Instance(b'{"inputs": %b, "parameters": %b}' % (encoded, parameters), model, cast("Task | None", task))


def write_predictions(responses: Sequence[HttpResponse]) -> HttpResponse:
    """Return the answers to several requests as one: their bodies in base64, with their shape, dtype and model."""
    predictions = []
    for response in responses:
        headers = response.headers
        prediction: dict[str, object] = {
            "b64": base64.b64encode(response.body).decode("ascii"),
            "content_type": headers["content-type"],
        }
        if "shape" in headers:
            prediction |= {"shape": json.loads(headers["shape"]), "dtype": headers["dtype"]}
        notes = {"model": "hybridge-model", "warning": "hybridge-warning"}
        prediction |= {name: headers[header] for name, header in notes.items() if header in headers}
        predictions.append(prediction)
    return HttpResponse(
        200, {"content-type": "application/json"}, json.dumps({"predictions": predictions}).encode()
    )
