"""What a call adds to its latents: vectors made of its timestep, and noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..planning.courses import Extent
from ..program.layers import Vectors
from ..program.ops import Convolve, Op
from ..program.program import Program


@dataclass(frozen=True, slots=True, eq=False)
class Conditions:
    """What an op reads beside values.

    Attributes:
        scale: (C,): what the normalised source is multiplied by; None if it is not.
        shift: (C,): what is then added.
        noise: (H, W) that is added to the target, times ``of_noise``; None if none is.
        of_noise: (C,).
    """

    scale: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    noise: torch.Tensor | None = None
    of_noise: torch.Tensor | None = None


#: For ops that read values alone.
NOTHING = Conditions()


class Conditioning:
    """The vectors and the noise of one call.

    Noise is drawn from torch's own generator, in the order of the ops, as the class draws it: once for all items.

    Args:
        program: The program.
        parts: The module's submodules by name.
        extents: (frames, height, width) of every value.
        like: A tensor of the dtype to store activations in, on the device to run on.
        timestep: (B,) or one number for all items, as the class takes it; None for a program that needs none.
    """

    def __init__(
        self,
        program: Program,
        parts: Mapping[str, nn.Module],
        extents: tuple[Extent, ...],
        like: torch.Tensor,
        timestep: torch.Tensor | None,
    ) -> None:
        self._parts, self._like, self._timestep = parts, like, timestep
        self._embedded: dict[str, torch.Tensor] = {}
        self._noise = {
            op.target: torch.randn(extents[op.target][1:], dtype=like.dtype, device=like.device)
            for op in program.ops
            if isinstance(op, Convolve) and op.noise is not None
        }

    def of(self, op: Op, item: int) -> Conditions:
        """Return what an op reads for an item of the batch."""
        vectors = op.norm.vectors if op.norm is not None else None
        noise = self._noise.get(op.target)
        if vectors is None and noise is None:
            return NOTHING
        scale = shift = of_noise = None
        if vectors is not None:
            rows = self._rows(vectors)
            rows = rows[min(item, len(rows) - 1)]
            scale, shift = 1 + rows[vectors.scale], rows[vectors.shift]
        if noise is not None and isinstance(op, Convolve) and op.noise is not None:
            owner, name = op.noise
            of_noise = getattr(self._parts[owner], name).detach().flatten()
        return Conditions(scale, shift, noise, of_noise)

    def _rows(self, vectors: Vectors) -> torch.Tensor:
        """Return the table's rows with the embedding added, (B, rows, C), in float32 at least."""
        part: Any = self._parts[vectors.embedder]
        if vectors.embedder not in self._embedded:
            if self._timestep is None:
                raise TypeError("this program needs a timestep")
            times: Any = self._parts["decoder"].timestep_scale_multiplier
            timestep = (self._timestep * times).flatten()
            self._embedded[vectors.embedder] = part(
                timestep=timestep,
                resolution=None,
                aspect_ratio=None,
                batch_size=len(timestep),
                hidden_dtype=next(part.parameters()).dtype,
            )
        embedded = self._embedded[vectors.embedder]
        owner: Any = self._parts[vectors.owner]
        table: torch.Tensor = owner.scale_shift_table
        wide = torch.promote_types(table.dtype, torch.float32)
        return embedded.view(len(embedded), len(table), -1).to(wide) + table.to(wide)
