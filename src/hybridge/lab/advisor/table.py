"""The adviser's answers for usual cards, as a table for the documents."""

from __future__ import annotations

from ...units import format_bytes
from ..estimator.types import Setup
from .advice import advise, picture, title
from .network import Link

#: Cards, in GB that torch may have.
CARDS_GB = (4, 6, 8, 12, 24)

#: (card, host) in GB, for a pipeline that is larger than both.
MACHINES_GB = ((16, 64), (12, 64), (12, 16), (8, 16), (6, 64), (6, 32))

#: A server on the same gigabit network, as fast as the card at decoding, with the pipeline's own weights.
NEAR = Link("http://gpu-box:8000", "sdxl-original", 0.002, 117e6, 0.21 / 2**20, 2, own_weights=True)

#: The same at the end of a 20 Mbit/s line.
FAR = Link("http://gpu-box:8000", "sdxl-original", 0.03, 2.5e6, 0.21 / 2**20, 2, own_weights=True)

LINKS = {"no server": None, "a server at 1 Gbit/s": NEAR, "a server at 20 Mbit/s": FAR}


def markdown() -> str:
    """For every card and every link the choice: what it needs, how long it takes, and which picture it makes."""
    rows = ["| card | server | choice | needs | a picture | which is | next |", "|---|---|---|---|---|---|---|"]
    for card in CARDS_GB:
        for name, link in LINKS.items():
            made = advise(Setup("sdxl"), card * 10**9, link=link)
            choice, second = made.choice, made.runner_up
            rows.append(
                f"| {card} GB | {name} | {title(choice)} | {format_bytes(choice.needs_bytes, decimal=True)} |"
                f" {choice.seconds:.1f} s | {picture(choice)} |"
                f" {f'{title(second)}, {second.seconds:.1f} s' if second else 'nothing'} |"
            )
    return "\n".join(rows) + "\n"


def large_markdown() -> str:
    """The choices for FLUX.1 dev without a server, for cards and hosts."""
    rows = ["| card | host | choice | needs | of the host | a picture |", "|---|---|---|---|---|---|"]
    for card, host in MACHINES_GB:
        choice = advise(Setup("flux-dev"), card * 10**9, ram_bytes=host * 10**9).choice
        rows.append(
            f"| {card} GB | {host} GB | {title(choice)} | {format_bytes(choice.needs_bytes, decimal=True)} |"
            f" {format_bytes(choice.estimate.host_bytes, decimal=True)} | {choice.seconds:.1f} s |"
        )
    return "\n".join(rows) + "\n"
