"""Invitations: lines of the key file with a token that is good for one new key, for ten minutes.

Whoever can write the file could add a key to it anyway, so making an invitation needs no other right, and no
connection to the running server.
"""

from __future__ import annotations

import hmac
import itertools
import secrets
import time
from pathlib import Path

from ...errors import PairingRefused
from .key_file import Invitation, KeyRing, check_name, editing, hash_key

#: 128 bits: too many to guess in ten minutes.
_TOKEN_BYTES = 16

#: Seconds for which an invitation is good.
LIFETIME_S = 600

#: Seconds by which two processes may see the time differently.
_SLACK_S = 5

#: Most characters of a token that are hashed; ours have 22.
_LONGEST_TOKEN = 64

#: Most characters of a new key's name without its number.
_LONGEST_NAME = 58


def invite(path: Path) -> str:
    """Add an invitation to a key file, remove those that are over, and return its token, which is not stored.

    Raises:
        HybridgeError: when the file cannot be used.
    """
    with editing(path) as file:
        now = time.time()
        file.remove(_over(file.ring, now))
        name = f"invitation-{secrets.token_hex(4)}"
        token = file.add(name, f"until={int(now) + LIFETIME_S}", key_bytes=_TOKEN_BYTES)
        file.write()
    return token


def redeem(path: Path, token: str, wanted: str) -> tuple[str, str]:
    """Replace an invitation by a new key; return the key's name and the key.

    Args:
        path: The file.
        token: The invitation's token.
        wanted: The name for the key; if there is one of this name, a number is appended.

    Raises:
        PairingRefused: when there is no such invitation, it was used, or it is over.
        RequestError: for a name that cannot be one.
        HybridgeError: when the file cannot be used.
    """
    check_name(wanted)
    with editing(path) as file:
        now = time.time()
        found = _matching(file.ring, token, now)
        if found is None:
            raise PairingRefused(
                "this invitation is not known, was used, or is over",
                hint="`hybridge pair` on the server, for another",
            )
        file.remove({found, *_over(file.ring, now)})
        name = _free(file.ring, wanted)
        key = file.add(name)
        file.write()
    return name, key


def _matching(ring: KeyRing, token: str, now: float) -> str | None:
    if len(token) > _LONGEST_TOKEN:
        return None
    hashed, found = hash_key(token), None
    for name, invitation in ring.invitations.items():
        if hmac.compare_digest(hashed, invitation.hash) and _is_good(invitation, now):
            found = name
    return found


def _is_good(invitation: Invitation, now: float) -> bool:
    # One that is good for longer than any invitation was made before the clock was set back.
    return 0 < invitation.until - now <= LIFETIME_S + _SLACK_S


def _over(ring: KeyRing, now: float) -> set[str]:
    return {name for name, invitation in ring.invitations.items() if not _is_good(invitation, now)}


def _free(ring: KeyRing, wanted: str) -> str:
    """Return a name that no line has: nobody gets another's share of the server, or its jobs, by its name."""
    taken = {*ring.hashes, *ring.invitations}  # a file with two lines of one name cannot be read
    numbered = (f"{wanted[:_LONGEST_NAME]}-{number}" for number in itertools.count(2))
    return next(name for name in (wanted, *itertools.islice(numbered, len(taken) + 1)) if name not in taken)
