"""Find the model of a server with the text encoders that a pipeline needs, without torch and the wire format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import Mismatch
from ..models import TextSide, base_of_pipeline, text_side_for


@dataclass(frozen=True, slots=True)
class ServedText:
    """A model from ``GET /v1/models`` that takes prompts.

    Attributes:
        name: The model's name on the server.
        pipeline: Name of the pipeline class whose text encoders it has.
        dtype: The dtype in which they compute.
    """

    name: str
    pipeline: str
    dtype: str


def read_text_models(documents: Sequence[Any]) -> list[ServedText]:
    """Return the server's models that take prompts; descriptions in any other form are skipped."""
    found = []
    for document in documents:
        text = document.get("text") if isinstance(document, Mapping) else None
        if isinstance(text, Mapping) and "prompt" in (document.get("tasks") or ()):
            found.append(ServedText(str(document.get("name")), str(text.get("class")), str(text.get("dtype"))))
    return found


def side_of(pipe: Any) -> tuple[str, TextSide] | None:
    """Return the first of a pipeline's class and bases with known text encoders, and the facts about them."""
    for base in type(pipe).__mro__:
        side = text_side_for(base.__name__)
        if side is not None:
            return base.__name__, side
    return None


def lacks_encoders(pipe: Any, side: TextSide) -> bool:
    """Return whether a pipeline has none of its text encoders."""
    return all(getattr(pipe, encoder.name, None) is None for encoder in side.encoders)


def choose_text(pipe: Any, models: Sequence[ServedText], asked: str | None, server: str) -> tuple[ServedText, str]:
    """Return the model that replaces the pipeline's text encoders, and the reason.

    Args:
        pipe: The pipeline.
        models: The server's models that take prompts.
        asked: The model's name that the user chose, which is used unless its embeddings have other names.
        server: The server's address, for messages.

    Raises:
        Mismatch: when no model or several models fit, or the chosen model does not exist or fit.
    """
    who = type(pipe).__name__
    known = side_of(pipe)
    if known is None:
        raise Mismatch(f"nothing is known of the text encoders of {who}", hint="`prompt_embeds`, and parts='vae'")
    class_name, side = known
    saw = "; ".join(f"{model.name} ({model.pipeline})" for model in models) or "no model that takes prompts"
    if asked is not None:
        chosen = next((model for model in models if model.name == asked), None)
        other = text_side_for(chosen.pipeline) if chosen else None
        if chosen is None or other is None or _given(other) != _given(side):
            raise Mismatch(f"{asked[:60]} of {server} has no text encoders for this {who}", saw=saw)
        return chosen, "asked for"
    fitting = fitting_models(class_name, side, models)
    if not fitting:
        raise Mismatch(
            f"{server} has no text encoders for this {who}",
            saw=saw,
            hint="`hybridge serve NAME=REPOSITORY:text` on that machine, with the pipeline's own repository",
        )
    if len(fitting) > 1:
        raise Mismatch(
            f"several models of {server} have text encoders for this {who}",
            saw=", ".join(model.name for model in fitting),
            hint=f'text_model="{fitting[0].name}", or whichever the pipeline was made with',
        )
    return fitting[0], f"it serves {fitting[0].pipeline}"


def fitting_models(class_name: str, side: TextSide, models: Sequence[ServedText]) -> list[ServedText]:
    """Return the models with text encoders of the pipelines that a class belongs to."""
    return [model for model in models if _is_alike(model.pipeline, class_name, side)]


def _given(side: TextSide) -> tuple[object, ...]:
    """Return a description of the results of ``encode_prompt``, for comparison."""
    return side.outputs, tuple(call.returns for call in side.calls)


def _is_alike(served: str, needed: str, side: TextSide) -> bool:
    base = base_of_pipeline(served)
    return text_side_for(served) == side or (base is not None and base == base_of_pipeline(needed))
