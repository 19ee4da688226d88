"""THE TERMINAL: one file per verb, which parses, calls and prints.

Verbs import the rooms inside their functions, so that ``hybridge --help`` loads no torch.
"""

from __future__ import annotations

import sys


def main() -> None:
    """The command ``hybridge``."""
    try:
        from .application import application
        from .screen import speak
    except ModuleNotFoundError as error:
        sys.exit(f"the command line needs {error.name}: pip install 'hybridge[cli]'")
    from ..errors import HybridgeError

    speak(sys.stdout, sys.stderr)
    try:
        application()
    except HybridgeError as error:
        sys.exit(f"hybridge: {error}")
    except OSError as error:
        sys.exit(f"hybridge: {error}")
    except ModuleNotFoundError as error:
        sys.exit(f"hybridge: this needs {error.name}. Try: pip install 'hybridge[server]'")
