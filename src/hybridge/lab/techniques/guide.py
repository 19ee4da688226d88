"""The figures of Félix Sanz's guide (:data:`.facts.GUIDE`), as data: shown beside ours and never mixed with them.

Everything was measured with SDXL on an RTX 3090 in FP16, 1024×1024, 50 steps, CFG 5, batch 1, mean of five runs
over four prompts; a condition that differs is said with its figure.  Only numbers in the guide's text are here:
most of its tables are pictures.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..harness.typed import parse
from ..harness.words import Text

GB = 10**9

#: What a figure is of; ratios are to the guide's own FP16 baseline.
Quantity = Literal["seconds", "bytes", "time ratio", "memory ratio", "first picture", "preparation", "file bytes"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of the guide.

    Attributes:
        value: Seconds, bytes or a ratio.
        bound: ``<`` where the guide only says less than, ``≈`` where it says about.
        when: A condition beyond :data:`CONDITION`, or None.
    """

    quantity: Quantity
    value: float
    bound: Literal["", "<", "≈"] = ""
    when: Text | None = None

    def ratio_to(self, first: Figure | None) -> float | None:
        """As a ratio to another figure; None without one.  The report's template calls it."""
        if first is None:
            return None
        return self.value if "ratio" in self.quantity else self.value / first.value


@dataclass(frozen=True, slots=True)
class Recipe:
    """A preset of the guide's conclusions.

    Attributes:
        techniques: By our names; a measured configuration of the same techniques stands beside it.
        remark: What the guide says where it gives no number.
    """

    title: Text
    techniques: tuple[str, ...]
    seconds: Figure | None = None
    memory: Figure | None = None
    remark: Text | None = None


_KEPT: dict[str, Any] = json.loads(Path(__file__).with_name("guide.json").read_text(encoding="utf-8"))

CONDITION: Text = parse(Text, _KEPT["condition"])

#: By technique.
FIGURES: dict[str, tuple[Figure, ...]] = parse(dict[str, tuple[Figure, ...]], _KEPT["figures"])

#: Its conclusions, in its order.
RECIPES: tuple[Recipe, ...] = parse(tuple[Recipe, ...], _KEPT["recipes"])

#: Peaks of stacks of SDXL in GB, ``torch.cuda.max_memory_allocated()`` / 1e9: rows of keyword arguments.
MEMORY: tuple[dict[str, Any], ...] = tuple(_KEPT["memory"])
