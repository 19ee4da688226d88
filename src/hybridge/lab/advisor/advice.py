"""Which option to take: arithmetic over what :mod:`.options` weighed, with the reason in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

from ...errors import RequestError, TooLarge
from ...units import format_bytes
from ..estimator.shapes import shape_named
from ..estimator.types import Correction, Setup
from ..harness.environment import version
from ..harness.templates import render
from .network import Link
from .options import BITSANDBYTES, CLOSENESS, GUIDE_FLOPS_PER_S, MARGIN, PCIE_BYTES_PER_S, Option, options
from .snippet import lines

#: ``best``: the nearest to the pipeline's own picture that fits, whatever it takes.  ``good``: the fastest, but
#: another picture only where it is much faster.  ``fast``: the fastest, in fewer steps.
Quality = Literal["best", "good", "fast"]

#: Under ``good``, another picture must be so much faster than the pipeline's own.
_WORTH_ANOTHER_PICTURE = 1.5

#: Options this near to each other are equally fast, as far as an estimate can tell.  What is nearer to the
#: pipeline's own picture then wins, and after that what takes less memory.
_AS_FAST = 1.02

#: Steps that ``fast`` makes, where a pipeline makes more.
_FEW_STEPS = 30

#: Cards are sold in powers of 1000.
_size = partial(format_bytes, decimal=True)

#: A server whose numbers are nobody's: for saying what one would make possible.
_ANY_LINK = Link("a server", "", 0.0, 1e9, 0.0, 2, own_weights=True)


@dataclass(frozen=True, slots=True)
class Advice:
    """The answer.

    Attributes:
        runner_up: What else decodes in another way, or None.
        weighed: The best option of every decoder, those that do not fit among them.
        ram_bytes: What there is of the host's memory, or None where nothing bounds it.
        reason: Why, in sentences with numbers.
        assumed: What was not measured.
    """

    choice: Option
    runner_up: Option | None
    weighed: tuple[Option, ...]
    vram_bytes: int
    ram_bytes: int | None
    reason: str
    assumed: tuple[str, ...]
    code: str

    def fits(self, option: Option) -> bool:
        """Whether an option fits the card and the host."""
        return option.needs_bytes <= self.vram_bytes and _fits_host(option, self.ram_bytes)


def advise(
    setup: Setup,
    vram_bytes: int,
    *,
    ram_bytes: int | None = None,
    quality: Quality = "good",
    link: Link | None = None,
    correction: Correction | None = None,
    path: str | None = None,
    vae_path: str | None = None,
    device: str = "cuda",
) -> Advice:
    """What to switch on.

    Args:
        setup: Pipeline, size, batch and steps; its stack is left alone and added to.
        vram_bytes: What torch may have.
        ram_bytes: What weights may have of the host's memory; None for no bound.
        link: To a server, measured; see :func:`.network.measure`.
        path: Of the pipeline, for the code.
        vae_path: Of another VAE, for the code.
        device: For the code; what needs CUDA is not offered elsewhere.

    Raises:
        RequestError: for names that are none.
        TooLarge: when nothing fits the card or the host; names the smallest that would, and what a server would
            make possible.
    """
    shape = shape_named(setup.pipeline)
    if quality not in get_args(Quality):
        raise RequestError("unknown quality", saw=repr(quality), expected=", ".join(get_args(Quality)))
    if quality == "fast" and setup.steps is None and shape.steps > _FEW_STEPS:
        setup = replace(setup, stack=(*setup.stack, "steps-30"))
    every = list(options(setup, vram_bytes, link=link, correction=correction, device=device))
    on_card = [option for option in every if option.needs_bytes <= vram_bytes]
    if not on_card:
        in_host = [option for option in every if _fits_host(option, ram_bytes)]
        raise _nothing_fits(setup, vram_bytes, in_host or every, link, correction, device)
    fitting = [option for option in on_card if _fits_host(option, ram_bytes)]
    if not fitting and ram_bytes is not None:
        raise _host_too_small(setup, ram_bytes, on_card)
    ranked = _ranked(fitting, quality)
    choice = ranked[0]
    runner_up = next((option for option in ranked if option.decoder != choice.decoder), None)
    best = _best(on_card, quality)
    written = partial(
        render,
        str(__package__),
        filters={"size": _size, "named": title, "picture": picture},
        shape=shape,
        link=link,
        choice=choice,
        runner_up=runner_up,
        left_out=None if _fits_host(best, ram_bytes) else best,
        not_installed=not BITSANDBYTES.isdisjoint(choice.stack) and version("bitsandbytes") is None,
        vram_bytes=vram_bytes,
        ram_bytes=ram_bytes,
        margin=MARGIN,
        guide_flops_per_s=None if correction and correction.flops_per_s else GUIDE_FLOPS_PER_S,
        pcie_bytes_per_s=PCIE_BYTES_PER_S,
    )
    return Advice(
        choice=choice,
        runner_up=runner_up,
        weighed=_one_each(ranked, every),
        vram_bytes=vram_bytes,
        ram_bytes=ram_bytes,
        reason=" ".join(written("reason.txt.jinja").splitlines()),
        assumed=tuple(written("assumed.txt.jinja").splitlines()),
        code=lines(choice.estimate.setup, link=link, path=path, vae_path=vae_path, device=device),
    )


def _ranked(fitting: Sequence[Option], quality: Quality) -> list[Option]:
    """From the best to the worst."""
    left, ranked = list(fitting), []
    while left:
        best = _best(left, quality)
        ranked.append(best)
        left.remove(best)
    return ranked


def _best(among: Sequence[Option], quality: Quality) -> Option:
    if quality == "best":
        nearest = min(map(_distance, among))
        among = [option for option in among if _distance(option) == nearest]

    def weight(option: Option) -> float:
        return option.seconds * (_WORTH_ANOTHER_PICTURE**option.departures if quality == "good" else 1.0)

    fastest = min(map(weight, among))
    as_fast = [option for option in among if weight(option) <= _AS_FAST * fastest]
    if quality == "fast":
        return min(as_fast, key=lambda option: (option.narrowed, option.seconds, option.needs_bytes))
    return min(
        as_fast,
        key=lambda option: (
            option.narrowed,
            CLOSENESS.index(option.closeness),
            option.needs_bytes,
            option.later_bytes,
            option.seconds,
        ),
    )


def _fits_host(option: Option, ram_bytes: int | None) -> bool:
    return ram_bytes is None or option.estimate.host_bytes <= ram_bytes


def _distance(option: Option) -> tuple[int, int]:
    """From the pipeline's own picture; what is the same up to rounding is the same to whoever looks at it."""
    return option.narrowed, max(CLOSENESS.index("rounding"), CLOSENESS.index(option.closeness))


def _one_each(ranked: Sequence[Option], every: Sequence[Option]) -> tuple[Option, ...]:
    """The first of every decoder in the ranking; of those that never fit the smallest."""
    first: dict[str, Option] = {}
    for option in [*ranked, *sorted(every, key=lambda option: option.needs_bytes)]:
        first.setdefault(option.decoder, option)
    return tuple(first.values())


def _nothing_fits(
    setup: Setup,
    vram_bytes: int,
    every: Sequence[Option],
    link: Link | None,
    correction: Correction | None,
    device: str,
) -> TooLarge:
    least = min(option.needs_bytes for option in every)
    hint = f"--vram {_size(least, up=True).replace(' ', '')}, a smaller picture, or fewer at a time"
    if link is None:
        remote = min(
            option.needs_bytes
            for option in options(setup, vram_bytes, link=_ANY_LINK, correction=correction, device=device)
            if option.decoder == "remote"
        )
        if remote < least:
            hint += f"; with a server that decodes (--server), {_size(remote, up=True)} would do"
        else:
            hint += "; a server that decodes would not help: denoising alone takes as much"
    return TooLarge(
        f"nothing fits {setup.pipeline} into this memory",
        saw=_size(vram_bytes),
        expected=f"at least {_size(least, up=True)}",
        hint=hint,
        least_bytes=least,
    )


def _host_too_small(setup: Setup, ram_bytes: int, on_card: Sequence[Option]) -> TooLarge:
    least = min(option.estimate.host_bytes for option in on_card)
    return TooLarge(
        f"what fits {setup.pipeline} into the card does not fit the host's memory",
        saw=f"{_size(ram_bytes)} of the host's memory",
        expected=f"at least {_size(least, up=True)}, for weights that pass through it or wait there",
        hint="a card with more memory (--vram), or --ram if more is free than was seen",
    )


def title(option: Option) -> str:
    """``the exact decoder with 640 MiB, one part at a time``"""
    return render(str(__package__), "title.txt.jinja", {"binary_size": format_bytes}, option=option)


def picture(option: Option) -> str:
    """What picture an option makes, for people."""
    return _PICTURES["approximate" if option.departures else option.closeness]


_PICTURES = {
    "own": "the pipeline's own",
    "rounding": "the pipeline's own up to rounding",
    "twin": "that of other weights, made to be the same",
    "approximate": "another one",
}
