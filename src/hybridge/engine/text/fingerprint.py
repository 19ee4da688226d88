"""The fingerprint of the text encoders in a folder, from their files; no model is loaded.

See :mod:`hybridge.models.text_fingerprint`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...errors import ModelUnavailable
from ...models.text_fingerprint import (
    canonical_name,
    digests_of_weights,
    fingerprint_of_tokenizer,
    group_of_names,
    is_used,
)
from ...models.text_side import Encoder
from .dtypes import STORED_DTYPES, stored_numbers
from .loading import class_of, is_present, pipeline_class_of, tokenizer_class, weights_of
from .repository import Repository, open_repository
from .tokenizers import load_tokenizer
from .trimmed import fewer_layers, without


def fingerprint(source: str | Path, name: str | None = None) -> dict[str, Any]:
    """Return what clients compare with a pipeline of their own, in JSON's types.

    Args:
        source: A folder with a ``model_index.json``, or a repository that is in the hub's cache.
        name: The model's name, for errors.

    Raises:
        ModelUnavailable: when the files are not on this machine, or not what they should be.
    """
    repository = open_repository(source, name, is_local=True)
    defaults = inspect.signature(pipeline_class_of(repository).__call__).parameters
    present = [encoder for encoder in repository.side.encoders if is_present(repository, encoder)]
    encoders, tokenizers = {}, {}
    for encoder in present:
        read = defaults[encoder.layers[1]].default if encoder.layers else ()
        encoders[encoder.name] = _of_encoder(repository, encoder, read)
        folder = repository.folder / encoder.tokenizer
        kind = tokenizer_class(repository, encoder.tokenizer)
        tokenizer = load_tokenizer(repository.name, encoder.tokenizer, folder, kind)
        tokenizers[encoder.tokenizer] = fingerprint_of_tokenizer(tokenizer)
    zeros = repository.side.guidance.zeros_if if repository.side.guidance else None
    settings = {zeros: repository.index[zeros]} if isinstance(zeros, str) and zeros in repository.index else {}
    return {"encoders": encoders, "tokenizers": tokenizers, "settings": settings}


def _of_encoder(repository: Repository, encoder: Encoder, read: Sequence[int]) -> dict[str, Any]:
    kind = class_of(repository, encoder.name)
    config = kind.config_class.from_pretrained(repository.folder / encoder.name, local_files_only=True)
    layers = fewer_layers(config, encoder, read)
    with torch.device("meta"):
        model = (without(kind, encoder.without) if encoder.without or layers is not None else kind)(config)
    model.tie_weights()
    files = weights_of(repository, encoder.name)
    stored = stored_numbers(repository.name, files)
    weights = _stored_weights(repository, encoder, files, model, layers)
    return {
        "stored": str(STORED_DTYPES.get(stored.most_common(1)[0][0], torch.float32)).removeprefix("torch."),
        "layers": layers,
        **digests_of_weights(weights, model.config),
    }


def _stored_weights(
    repository: Repository, encoder: Encoder, files: Sequence[Path], model: Any, layers: int | None
) -> dict[str, torch.Tensor]:
    """Return the weights that affect embeddings, mapped from the files.

    Raises:
        ModelUnavailable: when a weight of the model has another name in the files.
    """
    from safetensors import safe_open

    stored: dict[str, torch.Tensor] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:  # maps the file; only what is used is read
            stored |= {canonical_name(key): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dictionary
    weights = {}
    groups = group_of_names(model.named_parameters(remove_duplicate=False))
    for first, names in groups.items():
        own = canonical_name(first)
        if not is_used(own, encoder, layers):
            continue
        found = next((stored[name] for name in map(canonical_name, names) if name in stored), None)
        if found is None or found.shape != model.get_parameter(first).shape:
            raise ModelUnavailable(
                f"the weights of the {encoder.name} of {repository.name} cannot be compared",
                saw=f"no {first} in the files" if found is None else f"{first} {list(found.shape)}",
                where=repository.folder / encoder.name,
            )
        weights[own] = found
    return weights
