"""Embeddings of some prompts each, put together in the order of all prompts, and parted again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ...models.text_side import Layout

Tensors = dict[str, torch.Tensor | list[torch.Tensor]]


def join(pieces: Sequence[Tensors], groups: Sequence[Sequence[int]], layouts: Mapping[str, Layout]) -> Tensors:
    """The embeddings of all prompts.

    Args:
        pieces: Of each group.
        groups: The places of their prompts; together every place once.
        layouts: Where in each tensor the prompts are; ``batch`` or ``list`` where there are several groups.
    """
    if len(pieces) == 1:
        return pieces[0]
    places = [place for group in groups for place in group]
    order = sorted(range(len(places)), key=places.__getitem__)
    joined: Tensors = {}
    for name in pieces[0]:
        if layouts[name] == "list":
            members = [one for piece in pieces for one in piece[name]]
            joined[name] = [members[index] for index in order]
        else:
            joined[name] = torch.cat([piece[name] for piece in pieces])[order]  # type: ignore[misc] # no lists here
    return joined


def split(tensors: Tensors, counts: Sequence[int], layouts: Mapping[str, Layout]) -> list[Tensors]:
    """The embeddings of the first prompts, of the next ones, and so on.

    Args:
        tensors: Of all prompts.
        counts: How many there are in each part.
        layouts: Where in each tensor the prompts are; not ``cu_seqlens`` where there are several parts.
    """
    if len(counts) == 1:
        return [tensors]
    parts: list[Tensors] = [{} for _ in counts]
    for name, value in tensors.items():
        begin = 0
        for part, count in zip(parts, counts, strict=True):
            end = begin + count
            if isinstance(value, list):
                part[name] = value[begin:end]
            else:
                part[name] = value[:, begin:end] if layouts[name] == "batch-axis-1" else value[begin:end]
            begin = end
    return parts
