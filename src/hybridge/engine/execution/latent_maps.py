"""Factors and shifts for every position of a normalised value, from the program's input."""

from __future__ import annotations

import torch

from ..program.layers import Maps
from .parameters import Parameters


class LatentMaps:
    """The two 1×1 convolutions of :class:`.layers.Maps`.

    Args:
        maps: The maps in the program.
        parameters: The module's parameters.
    """

    def __init__(self, maps: Maps, parameters: Parameters) -> None:
        layers = [parameters.linear(layer) for layer in (maps.scale, maps.shift)]
        self._weight = torch.cat([weight for weight, _ in layers])
        self._bias = torch.cat([weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in layers])

    def apply(
        self, maps: Maps, latents: torch.Tensor, frame: int, first: int, height: int, rows: torch.Tensor
    ) -> None:
        """Multiply and shift rows in place.

        Args:
            maps: The maps for the film's number of frames.
            latents: The program's input, (T, Z, h, w).
            frame: The value's frame.
            first: The first of the rows.
            height: Height of the value.
            rows: (1, C, n, W), in the dtype to compute in.
        """
        of_frame = latents[maps.frame_of(frame)]
        down = height // of_frame.shape[1]
        across = rows.shape[3] // of_frame.shape[2]
        end, at = first + rows.shape[2], first
        while at < end:
            until = min(end, (at // down + 1) * down)
            tokens = of_frame[:, at // down].T.to(rows.dtype)
            made = torch.addmm(self._bias, tokens, self._weight.T)
            scale, shift = made.T[None, :, None, :, None].chunk(2, dim=1)
            some = rows[:, :, at - first : until - first]
            blocks = some.view(*some.shape[:3], -1, across)
            blocks.mul_(scale).add_(shift)
            at = until
