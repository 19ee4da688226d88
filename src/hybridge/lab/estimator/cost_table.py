"""What was counted on the meta device at the usual sizes, kept beside this file so that nobody waits for it.

Other sizes are counted when they are asked for.  ``python -m hybridge.lab.estimator.cost_table`` writes the table
again; a test counts a part of it anew.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from .shapes import PIPELINES, Part
from .types import ConvAlgorithm, Cost, Weights

TABLE = Path(__file__).with_name("cost_table.json")

#: Bytes of a number that activations can have.
ITEMSIZES = (2, 4)


def weights_of(part: Part) -> Weights:
    """Numbers of a part."""
    return Weights(**_table()["weights"][part.name])


def cost_of(part: Part, itemsize: int, batch: int, height: int, width: int, way: ConvAlgorithm = "fused") -> Cost:
    """See :func:`.parts.forward_cost`; from the table where it is there, else counted now, which takes seconds."""
    height, width = (height, width) if _depends_on_size(part) else (0, 0)
    kept = _table()["costs"].get(_key(part, itemsize, batch, height, width, way))
    return Cost(*kept) if kept else _counted(part, itemsize, batch, height, width, way)


def usual() -> Iterator[tuple[Part, int, int, int]]:
    """(part, bytes of a number, batch, side of the picture) of every row."""
    seen = set()
    for shape in PIPELINES.values():
        for part in shape.parts():
            doubled = shape.is_guided and part in (shape.denoiser, shape.refiner)
            for itemsize in ITEMSIZES:
                row = (part, itemsize, 2 if doubled else 1, shape.size if _depends_on_size(part) else 0)
                if row not in seen:
                    seen.add(row)
                    yield row


def counted_anew() -> dict[str, Any]:
    """The whole table; about two minutes of one core."""
    from .parts import forward_cost, weights

    table: dict[str, Any] = {"weights": {}, "costs": {}}
    for part, itemsize, batch, side in usual():
        table["weights"].setdefault(part.name, dataclasses.asdict(weights(part)))
        counted = forward_cost(part, itemsize, batch, side, side)
        table["costs"][_key(part, itemsize, batch, side, side, "fused")] = [counted.peak_bytes, counted.flops]
    return table


def _depends_on_size(part: Part) -> bool:
    return part.call not in ("clip", "t5")


def _key(part: Part, itemsize: int, batch: int, height: int, width: int, way: str) -> str:
    return f"{part.name} {itemsize} B, {batch}×{height}×{width}, {way}"


@lru_cache(1)
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table


@lru_cache(64)
def _counted(part: Part, itemsize: int, batch: int, height: int, width: int, way: ConvAlgorithm) -> Cost:
    from .parts import forward_cost

    return forward_cost(part, itemsize, batch, height, width, way)


if __name__ == "__main__":
    TABLE.write_text(json.dumps(counted_anew(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
