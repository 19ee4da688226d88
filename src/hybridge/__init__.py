"""hybridge: hybrid inference that people host themselves.

Importing this package loads neither torch nor an HTTP library; the public names are resolved when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .client import AsyncClient, Client, remote_decode, remote_encode
    from .client.pipelines import connect
    from .client.remote_text import RemoteTextEncoder
    from .client.remote_vae import RemoteVAE
    from .engine.exact import exact
    from .lab.advisor.optimize import optimize
    from .protocol import VideoOptions

_HOME = {
    "AsyncClient": "client",
    "Client": "client",
    "RemoteTextEncoder": "client.remote_text",
    "RemoteVAE": "client.remote_vae",
    "VideoOptions": "protocol",
    "connect": "client.pipelines",
    "exact": "engine.exact",
    "optimize": "lab.advisor.optimize",
    "remote_decode": "client",
    "remote_encode": "client",
}

#: What installs the libraries that a name needs.
_EXTRAS = {"RemoteVAE": "engine", "connect": "engine", "exact": "engine", "optimize": "lab"}

__all__ = [
    "AsyncClient",
    "Client",
    "RemoteTextEncoder",
    "RemoteVAE",
    "VideoOptions",
    "__version__",
    "connect",
    "exact",
    "optimize",
    "remote_decode",
    "remote_encode",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    except ModuleNotFoundError as missing:
        extra = _EXTRAS.get(name)
        if extra is None or (missing.name or "").startswith(__name__):
            raise
        sentence = f"hybridge.{name} needs {missing.name}, which is not installed: pip install 'hybridge[{extra}]'"
        raise ModuleNotFoundError(sentence, name=missing.name) from None


def __dir__() -> list[str]:
    return sorted(__all__)
