"""Decide whether a server's text encoders replace those of a pipeline, and which ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ClientError
from ..models import TextSide
from .client import Client
from .remote_text import RemoteTextEncoder
from .reply import warn_caller
from .text_comparison import difference
from .text_matching import ServedText, choose_text, fitting_models, lacks_encoders, read_text_models, side_of

_EQUAL = "its weights and tokens equal this pipeline's"


def remote_text(
    pipe: Any, client: Client, documents: Sequence[Any], asked: str | None, *, is_asked: bool
) -> tuple[RemoteTextEncoder, str] | None:
    """Return the replacement of ``encode_prompt`` and the reason; None if it cannot or should not be replaced.

    Args:
        pipe: The pipeline.
        client: The client of the server.
        documents: What the server says of its models.
        asked: The name of the model that the user chose.
        is_asked: Whether the user asked for the server's text encoders.

    Raises:
        Mismatch: when they cannot be replaced although the user asked for it, or when several models fit a
            pipeline without text encoders.
    """
    known, models = side_of(pipe), read_text_models(documents)
    if not is_asked and (known is None or not fitting_models(*known, models)):
        return None
    if known is None or lacks_encoders(pipe, known[1]):
        chosen, reason = choose_text(pipe, models, asked, client.server)
        assert known is not None  # noqa: S101 - or choose_text had raised
        return RemoteTextEncoder(client, chosen.name, known[1], pipe), reason
    if asked is None:
        fitting = {model.name: model for model in fitting_models(*known, models)}
    else:
        chosen, _ = choose_text(pipe, models, asked, client.server)
        fitting = {chosen.name: chosen}
    side, whys = known[1], {}
    for model in fitting.values():
        document = _text_of(client, model.name)
        whys[model.name] = why = difference(pipe, side, document)
        if why is None:
            weights = document["fingerprint"].get("weights")
            made = RemoteTextEncoder(client, model.name, side, pipe, weights=weights, has_own=True)
            return made, _EQUAL + _other_dtype(pipe, side, model)
    if not is_asked:
        name, why = next(iter(whys.items()))
        warn_caller(
            f"the text encoders stay on this machine: {name} of {client.server} is not known to equal them ({why})."
            " parts='vae' says the same without a warning, parts=('vae', 'text') takes the server's all the same"
        )
        return None
    chosen, reason = choose_text(pipe, models, asked, client.server)
    warn_caller(f"{chosen.name} of {client.server} is not known to equal the pipeline's own: {whys[chosen.name]}")
    return RemoteTextEncoder(client, chosen.name, side, pipe, has_own=True), reason


def _text_of(client: Client, name: str) -> Any:
    """Return what a server says of a model's text encoders; None if it says nothing."""
    try:
        document = client.model(name)
    except ClientError as error:
        return {"no_fingerprint": error.what}
    return document.get("text") if isinstance(document, Mapping) else None


def _other_dtype(pipe: Any, side: TextSide, model: ServedText) -> str:
    own = next(
        str(getattr(pipe, one.name).dtype) for one in side.encoders if getattr(pipe, one.name, None) is not None
    )
    own = own.removeprefix("torch.")
    is_other = model.dtype not in ("", own)
    return f"; it computes in {model.dtype}, the pipeline's in {own}" if is_other else ""
