"""Attention along time, within each pixel, to its own and earlier frames."""

from __future__ import annotations

from collections.abc import Generator

import torch
import torch.nn.functional as F

from ..memory.arena import Scratch
from .film_ops import FilmAttention, FilmCall
from .strips import linear


class PixelAttention(FilmAttention):
    """An :class:`.ops.Attend` that sees ``pixel before``."""

    def run(self, call: FilmCall, scratch: Scratch) -> Generator[None]:
        """Compute what the call asks for, yielding after every few rows of all frames."""
        frames, _, width = call.source_extent
        op, channels, inner = self._op, self._op.out.out_channels, self._op.query.out_channels
        most = frames * min(call.at_once, call.rows[1]) * width
        tokens, *rooms = (scratch.take(most * count) for count in (channels, inner, inner, inner))
        for first in range(*call.rows, call.at_once):
            end = min(first + call.at_once, call.rows[1])
            pixels = (end - first) * width
            strip = tokens[: frames * pixels * channels].view(frames, end - first, width, channels)
            for frame in range(frames):
                normalise = self._norm.with_statistics(call.moments_of(frame))
                for row, piece in call.source.pieces(frame, first, end):
                    place = strip[frame : frame + 1].permute(0, 3, 1, 2)[:, :, row - first :]
                    normalise(piece, place[:, :, : piece.shape[2]])
            flat = strip.view(-1, channels)
            made = [room[: len(flat) * inner].view(-1, inner) for room in rooms]
            for layer, place in zip((self._query, self._key, self._value), made, strict=True):
                linear(flat, layer, place)
            heads = [one.view(frames, pixels, op.heads, -1) for one in made]
            if op.least_norm is not None:
                for one in heads[:2]:
                    one.div_(torch.linalg.vector_norm(one, dim=-1, keepdim=True).clamp_min_(op.least_norm))
            queries, keys, values = (one.permute(1, 2, 0, 3) for one in heads)
            attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
            heads[0].copy_(attended.permute(2, 0, 1, 3))
            del attended
            linear(made[0], self._out, flat)
            for frame in range(frames):
                rows = strip[frame : frame + 1].permute(0, 3, 1, 2)
                for row, piece in call.source.pieces(frame, first, end):
                    rows[:, :, row - first : row - first + piece.shape[2]].add_(piece)
                call.place(frame, first, end).copy_(rows)
            call.measure((0, frames), (first, end))
            yield
