"""What became of a pipeline that was optimised: what was done, how to call it now, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import RequestError
from ..techniques import stack
from ..techniques.facts import TechniqueResult
from ..techniques.pipeline_context import PipelineContext, plainly
from ..techniques.stack import Step

#: Arguments of a call that :meth:`Optimised.generate` decides itself.
_DECIDED = ("generator", "output_type")

#: And where techniques listen to the steps.
_LISTENING = ("callback_on_step_end", "callback_on_step_end_tensor_inputs")


@dataclass(slots=True, eq=False, repr=False)
class Optimised:
    """A pipeline with techniques in force.  ``with`` undoes them at the end of the block; ``str`` is a table.

    Attributes:
        purpose: The preset's name, or the names of the techniques.
        reason: Why these techniques; None where they were named by the caller.
        done: What became of each, in the order in which they were applied.
    """

    purpose: str
    device: str
    reason: str | None
    done: tuple[TechniqueResult, ...]
    _context: PipelineContext
    _steps: list[Step]
    _forget: Callable[[], Any] = field(repr=False)

    @property
    def call(self) -> dict[str, Any]:
        """Arguments for ``pipe(prompt, **optimised.call)``: steps, callbacks, and whatever else techniques need.

        To be read anew for each picture: what techniques keep between the steps of one is reset by reading it.

        Raises:
            RequestError: where a technique makes the picture with calls of its own; :meth:`generate` makes it then.
        """
        if self._context.generate is not plainly:
            raise RequestError(
                "one call of the pipeline does not make these pictures",
                saw=self.purpose,
                hint="`.generate(prompt, seed=…)`",
            )
        return self._context.call_arguments()

    def generate(self, prompt: str, *, seed: int = 0, **arguments: Any) -> list[Any]:
        """Pictures for a prompt, as a list of PIL images.

        Args:
            prompt: What is asked for.
            seed: Of a generator on the CPU: the same noise on every device.
            **arguments: Of the pipeline's call, above those of the techniques.

        Raises:
            RequestError: for arguments that are decided here.
        """
        for name in (*_DECIDED, *(_LISTENING if self._context.after_step else ())):
            if name in arguments:
                raise RequestError(
                    f"`{name}` is decided here", saw=repr(arguments[name]), hint="pipe(prompt, **optimised.call)"
                )
        from PIL import Image

        pictures = self._context.picture(prompt, seed, **arguments)  # (B, H, W, 3) in [0, 1]
        return [Image.fromarray(picture) for picture in (np.asarray(pictures) * 255).round().astype(np.uint8)]

    def undo(self) -> tuple[str, ...]:
        """Puts the pipeline back as it was; once is enough, again does nothing.

        Returns:
            Names of techniques that have no way back and stay in force; to be rid of those, load the pipeline anew.

        Raises:
            RequestError: where what a technique changed has been changed again since, by a later call for example;
                once that is undone, another call goes on.
        """
        stays: list[str] = []
        while self._steps:
            # One by one, so that what came off does not come off twice.
            stays += stack.undo(self._steps[-1:])
            self._steps.pop()
        if not stays:
            self._forget()
        return tuple(stays)

    def __enter__(self) -> Optimised:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        outcomes = ", ".join(f"{each.technique} {each.outcome or 'in force'}" for each in self.done)
        return f"<Optimised for {self.purpose} on {self.device}: {outcomes}>"

    def __str__(self) -> str:
        rows = [(each.technique, each.outcome or "in force", each.told) for each in self.done]
        widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
        lines = [f"{name:{widths[0]}}  {outcome:{widths[1]}}  {told}" for name, outcome, told in rows]
        head = f"{self.purpose} on {self.device}" + (f": {self.reason}" if self.reason else "")
        return "\n".join([head, *lines])
