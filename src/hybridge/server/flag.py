"""What a setting is on the command line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Flag:
    """What a setting is on the command line, where that does not follow from its name, type and default.

    Attributes:
        name: The flag; from the setting's name if None.
        heading: The part of the help in which it stands.
        default: What happens without the flag; the setting's default if None.
        is_positional: Whether it is an argument without a flag.
        is_text: Whether its value is text that this class reads.
    """

    name: str | None = None
    heading: str | None = None
    default: str | None = None
    is_positional: bool = False
    is_text: bool = False
