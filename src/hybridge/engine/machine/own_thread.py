"""Threads of one process share its processor, and its OpenMP."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Given = TypeVar("Given")


def run_in_own_thread(call: Callable[[], Given]) -> Given:
    """What ``call`` gives, called in a thread that ends with it.

    Every thread that computes has an OpenMP team, which lives as long as the thread does.  When teams together are
    larger than the processor, GNU's OpenMP lets their members sleep at once instead of waiting a moment for more
    work, and whoever computes next pays for waking them, operator by operator.  So whoever computes once, and then
    leaves the device to another thread, does it here.

    The thread is a daemon: the process can end while ``call`` hangs, in a read from a network say.
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
