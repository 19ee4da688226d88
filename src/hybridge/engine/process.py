"""Threads of one process share its processor, and its OpenMP."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")


def apart(call: Callable[[], Given]) -> Given:
    """What ``call`` gives, called in a thread that ends with it.

    Every thread that computes has an OpenMP team, which lives as long as the thread does.  When teams together are
    larger than the processor, GNU's OpenMP lets their members sleep at once instead of waiting a moment for more
    work, and whoever computes next pays for waking them, operator by operator.  So whoever computes once, and then
    leaves the device to another thread, does it here.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="hybridge-apart") as thread:
        return thread.submit(call).result()
