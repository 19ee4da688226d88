"""Predicts the time of a job from its FLOPs, learned from the jobs that were run."""

from __future__ import annotations

#: FLOP/s before anything was measured: a few cores of a CPU.
_FIRST_GUESS = 1e11

#: The weight of earlier jobs after each further job.
_MEMORY = 0.8


class CostModel:
    """Seconds per FLOP for every kind of work that was measured: small VAEs use a device worse than large ones.

    Other kinds are assumed to be as fast as the last one that was measured."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, float]] = {}  # seconds and FLOPs
        self._latest = 1 / _FIRST_GUESS

    def knows(self, kind: str) -> bool:
        """Whether a job of this kind was measured; else :meth:`seconds` guesses."""
        return kind in self._seen

    def seconds(self, kind: str, flops: float) -> float:
        """Return how long a job is expected to take, in seconds.

        Args:
            kind: The kind of work, such as the model's name and the task.
            flops: Number of multiplications and additions.
        """
        spent_s, done = self._seen.get(kind, (self._latest, 1.0))
        return flops * spent_s / done

    def learn(self, kind: str, flops: float, seconds: float) -> None:
        """Learn from the time that a job took.

        A job is weighted by its FLOPs: a small one, which spends most of its time on other things, says little
        about large ones.
        """
        if flops <= 0:
            return
        spent_s, done = self._seen.get(kind, (0.0, 0.0))
        spent_s, done = _MEMORY * spent_s + seconds, _MEMORY * done + flops
        self._seen[kind] = spent_s, done
        self._latest = spent_s / done
