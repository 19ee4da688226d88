"""Variables ``HYBRIDGE_…`` that no setting reads: mistakes, those of other commands, and those of Kubernetes."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable

from ..errors import HybridgeError

#: Beginning of all variables of hybridge.
PREFIX = "HYBRIDGE_"

#: Variables that are read by other commands than serve.
_OTHER_VARIABLES = frozenset({"HYBRIDGE_KEY", "HYBRIDGE_CA", "HYBRIDGE_PROFILES"})

#: Variables that must not be empty: a server without keys or a certificate has to be meant.
_NEVER_EMPTY = frozenset({"HYBRIDGE_KEYS", "HYBRIDGE_TLS_CERT", "HYBRIDGE_TLS_KEY"})

#: Beginning of the client's variables for servers that are called by a name.
_PROFILE_VARIABLES = "HYBRIDGE_PROFILE_"

#: What Kubernetes writes for each port of a service, as Docker's links did: tcp://10.0.0.1:8000, or with [::1].
KUBERNETES_PORT = re.compile(r"(?:tcp|udp|sctp)://\S+:\d+")

#: The names of its variables, and what each holds.
_KUBERNETES = (
    (re.compile(r"\w+_SERVICE_HOST|\w+_PORT_\d+_(?:TCP|UDP|SCTP)_ADDR"), re.compile(r"[\w.:]+")),
    (re.compile(r"\w+_SERVICE_PORT(?:_\w+)?|\w+_PORT_\d+_(?:TCP|UDP|SCTP)_PORT"), re.compile(r"\d+")),
    (re.compile(r"\w+_PORT_\d+_(?:TCP|UDP|SCTP)_PROTO"), re.compile(r"tcp|udp|sctp")),
    (re.compile(r"\w+_PORT(?:_\d+_(?:TCP|UDP|SCTP))?"), KUBERNETES_PORT),
)


def refuse_unknown(settings: Iterable[str]) -> None:
    """Raise HybridgeError for a ``HYBRIDGE_…`` variable that no setting reads, and name the nearest that one does.

    Upper and lower case are the same, as for the settings.  Variables that must not be empty are refused if they
    are; those that Kubernetes makes for services called ``hybridge`` and ``hybridge-…`` are left alone.
    """
    known = {PREFIX + name.upper() for name in settings} | _OTHER_VARIABLES
    for written in sorted(os.environ):
        name, value = written.upper(), os.environ[written]
        if name.startswith(_PROFILE_VARIABLES):
            continue
        if name in _NEVER_EMPTY and not value.strip():
            raise HybridgeError(f"{written} is empty", expected="a file, or no such variable at all")
        if name.startswith(PREFIX) and name not in known and not _is_kubernetes(name, value):
            near = difflib.get_close_matches(name, known, n=1)
            raise HybridgeError(
                f"unknown variable {written}", expected=", ".join(sorted(known)), hint=near[0] if near else None
            )


def _is_kubernetes(name: str, value: str) -> bool:
    return any(names.fullmatch(name) and values.fullmatch(value) for names, values in _KUBERNETES)
