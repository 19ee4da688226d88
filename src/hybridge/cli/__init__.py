"""THE TERMINAL: one file per verb, which parses, calls and prints.

Verbs import the rooms inside their functions, so that ``hybridge --help`` loads no torch.
"""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Sequence


def main() -> None:
    """The command ``hybridge``."""
    try:
        from .application import application
        from .console import speak
    except ModuleNotFoundError as error:
        sys.exit(f"the command line needs {error.name}: pip install 'hybridge[cli]'")
    from ..errors import HybridgeError

    speak(sys.stdout, sys.stderr)
    # At its end Python looks for garbage among all that torch has made, some hundred thousand objects.  That takes
    # seconds, in which a server that has answered everybody could still be killed.
    atexit.register(gc.freeze)
    try:
        application()
    except HybridgeError as error:
        sys.exit(f"hybridge: {error}")
    except OSError as error:
        sys.exit(f"hybridge: {error}")
    except ModuleNotFoundError as error:
        extra = _extra(sys.argv[1:])
        sys.exit(f"hybridge: this needs {error.name}, which is not installed. Try: pip install 'hybridge[{extra}]'")


def _extra(arguments: Sequence[str]) -> str:
    """What installs the libraries of a verb."""
    verb, more = (*arguments, "", "")[:2]
    if verb == "bench" and more == "serve":
        return "lab,server"
    return {"lab": "lab", "bench": "lab", "models": "cli,engine", "plan": "cli,engine"}.get(verb, "server")
