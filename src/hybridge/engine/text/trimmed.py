"""Models of transformers without what no embedding depends on: those parts are neither loaded nor run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...models.text_side import Encoder


def without(kind: Any, paths: Sequence[str]) -> Any:
    """A subclass whose models lack the modules at these paths.

    What turns hidden states into words becomes the identity, since ``forward`` calls it; everything else becomes
    None.  A path that a model does not have is left alone.
    """

    def initialise(self: Any, config: Any, *arguments: Any, **options: Any) -> None:
        kind.__init__(self, config, *arguments, **options)
        for path in paths:
            _take_out(self, path)

    prefixes = tuple(f"{path}." for path in paths)
    tied = {
        key: source
        for key, source in dict(kind._tied_weights_keys or {}).items()
        if not f"{key}.".startswith(prefixes)
    }
    return type(
        kind.__name__,
        (kind,),
        {
            "__module__": kind.__module__,
            "__init__": initialise,
            "_tied_weights_keys": tied or None,
            # The files hold what was left out, which is no fault of theirs.
            "_keys_to_ignore_on_load_unexpected": [""],
        },
    )


def _take_out(model: Any, path: str) -> None:
    *above, name = path.split(".")
    parent = model
    for step in above:
        parent = getattr(parent, "_modules", {}).get(step)
    if name in getattr(parent, "_modules", {}):
        parent._modules[name] = torch.nn.Identity() if name == "lm_head" else None


def fewer_layers(config: Any, encoder: Encoder, read: Sequence[int]) -> int | None:
    """Cuts a config to the layers that are read, and one hidden state more: the last passes through a norm.

    Args:
        config: Of the model; it is changed.
        encoder: The row, which says where the number stands.
        read: Indices into the hidden states, of which the first are the token embeddings.

    Returns:
        The number of layers; None where all stay.
    """
    if encoder.layers is None:
        return None
    *above, name = encoder.layers[0].split(".")
    for step in above:
        config = getattr(config, step)
    needed = max(read) + 1
    if needed >= getattr(config, name):
        return None
    setattr(config, name, needed)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        config.layer_types = list(kinds)[:needed]
    return needed
