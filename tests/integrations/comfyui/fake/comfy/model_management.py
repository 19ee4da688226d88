"""Interruption, as ComfyUI has it: the flag is cleared when it is found."""

from __future__ import annotations

_state = {"interrupted": False}


class InterruptProcessingException(Exception):
    """Ends a prompt."""


def interrupt_current_processing(value: bool = True) -> None:
    _state["interrupted"] = value


def processing_interrupted() -> bool:
    return _state["interrupted"]


def throw_exception_if_processing_interrupted() -> None:
    if _state["interrupted"]:
        _state["interrupted"] = False
        raise InterruptProcessingException
