"""Run a call in a short-lived thread, so that its OpenMP threads do not outlive it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Given = TypeVar("Given")


def run_in_own_thread(call: Callable[[], Given]) -> Given:
    """Return the result of ``call``, which runs in a thread that ends with it.

    Every thread that computes has an OpenMP team, which lives as long as the thread.  When the teams together have
    more threads than there are processors, GNU's OpenMP lets them sleep immediately instead of spinning briefly for
    more work, and the next computation has to wake them at every operator.  So a thread that computes once, and
    then leaves the device to another thread, uses this function.

    The thread is a daemon: the process can end while ``call`` hangs, for example in a network read.
    """
    given: Future[Given] = Future()

    def run() -> None:
        try:
            given.set_result(call())
        except BaseException as error:
            given.set_exception(error)

    thread = threading.Thread(target=run, name="hybridge-apart", daemon=True)
    thread.start()
    thread.join()
    return given.result()
