"""How fast the device is: from the arithmetic of a job to seconds, learned from the jobs that it did."""

from __future__ import annotations

#: Multiplications and additions per second before anything was measured: a few cores of a CPU.
_FIRST_GUESS = 1e11

#: How much of what was seen before still counts after another job.
_MEMORY = 0.8


class CostModel:
    """Seconds per unit of arithmetic, for every kind of work that was seen: a tiny VAE uses a device worse than a
    large one does.  Kinds that were not seen yet are taken to go as fast as the latest that was."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, float]] = {}  # seconds, and the arithmetic that they were spent on
        self._latest = 1 / _FIRST_GUESS

    def knows(self, kind: str) -> bool:
        """Whether a job of this kind was measured; else :meth:`seconds` guesses."""
        return kind in self._seen

    def seconds(self, kind: str, flops: float) -> float:
        """How long a job is expected to take.

        Args:
            kind: Of the work, such as the model's name and the task.
            flops: Multiplications and additions.
        """
        spent_s, done = self._seen.get(kind, (self._latest, 1.0))
        return flops * spent_s / done

    def learn(self, kind: str, flops: float, seconds: float) -> None:
        """Takes in how long a job took.

        A job counts by its arithmetic: a small one, which spends most of its time on other things, says little of
        how long a large one takes.
        """
        if flops <= 0:
            return
        spent_s, done = self._seen.get(kind, (0.0, 0.0))
        spent_s, done = _MEMORY * spent_s + seconds, _MEMORY * done + flops
        self._seen[kind] = spent_s, done
        self._latest = spent_s / done
