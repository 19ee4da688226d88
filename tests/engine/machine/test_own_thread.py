"""A thread that ends with its call."""

from __future__ import annotations

import threading

import pytest

from hybridge.engine.machine.own_thread import run_in_own_thread


def test_a_call_apart_runs_in_a_thread_that_has_ended_by_then() -> None:
    thread = run_in_own_thread(threading.current_thread)
    assert thread is not threading.current_thread()
    assert not thread.is_alive()


def test_a_call_apart_raises_what_it_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        run_in_own_thread(lambda: 1 // 0)
