"""Predicts the time of a job from its FLOPs, learned from the jobs that were run."""

from __future__ import annotations

#: What is assumed to have been measured before anything was: a second of a few cores of a CPU, in FLOPs.
_FIRST_GUESS_S, _FIRST_GUESS_FLOPS = 1.0, 1e11

#: The weight of earlier jobs after each further job.
_MEMORY = 0.8


class CostModel:
    """Seconds per FLOP for every kind of work that was measured: small VAEs use a device worse than large ones.

    Other kinds are assumed to be as fast as all measured ones together, and the first guess.  By their FLOPs, small
    jobs count for little in that: the pace of a short prompt would make minutes of a picture."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, float]] = {}  # seconds and FLOPs

    def knows(self, kind: str) -> bool:
        """Whether a job of this kind was measured; else :meth:`seconds` guesses."""
        return kind in self._seen

    def seconds(self, kind: str, flops: float) -> float:
        """Return how long a job is expected to take, in seconds.

        Args:
            kind: The kind of work, such as the model's name and the task.
            flops: Number of multiplications and additions.
        """
        spent_s, done = self._seen.get(kind) or self._together()
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

    def _together(self) -> tuple[float, float]:
        """Seconds and FLOPs of all kinds, and of the first guess."""
        spent_s, done = zip(*self._seen.values(), strict=True) if self._seen else ((), ())
        return _FIRST_GUESS_S + sum(spent_s), _FIRST_GUESS_FLOPS + sum(done)
