"""How fast the device is: from the arithmetic of a job to seconds, learned from the jobs that it did."""

from __future__ import annotations

#: Multiplications and additions per second before anything was measured: a few cores of a CPU.  The first job
#: corrects it.
_FIRST_GUESS = 1e11

#: How much the latest job counts in the running mean.
_SMOOTHING = 0.2


class Pace:
    """Seconds per unit of arithmetic, for every kind of work that was seen: a tiny VAE uses a device worse than a
    large one does.  Kinds that were not seen yet are taken to go as fast as the latest that was."""

    def __init__(self) -> None:
        self._seconds_per_flop: dict[str, float] = {}
        self._latest = 1 / _FIRST_GUESS

    def seconds(self, kind: str, flops: float) -> float:
        """How long a job is expected to take.

        Args:
            kind: Of the work, such as the model's name and the task.
            flops: Multiplications and additions.
        """
        return flops * self._seconds_per_flop.get(kind, self._latest)

    def learn(self, kind: str, flops: float, seconds: float) -> None:
        """Takes in how long a job took."""
        if flops <= 0:
            return
        seen = seconds / flops
        before = self._seconds_per_flop.get(kind, seen)
        self._latest = self._seconds_per_flop[kind] = before + _SMOOTHING * (seen - before)
