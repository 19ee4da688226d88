"""Set how long OpenMP's threads spin before they sleep, for processes that the command line starts."""

from __future__ import annotations

import os

#: Spins of GNU's OpenMP at a barrier before the thread sleeps.  Measured by benchmarks/beside_others.py.
_SPINS = "1000"


def spin_briefly() -> None:
    """Make waiting OpenMP threads release the processor soon for other programs.

    torch's threads wait for each other after every operator.  By default, GNU's OpenMP spins there for
    milliseconds. When other programs also need the processors, a spinning thread takes time from the thread that it
    waits for, and a decode takes many times as long.

    OpenMP reads the variable when torch is loaded, so this must be called before.  OpenMP variables that the user
    has set are kept.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
