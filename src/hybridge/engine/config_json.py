"""Read a model's ``config.json``, which a stranger may have written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..errors import ModelUnavailable
from ..models.spec import check_config

#: Configurations of VAEs have about 1 KiB.
_MOST_CONFIG_BYTES = 2**20


def read_config(name: str, folder: Path) -> dict[str, Any]:
    """Return a folder's ``config.json``.

    Raises:
        ModelUnavailable: when it cannot be read, is no JSON object, or has an impossible value.
    """
    path = folder / "config.json"
    try:
        nbytes = path.stat().st_size
        if nbytes > _MOST_CONFIG_BYTES:
            raise ModelUnavailable(
                f"the config.json of {name} cannot be right",
                saw=f"{nbytes} bytes",
                expected=f"at most {_MOST_CONFIG_BYTES}",
                where=path,
            )
        text = path.read_text(encoding="utf-8-sig")
        config = json.loads(text, parse_constant=_refuse_number, parse_float=_finite)
    except OSError as error:
        raise ModelUnavailable(
            f"the config.json of {name} cannot be read", saw=error.strerror, where=path
        ) from None
    except (ValueError, RecursionError) as error:
        raise ModelUnavailable(f"the config.json of {name} is not JSON", saw=error, where=path) from None
    if not isinstance(config, dict):
        raise ModelUnavailable(f"the config.json of {name} holds no object", saw=type(config).__name__, where=path)
    check_config(name, config, path)
    return config


def _refuse_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is beyond what a float holds")
    return number
