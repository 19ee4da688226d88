"""Find the parts of a model to serve from a command line argument."""

from __future__ import annotations

import difflib
from pathlib import Path

from ..errors import ModelUnavailable, UnknownModel
from ..models import ALIASES, CATALOGUE, ModelParts, ModelSpec, TextSpec, row_named, text_side_for
from ..models.text_models import TEXT_CATALOGUE, TEXT_PART, VAE_PART
from .loading import resolve
from .text.repository import INDEX, is_pipeline, open_index


def resolve_parts(argument: str) -> ModelParts:
    """Return the parts of a model that an argument of ``hybridge serve`` names.

    ``NAME`` means all parts of a catalogue row; ``NAME:vae`` and ``NAME:text`` choose one.  ``NAME=SOURCE`` means
    all supported parts of a whole pipeline, which has a ``model_index.json``, and ``NAME=SOURCE:text`` only its
    text encoders.  All other arguments name a VAE; see :func:`resolve`.

    Raises:
        UnknownModel: for a name that the catalogue does not have.
        ModelUnavailable: when the required files cannot be read or downloaded, or no part can be served.
    """
    name, separator, source = argument.partition("=")
    if not separator:
        return _of_catalogue(argument)
    whole, colon, part = source.rpartition(":")
    if colon and part == TEXT_PART and not Path(source).exists():
        return ModelParts(name, text=_text_of(name, whole))
    if is_pipeline(source):
        return _of_pipeline(name, source)
    try:
        return ModelParts(name, vae=resolve(argument))
    except ModelUnavailable as error:
        # A hub repository with a whole pipeline has no config.json at its top level.
        try:
            return _of_pipeline(name, source)
        except ModelUnavailable:
            raise error from None


def _of_catalogue(argument: str) -> ModelParts:
    name, colon, part = argument.partition(":")
    parts = ModelParts(name, row_named(name), TEXT_CATALOGUE.get(name))
    if part == VAE_PART:
        parts = ModelParts(name, vae=parts.vae)
    elif part == TEXT_PART:
        parts = ModelParts(name, text=parts.text)
    if (colon and part not in (VAE_PART, TEXT_PART)) or (parts.vae is None and parts.text is None):
        known = [*dict.fromkeys((*CATALOGUE, *TEXT_CATALOGUE, *ALIASES))]
        near = difflib.get_close_matches(name, known, n=1)
        raise UnknownModel(
            f"{name} has no part {part}" if colon and name in known else "unknown model",
            saw=repr(argument),
            expected="one of " + ", ".join(known),
            hint=near[0] if near else "NAME=PATH_OR_REPO[:subfolder] for a model of your own",
        )
    return parts


def _of_pipeline(name: str, source: str) -> ModelParts:
    """Return all supported parts of a whole pipeline.

    Raises:
        ModelUnavailable: when no part is supported.
    """
    text: TextSpec | None = None
    why: ModelUnavailable | None = None
    try:
        text = _text_of(name, source)
    except ModelUnavailable as error:
        why = error
    vae: ModelSpec | None = None
    try:
        vae = resolve(f"{name}={source}:{VAE_PART}")
    except ModelUnavailable as error:
        why = why or error
    if vae is None and text is None and why is not None:
        raise why
    return ModelParts(name, vae, text)


def _text_of(name: str, source: str) -> TextSpec:
    index = open_index(source, name)
    class_name = str(index.get("_class_name"))
    side = text_side_for(class_name)
    present = [encoder for encoder in side.encoders if (index.get(encoder.name) or [None])[0]] if side else []
    if not present:
        raise ModelUnavailable(
            f"{name} has no text encoders that hybridge serves",
            saw=f"_class_name {class_name[:80]}",
            hint=f"{name}={source}:{VAE_PART}, for its VAE alone",
            where=f"{source}/{INDEX}",
        )
    return TextSpec(name, source, class_name)
