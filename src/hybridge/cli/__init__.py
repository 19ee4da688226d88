"""The command line: one file for each verb, which parses arguments, calls the library and prints.

Verbs import other packages inside their functions, so that ``hybridge --help`` does not load torch.
"""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Sequence


def main() -> None:
    """Run the command ``hybridge``."""
    try:
        from .application import application
        from .console import speak
    except ModuleNotFoundError as error:
        sys.exit(f"the command line needs {error.name}: pip install 'hybridge[cli]'")
    from ..errors import HybridgeError

    speak(sys.stdout, sys.stderr)
    # At exit Python collects garbage among all of torch's objects, some hundred thousand.  This takes seconds,
    # in which a server that has answered all requests could still be killed.
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
    """Return the name of the extra that installs a verb's libraries."""
    verb, more = (*arguments, "", "")[:2]
    if verb == "bench" and more == "serve":
        return "lab,server"
    return {
        "lab": "lab",
        "bench": "lab",
        "models": "cli,engine",
        "plan": "cli,engine",
        "doctor": "cli,engine",
        "verify": "cli,engine",
    }.get(verb, "server")
