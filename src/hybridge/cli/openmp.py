"""How long OpenMP's threads spin before they sleep, for the processes that this command line starts."""

from __future__ import annotations

import os

#: Turns of GNU's OpenMP at a barrier before the thread sleeps.  Measured by benchmarks/beside_others.py.
_SPINS = "1000"


def spin_briefly() -> None:
    """Have threads that wait for each other leave the processor soon to whoever else needs it.

    torch's threads wait for each other after every operator.  GNU's OpenMP spins there for milliseconds by default.
    Where other programs want the processors too, the thread that spins takes time from the one that it waits for,
    and a decode takes many times as long.

    OpenMP reads the variable when torch is loaded, so this must come first.  A user who has set OpenMP's variables
    keeps them.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
