"""What is asked and what comes out: the estimator's nouns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ...engine.planning.plan import Plan

PhaseName = Literal["encode prompt", "denoise", "refine", "decode"]

#: How a part is run.  ``fused``: as it comes.  ``matrix``: attention with the matrix of all pairs.  ``sliced``:
#: that matrix head by head.  ``tiled``: a decoder with its own tiling.
ConvAlgorithm = Literal["fused", "matrix", "sliced", "tiled"]


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one call.

    Attributes:
        peak_bytes: Most that is alive at one time, inputs and output included, weights not.
        flops: Two for every multiplication of matrices and convolutions, as torch counts them.
    """

    peak_bytes: int
    flops: int


@dataclass(frozen=True, slots=True)
class Weights:
    """Numbers of a part, by what holds them.

    Attributes:
        linear: In the weights of linear layers.
        convolution: In the kernels of convolutions.
        other: Biases, norms, embeddings.
        float32: Those among them that transformers keeps in float32 when float16 is asked for.
        fused: How many more there are once the projections of attention are fused: the old ones stay.
    """

    linear: int
    convolution: int
    other: int
    float32: int
    fused: int

    @property
    def numbers(self) -> int:
        """Of the whole part."""
        return self.linear + self.convolution + self.other


@dataclass(frozen=True, slots=True)
class Phase:
    """A stage of making a picture, and what it has on the device.

    Attributes:
        weights: (part, bytes) on the device.
        activations_bytes: Of tensors, at their peak.
        workspace_bytes: Allowed for libraries.
    """

    name: PhaseName
    weights: tuple[tuple[str, int], ...]
    activations_bytes: int
    workspace_bytes: int
    flops: int

    @property
    def weights_bytes(self) -> int:
        """Of all parts on the device."""
        return sum(nbytes for _, nbytes in self.weights)

    @property
    def counted_bytes(self) -> int:
        """Without the allowance."""
        return self.weights_bytes + self.activations_bytes

    @property
    def peak_bytes(self) -> int:
        """With it."""
        return self.counted_bytes + self.workspace_bytes


@dataclass(frozen=True, slots=True)
class Measured:
    """One configuration of a study that worked.

    Attributes:
        setup: With its size and steps, as :attr:`Estimate.setup` has them.
        peak_bytes: Of everything on the device; None where only a part was measured.
        seconds: Of a call, the median of all prompts and runs; None where there are none.
    """

    setup: Setup
    peak_bytes: int | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Correction:
    """What a study of the same pipeline says.

    Attributes:
        above_weights: Measured through estimated, of what the baseline took on top of its weights.
        has_workspace: Whether what libraries take was measured with it, so that no allowance is needed: it is where
            the device's allocator was asked, and is not where tensors were counted.
        flops_per_s: At which the baseline ran; None where no time was measured.
    """

    source: str
    above_weights: float
    has_workspace: bool
    flops_per_s: float | None
    measured: tuple[Measured, ...]

    def applied(self, phase: Phase) -> Phase:
        """The phase as this device would have it."""
        return replace(
            phase,
            activations_bytes=round(phase.activations_bytes * self.above_weights),
            workspace_bytes=0 if self.has_workspace else phase.workspace_bytes,
        )

    def of(self, setup: Setup) -> Measured | None:
        """What was measured of these techniques, in whatever order, with this size, batch, steps and budget."""
        return next((one for one in self.measured if _key(one.setup) == _key(setup)), None)


def _key(setup: Setup) -> tuple[object, ...]:
    size = (setup.height, setup.width, setup.batch)
    return (sorted(setup.stack), *size, setup.steps, setup.decode_budget_bytes)


@dataclass(frozen=True, slots=True)
class Setup:
    """What is estimated.

    Attributes:
        pipeline: A name of :data:`.shapes.PIPELINES`.
        height, width: Of the picture in pixels; 0 for what the pipeline was trained for.
        batch: Pictures at once.
        steps: Of denoising, or None for what the stack or the pipeline has.
        refiner: Whether SDXL's refiner finishes the picture.
        shares_refiner: Whether the refiner's pipeline uses the base's text encoder and VAE.
        decode_budget_bytes: What ``exact-vae`` may take on top of the weights; None for no bound.
    """

    pipeline: str
    stack: tuple[str, ...] = ()
    height: int = 0
    width: int = 0
    batch: int = 1
    steps: int | None = None
    refiner: bool = False
    shares_refiner: bool = True
    decode_budget_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What comes out.

    Attributes:
        setup: What was asked, sizes and steps filled in.
        files: (part, bytes) to fetch and keep on a disk.
        moved_bytes: Weights that go to the device for every picture.
        host_bytes: Of the host's memory that weights take, while they are loaded or while they wait there.
        is_lower_bound: Whether weights come layer by layer, so that only activations are counted.
        left_out: What is not in the numbers, sentence by sentence.
        correction: What was measured and put in, or None.
        plan: Of the exact decoder, where that decodes.
    """

    setup: Setup
    phases: tuple[Phase, ...]
    files: tuple[tuple[str, int], ...]
    moved_bytes: int
    host_bytes: int
    is_lower_bound: bool
    left_out: tuple[str, ...]
    correction: Correction | None = None
    plan: Plan | None = None

    @property
    def largest(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.peak_bytes)

    @property
    def peak_bytes(self) -> int:
        """What the device must have for torch."""
        return self.largest.peak_bytes

    @property
    def counted_bytes(self) -> int:
        """Most that is counted, without the allowance for libraries."""
        return max(phase.counted_bytes for phase in self.phases)

    @property
    def flops(self) -> int:
        """Of a whole call."""
        return sum(phase.flops for phase in self.phases)


def parse_stack(text: str) -> tuple[str, ...]:
    """``fp16+tiny-vae`` → its names; an empty text or ``baseline`` is the pipeline as it comes, in float32."""
    names = tuple(name.strip() for name in text.split("+"))
    return () if names in (("",), ("baseline",)) else names
