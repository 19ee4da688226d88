"""Plan the run of a class's own forward, for classes that no program describes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import CannotLower, TooLarge
from ..models import ModelSpec
from ..units import format_bytes
from .planning.conv_algorithms import DeviceProfile
from .planning.plan import Plan
from .program.lowering import skeleton
from .program.program import Task
from .vae_adapters import adapter_of
from .whole_cost import WholeCost, whole_cost_of_many

#: Sizes of which the cost is kept; clients choose the sizes, so there must be a bound.
_MOST_KEPT = 256


@dataclass(slots=True)
class WholePlanner:
    """Counts what calls of a module take, on a copy of it that has shapes and no weights.

    Attributes:
        spec: The model's row of the catalogue.
        module: The diffusers module.
        profile: What the device can do.
        dtype: The precision that the module runs in.
        is_bitwise: Whether the class's own call is run with its own defaults; see :class:`.vae_adapters.Call`.
    """

    spec: ModelSpec
    module: Any
    profile: DeviceProfile
    dtype: torch.dtype
    is_bitwise: bool
    _lock: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)
    _blank: Any = field(init=False, repr=False, default=None)
    _costs: OrderedDict[tuple[Task, tuple[int, ...], bool], WholeCost] = field(
        init=False, repr=False, default_factory=OrderedDict
    )

    def plan(
        self,
        task: Task,
        shape: tuple[int, ...],
        reason: str,
        budget_bytes: int | None,
        *,
        inpaints: bool = False,
    ) -> Plan:
        """Return the plan for an input of this shape.  Any thread may call it.

        Args:
            task: ``decode`` or ``encode``.
            shape: Of the module's input.
            reason: Why the class's own forward runs.
            budget_bytes: Bytes that the call may take on top of the weights; None for no bound.
            inpaints: Whether the decoder is shown a picture and a mask.

        Raises:
            TooLarge: when the call takes more than the budget.
            CannotLower: when the layers do not take an input of this shape.
        """
        with self._lock:  # a server plans in two threads, and the classes keep state in their modules
            cost = self._cost(task, shape, reason, inpaints)
        if budget_bytes is not None and cost.peak_bytes > budget_bytes:
            raise TooLarge(
                f"{task} of {'×'.join(map(str, shape))} does not fit the budget",
                saw=format_bytes(budget_bytes, up=True),
                expected=f"at least {format_bytes(cost.peak_bytes, up=True)}",
                hint="that budget, a smaller picture, fewer frames or fewer at a time, or half precision",
                least_bytes=cost.peak_bytes,
            )
        said = f"{reason}; the class's own forward takes about {format_bytes(cost.peak_bytes, up=True)}"
        batch, height, width = shape[0], shape[-2], shape[-1]
        nothing_kept = ((), (), ())
        return Plan(
            "whole", batch, height, width, self.profile, *nothing_kept, cost.peak_bytes, 0, cost.flops, said
        )

    def _cost(self, task: Task, shape: tuple[int, ...], reason: str, inpaints: bool) -> WholeCost:
        key = (task, shape, inpaints)
        known = self._costs.get(key)
        if known is not None:
            self._costs.move_to_end(key)
            return known
        if self._blank is None:
            blank = skeleton(self.spec.class_name, self.module.config)
            # Not by diffusers' own method, which warns of layers that from_pretrained would keep in float32.
            self._blank = torch.nn.Module.to(blank, self.dtype)
        adapter, step = adapter_of(self.module), self.spec.frames.step(of_latents=task == "decode")
        factor = self.spec.spatial_factor
        shown = (shape[-2] * factor, shape[-1] * factor) if inpaints else None
        try:
            cost = whole_cost_of_many(
                self._blank, adapter, task, shape, is_bitwise=self.is_bitwise, step=step, shown=shown
            )
        except (RuntimeError, NotImplementedError, ValueError) as error:  # a size that its layers do not take
            raise CannotLower(reason, saw=str(error).partition("\n")[0][:200]) from None
        self._costs[key] = cost
        if len(self._costs) > _MOST_KEPT:
            self._costs.popitem(last=False)
        return cost
