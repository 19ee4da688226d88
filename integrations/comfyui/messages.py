"""Failures in one sentence.

ComfyUI writes the text of an error into its history, its log and the page, and people paste it into issues.  So no
text here has an address or a key: the name of the profile stands for both.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from hybridge.errors import HybridgeError

_UNKNOWN_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\",;]+", re.IGNORECASE)


class NodeError(RuntimeError):
    """A failure for users: what was seen, and what to try."""


def told(error: HybridgeError, profile: str, addresses: str) -> NodeError:
    """Return the failure of a call as a sentence that names the profile and not the server.

    Args:
        error: The client's error.
        profile: Name of the profile.
        addresses: The addresses of its servers, without secrets, separated by commas.
    """
    return NodeError(without_addresses(str(error), profile, addresses))


def without_addresses(text: str, profile: str, addresses: str) -> str:
    """Return a text with the profile's name in the place of each address, of its servers and of others."""
    name = f"the server {profile!r}"
    for address in filter(None, addresses.split(", ")):
        parts = urlsplit(address)
        text = text.replace(address, name)
        for secret in (parts.netloc, parts.hostname):
            if secret:
                text = re.sub(rf"(?<![\w.-]){re.escape(secret)}(?![\w-]|\.\w)", name, text)
    return _UNKNOWN_ADDRESS.sub("(an address)", text)
