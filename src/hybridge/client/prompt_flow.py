"""The flow that encodes prompts to text embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from ..errors import RequestError, ServerRefused
from ..protocol import PromptRequest, read_prompt_answer, write_prompt_request
from .address import Address
from .answer_limits import most_embeddings_bytes
from .conversion import Kind
from .documents import getter, read_most_in_a_batch
from .flow import Flows
from .flow_types import Arrived, Flow, Terms, Until
from .prompt_batches import joined, parts_of
from .prompts import Embeddings, embeddings_of, repeat_for_images

#: The status for what passes a limit of the server.
_TOO_LARGE = 413


def prompt_flow(
    flows: Flows, request: PromptRequest, model: str | None, kind: Kind, count: int, terms: Terms
) -> Flow[Embeddings]:
    """Return the embeddings of a request, in several requests if a server refuses so many prompts in one.

    Args:
        flows: The flows to the servers.
        request: The request.
        model: The model's id; None for the only model that takes prompts.
        kind: The kind of the resulting tensors.
        count: How often each prompt's embedding is repeated.
        terms: The terms of the call.
    """
    until = flows.begin(terms)
    if model is None:
        model = yield from _only_model(flows, until)
    try:
        return repeat_for_images((yield from _encoded(flows, request, model, kind, until)), count)
    except ServerRefused as error:
        if error.status != _TOO_LARGE or request.batch < 2:
            raise
        refused = error
    most = yield from flows.exchange(getter("/v1/models"), read_most_in_a_batch, until)
    parts = parts_of(request, most)
    if len(parts) < 2:
        raise refused
    answers = []
    for part in parts:
        answer = yield from _encoded(flows, part, model, kind, until)
        answers.append(answer)
    return repeat_for_images(joined(parts, answers), count)


def _encoded(flows: Flows, request: PromptRequest, model: str, kind: Kind, until: Until) -> Flow[Embeddings]:
    most = most_embeddings_bytes(request)

    def read(arrived: Arrived, address: Address) -> tuple[Embeddings, Mapping[str, str], str]:
        answer = read_prompt_answer(arrived.body, most_bytes=most)
        return embeddings_of(answer, kind), arrived.headers, str(address)

    post = flows.sender(write_prompt_request(request), most, f"/v1/{quote(model, safe='')}/prompt", until.terms)
    embeddings, headers, server = yield from flows.exchange(post, read, until, model, may_hedge=True)
    flows.pass_on(headers, server)
    return embeddings


def _only_model(flows: Flows, until: Until) -> Flow[str]:
    """Return the only model that takes prompts.

    Raises:
        RequestError: when no model or several models take prompts.
    """
    documents = yield from flows.listed(until)
    names = [str(model.get("name")) for model in documents if "prompt" in (model.get("tasks") or ())]
    if len(names) != 1:
        raise RequestError(
            "nothing tells which model's embeddings are wanted" if names else "no model there takes prompts",
            saw=", ".join(names)[:200] or "none with the task `prompt`",
            hint=f"model={names[0]!r}" if names else "`hybridge serve` with a model that has text encoders",
        )
    return names[0]
