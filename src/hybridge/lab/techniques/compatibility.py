"""Which techniques do not go together, which do in one order, and which do because a row sees to it.

Facts, not code: what was seen when both were put on one pipeline, or what the library says of itself.  Names only,
so that a row can be named here that another machine cannot run.  :mod:`.stack` asks this table before it touches
anything.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

#: What becomes of a pair.  *never together*: refused.  *first before second*: refused the other way round.
#: *cured*: it would break, and one of the two rows prevents it.
Rule = Literal["never together", "first before second", "cured"]


@dataclass(frozen=True, slots=True)
class Clash:
    """Each of the first names with each of the second.

    Attributes:
        first: Names of rows.
        second: Names of rows.
        rule: See :data:`Rule`.
        reason: What would go wrong, as a sentence without its full stop.
        remedy: What works in its place, or what the cure is; empty where the order is all.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    rule: Rule
    reason: str
    remedy: str = ""

    def pairs(self) -> Iterator[tuple[str, str]]:
        """All of them, as (first, second)."""
        return itertools.product(self.first, self.second)


@dataclass(frozen=True, slots=True)
class OneOf:
    """Techniques in each other's place: a stack has one of them.

    Attributes:
        place: What they are for, with its article: ``a decoder``.
        names: Of rows.
        reason: Why not two, as a sentence without its full stop.
    """

    place: str
    names: tuple[str, ...]
    reason: str


_DECODERS = ("vae-fp16-fix", "tiny-vae", "exact-vae", "remote-vae")
_REFINERS = ("refiner-ensemble-80", "refiner-ensemble-90", "refiner-img2img-10", "refiner-img2img-20")
_CUTOFFS = ("cfg-cutoff-50", "cfg-cutoff-75")
_ATTENTION = ("attention-vanilla", "attention-sdpa", "attention-slicing", "xformers")
#: Caches that are hooks on the blocks or the attention inside of them.
_HOOKED_CACHES = (
    "pab",
    "taylorseer",
    "taylorseer-defaults",
    "first-block-cache",
    "sea-cache",
    "mag-cache",
    "faster-cache",
    "para-attention",
    "cache-dit",
)
_CACHES = ("deepcache", *_HOOKED_CACHES)
_MERGED_TOKENS = ("tome", "tome-all")
#: Compilers that take the UNet as one graph.
_WHOLE = ("compile", "stable-fast", "onediff", "tensorrt")
_EXPORTED = ("openvino", "onnxruntime")
_TORCHAO = ("torchao-int8", "torchao-int8-dynamic", "torchao-fp8", "torchao-int4")
_QUANTISED = (
    *_TORCHAO,
    "bitsandbytes-int8",
    "bitsandbytes-nf4",
    "quanto-int8",
    "sdnq-int8",
    "torch-ao-dynamic",
)
#: Offloads whose hooks are inside of the blocks.
_BY_LAYER = ("sequential-offload", "disk-offload", "group-offload", "group-offload-disk")
_OFFLOADS = ("model-offload", *_BY_LAYER)

ONE_OF: tuple[OneOf, ...] = (
    OneOf("a half type", ("fp16", "bf16"), "weights have one type"),
    OneOf("an attention", _ATTENTION, "each sets the processors of every attention anew, and the last one wins"),
    OneOf("a decoder", _DECODERS, "each takes the place of the pipeline's VAE"),
    OneOf("a number of steps", ("steps-25", "steps-30"), "each sets the same argument of the call"),
    OneOf("an end of guidance", (*_CUTOFFS, "tgate"), "each halves the batch, which can be done once"),
    OneOf("a refiner", _REFINERS, "each hands the picture to the refiner in its own way"),
    OneOf("a cache", _CACHES, "each skips work that the other one counts on"),
    OneOf("a ToMe", _MERGED_TOKENS, "the second patch takes the first one's place"),
    OneOf("a compiler", (*_WHOLE, "compile-regional", *_EXPORTED), "each takes the UNet over"),
    OneOf(
        "a storage of weights",
        ("fp8-storage", *_QUANTISED),
        "the second would compress what the first has compressed",
    ),
    OneOf(
        "an offload",
        (*_OFFLOADS, "batch-processing"),
        "each decides where the weights are, and batch processing has one component in memory anyway",
    ),
)

CLASHES: tuple[Clash, ...] = (
    Clash(
        ("fp16", "bf16"),
        ("tf32",),
        "never together",
        "TF32 is a way to multiply float32, of which a half type leaves none",
        "the half type alone, which is faster",
    ),
    Clash(
        _DECODERS,
        ("vae-slicing",),
        "first before second",
        "slicing is set on the VAE that is there, and goes with it when it is replaced",
    ),
    Clash(
        ("vae-fp16-fix", "tiny-vae"),
        ("vae-tiling",),
        "first before second",
        "tiling is set on the VAE that is there, and goes with it when it is replaced",
    ),
    Clash(
        ("vae-tiling",),
        ("exact-vae", "remote-vae"),
        "never together",
        "neither has tiles: the exact VAE fits its memory in strips, and the server looks after its own",
        "exact-vae or remote-vae alone",
    ),
    Clash(
        ("fused-qkv",),
        ("tiny-vae", "exact-vae", "remote-vae"),
        "cured",
        "fusing the whole pipeline raises ValueError for a VAE that has no attention to fuse",
        "the row fuses the UNet alone (`vae=False`)",
    ),
    Clash(
        _ATTENTION,
        ("fused-qkv",),
        "never together",
        "fusing sets the processors of every attention anew, and the first choice is lost without a word",
        "fused-qkv alone, whose processor is SDPA as well",
    ),
    Clash(
        ("fused-qkv",),
        _TORCHAO,
        "first before second",
        "quantised weights cannot be concatenated (NotImplementedError)",
    ),
    Clash(
        ("fused-qkv",),
        ("sequential-offload", "disk-offload"),
        "first before second",
        "weights that wait elsewhere are on the meta device, and fusing those gives NaN without a word",
    ),
    Clash(
        ("deepcache",),
        _CUTOFFS,
        "cured",
        "the features that are kept have both halves of the batch, and the next step has one (RuntimeError)",
        "the step after the cut-off is computed in full",
    ),
    Clash(
        ("pab",),
        _CUTOFFS,
        "cured",
        "the attention that is kept has both halves of the batch, and the next step has one (RuntimeError)",
        "what is kept is dropped when guidance ends, and the next step computes it again",
    ),
    Clash(
        ("tgate",),
        _HOOKED_CACHES,
        "never together",
        "both put a forward of their own on the same attention modules, and T-GATE's way back removes both",
        "taylorseer with cfg-cutoff-50, which leaves out the same work",
    ),
    Clash(
        ("deepcache",),
        ("model-offload",),
        "first before second",
        "model offload hooks the UNet anew after every picture, and a cache that was set later is lost from the"
        " second one on",
    ),
    Clash(
        ("freeu",),
        ("compile", "stable-fast"),
        "first before second",
        "what is set after compiling compiles the whole UNet once more, or is not seen by the trace",
    ),
    Clash(
        _MERGED_TOKENS,
        ("stable-fast",),
        "first before second",
        "one trace serves all steps, and sees only what is there when it is made",
    ),
    Clash(
        (*_CACHES, "tgate"),
        ("compile",),
        "never together",
        "a graph of the whole UNet is compiled anew for every kind of step, up to the limit",
        "deepcache with compile-regional",
    ),
    Clash(
        (*_CACHES, "tgate"),
        ("stable-fast", "onediff", "tensorrt"),
        "never together",
        "one graph serves all steps, so the cache is lost without a word, in either order",
        "deepcache with compile-regional",
    ),
    Clash(
        (*_HOOKED_CACHES, "tgate"),
        ("compile-regional",),
        "never together",
        "what is kept is counted inside of the blocks that are compiled, which then compile anew up to the limit",
        "deepcache with compile-regional",
    ),
    Clash(
        _MERGED_TOKENS,
        ("compile-regional",),
        "never together",
        "ToMe renames the block that is looked for, and draws random numbers inside of it, which ends the graph",
        "deepcache with compile-regional",
    ),
    Clash(
        _CUTOFFS,
        ("tensorrt",),
        "never together",
        "its engine has one batch size, and the cut-off halves it",
        "compile, which compiles once more",
    ),
    Clash(
        _OFFLOADS,
        ("compile", "stable-fast", "onediff", "tensorrt"),
        "never together",
        "what moves weights in and out cannot be part of a graph of the whole UNet",
        "model-offload with compile-regional",
    ),
    Clash(
        _BY_LAYER,
        ("compile-regional",),
        "never together",
        "what moves a layer's weights in and out cannot be part of a block's graph",
        "model-offload with compile-regional",
    ),
    Clash(
        _TORCHAO,
        ("group-offload-disk",),
        "never together",
        "the files of offloaded groups cannot hold torchao's weights (ValueError)",
        "group-offload, which keeps them in memory",
    ),
    Clash(
        ("tgate", "batch-processing"),
        _REFINERS,
        "never together",
        "each makes the picture with calls of its own, which do not pass through the other's",
        "model-offload with the refiner for memory, deepcache for time",
    ),
    Clash(
        ("fused-qkv", *_QUANTISED, "stable-fast", "onediff", "tensorrt"),
        ("batch-processing",),
        "never together",
        "its weights go and come back as they are on the disk, which is not what these make of them",
        "model-offload",
    ),
    Clash(
        ("tgate",),
        ("batch-processing",),
        "never together",
        "each makes the picture with calls of its own, which do not pass through the other's",
        "model-offload with tgate",
    ),
    Clash(
        (*_CACHES, "tgate", *_MERGED_TOKENS, "fp8-storage", *_QUANTISED, *_OFFLOADS, "batch-processing"),
        _EXPORTED,
        "never together",
        "another engine stands in the UNet's place, and what is done to the UNet's modules is not seen",
        "compile-regional, which leaves the modules where they are; or the engine's own means",
    ),
)


def one_of(first: str, second: str) -> OneOf | None:
    """The place that both of these would take, if there is one."""
    return next((place for place in ONE_OF if first != second and {first, second} <= {*place.names}), None)


def between(first: str, second: str) -> Clash | None:
    """The row of this pair, whichever of the two it names first."""
    return next((c for c in CLASHES if (first, second) in c.pairs() or (second, first) in c.pairs()), None)


def must_precede(first: str, second: str) -> Clash | None:
    """The row that wants the first before the second, if there is one."""
    return next((c for c in CLASHES if c.rule == "first before second" and (first, second) in c.pairs()), None)
