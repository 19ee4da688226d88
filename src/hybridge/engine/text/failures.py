"""What pipelines and tokenizers raise and log, without the words of a prompt."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ...errors import EngineFailure, HybridgeError, Stopped
from ..memory.device_memory import map_torch_errors


@contextmanager
def failures_named(what: str, device: torch.device) -> Iterator[None]:
    """Turn what is raised in the block into errors of hybridge; other errors than torch's may quote the prompt.

    Args:
        what: What is done in the block, for the errors.
        device: Where it is done.
    """
    try:
        with map_torch_errors(what, device):
            yield
    except Stopped as stop:
        # The frames of the traceback hold the tensors of the run.
        raise stop.with_traceback(None) from None
    except HybridgeError:
        raise
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise EngineFailure(
            f"{what} failed", saw=f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}"
        ) from None


@contextmanager
def without_prompts_in_logs(pipeline: Any) -> Iterator[None]:
    """Keep a pipeline from logging what it cut off, which is a part of somebody's prompt."""
    logger = logging.getLogger(type(pipeline).__module__)
    logger.addFilter(_is_no_prompt)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_prompt)


def _is_no_prompt(record: logging.LogRecord) -> bool:
    return "truncated" not in record.getMessage()
