"""How a program fits in memory: arithmetic on shapes, decided before any memory is taken.

A strip run walks the program op by op.  Of an op's target it makes a few rows at a time, in a *window* that holds
the normalised source rows those need, and writes them to the target's buffer.  A target takes over a buffer that it
may overwrite, where there is one:

* its residual's, when nothing reads the residual later: the rows added are the rows replaced
* its source's, when nothing reads the source later: the window keeps the rows that the next strip needs again,
  already normalised, so the source's own rows may go

With that no more than two activations exist at a time, whatever the number of layers.  Items of a batch do not
touch each other, so they run one after another, and a batch costs its input and its output more than one item.

Everything here is in bytes, counts what is on top of the weights, and includes input and output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ..errors import RequestError, TooLarge
from .ops import Attend, Convolve
from .program import Program

Mode = Literal["whole", "strips"]

#: Statistics are taken in float32, from a copy of the strip where that is narrower.
_STATISTICS_ITEMSIZE = 4

#: A strip on a device that needs none for speed: large enough to fill it, small beside an activation.
_STRIP_BYTES_WITHOUT_CACHE = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory for one activation, perhaps of several values in turn.

    Attributes:
        channels: Of what it holds.
        height: In rows.
        width: In columns.
        nbytes: Of the whole.
        first_op: The op that writes it first; it is allocated then.
        last_op: The op after which it is freed.
    """

    channels: int
    height: int
    width: int
    nbytes: int
    first_op: int
    last_op: int


@dataclass(frozen=True, slots=True)
class Step:
    """How one op runs.

    Attributes:
        buffer: Index of the buffer that its target is written to; None for the last op, which writes the output.
        rows: Rows of the target made at a time.
        strips: How many times that.
        scratch_bytes: Taken while it runs and returned after it: window, strip and statistics.
        flops: For one item; see :meth:`.Program.flops`.
    """

    buffer: int | None
    rows: int
    strips: int
    scratch_bytes: int
    flops: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A decision, and why.

    Attributes:
        mode: ``whole`` is the module's own forward, ``strips`` the one described above.
        batch: Items.
        height: Of the input.
        width: Of the input.
        itemsize: Bytes of one number.
        steps: One for every op; empty in mode ``whole``.
        buffers: In the order of their allocation; empty in mode ``whole``.
        peak_bytes: Most that exists at one time on top of the weights, input and output included.  For ``whole`` it
            follows what diffusers' code keeps alive, and leaves out what a convolution takes inside itself.
        flops: Of the whole batch.
        reason: Why this mode and these strips, in a sentence with numbers.
    """

    mode: Mode
    batch: int
    height: int
    width: int
    itemsize: int
    steps: tuple[Step, ...]
    buffers: tuple[Buffer, ...]
    peak_bytes: int
    flops: int
    reason: str

    @property
    def strips(self) -> int:
        """Strips of the whole batch, which is what progress counts."""
        return self.batch * sum(step.strips for step in self.steps)


def plan(
    program: Program,
    *,
    batch: int,
    height: int,
    width: int,
    itemsize: int,
    cache_bytes: int | None,
    budget_bytes: int | None = None,
    modes: tuple[Mode, ...] = ("whole", "strips"),
) -> Plan:
    """The best way to run a program on an input (batch, C, height, width) within a budget.

    Args:
        program: What to run.
        batch: Items.
        height: Of the input: latents for a decoder, pixels for an encoder.
        width: The same.
        itemsize: Bytes of one number: 4 for float32, 2 for bfloat16 and float16.
        cache_bytes: What a strip should fit in, where strips are faster for being in cache, which is so on CPUs;
            None for devices where they are not, which then run whole as long as that fits.
        budget_bytes: What may be taken on top of the weights; None for no bound.
        modes: Those to choose from.

    Raises:
        RequestError: for a budget that is no budget, or a picture too small for the model.
        TooLarge: when nothing fits the budget; names the smallest that would.
    """
    _check(program, batch, height, width, budget_bytes)
    shape = _Shape(program, batch, height, width, itemsize)
    whole_peak = shape.whole_peak()
    budget = "no budget was set" if budget_bytes is None else f"the budget is {show_bytes(budget_bytes)}"
    plainly = f"the plain forward takes about {show_bytes(whole_peak)} and {budget}"
    if "strips" not in modes or cache_bytes is None:
        if budget_bytes is None or whole_peak <= budget_bytes:
            return shape.whole(whole_peak, plainly)
        if "strips" not in modes:
            raise _does_not_fit(program, batch, height, width, budget_bytes, whole_peak)

    for strip_bytes in _halvings(cache_bytes or _STRIP_BYTES_WITHOUT_CACHE):
        made = shape.strips(strip_bytes, f"{plainly}; strips of {show_bytes(strip_bytes)} take")
        if budget_bytes is None or made.peak_bytes <= budget_bytes:
            return made
    raise _does_not_fit(program, batch, height, width, budget_bytes or 0, made.peak_bytes)


def show_bytes(count: int) -> str:
    """A number of bytes for people, rounded up, so that a budget read off a message is never short."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{-(-count * 100 // size) / 100:g} {unit}"
    return f"{count} B"


def _check(program: Program, batch: int, height: int, width: int, budget_bytes: int | None) -> None:
    if budget_bytes is not None and budget_bytes <= 0:
        raise RequestError("not a budget", saw=f"{budget_bytes} bytes", expected="more than zero, or None")
    if min(batch, height, width) < 1:
        raise RequestError("nothing to run", saw=f"{batch} × {height}×{width}", expected="at least one of each")
    if min(min(size) for size in program.sizes(height, width)) < 1:
        raise RequestError("the picture is too small for this model", saw=f"{height}×{width}")


def _does_not_fit(
    program: Program, batch: int, height: int, width: int, budget_bytes: int, least_bytes: int
) -> TooLarge:
    unit = "latents" if program.task == "decode" else "pixels"
    return TooLarge(
        f"{program.task} of {batch} × {height}×{width} {unit} does not fit the budget",
        saw=show_bytes(budget_bytes),
        expected=f"at least {show_bytes(least_bytes)}",
        hint="that budget, a smaller picture, fewer at a time, or half precision",
        least_bytes=least_bytes,
    )


def _halvings(start: int) -> Iterator[int]:
    while start >= 1:
        yield start
        start //= 2


class _Shape:
    """A program at one size: what its values take, and the two ways to run it."""

    def __init__(self, program: Program, batch: int, height: int, width: int, itemsize: int) -> None:
        self._program, self._batch, self._height, self._width = program, batch, height, width
        self._itemsize = itemsize
        self._sizes = program.sizes(height, width)
        self._nbytes = [c * h * w * itemsize for c, (h, w) in zip(program.channels, self._sizes, strict=True)]
        self._last_reads = program.last_reads()
        self._flops = program.flops(height, width)
        self._ends = batch * (self._nbytes[0] + self._nbytes[-1])

    def whole(self, peak_bytes: int, reason: str) -> Plan:
        return self._plan("whole", (), (), peak_bytes, reason)

    def strips(self, strip_bytes: int, reason: str) -> Plan:
        """Strips whose window and result take ``strip_bytes``, or one row where that is not enough."""
        homes, buffers = self._place()
        steps = []
        peak = self._ends
        for index, op in enumerate(self._program.ops):
            height = self._sizes[op.target][0]
            rows = self._rows(op, strip_bytes) if isinstance(op, Convolve) else height
            scratch = self._convolve_scratch(op, rows) if isinstance(op, Convolve) else self._attend_scratch(op)
            steps.append(Step(homes[index], rows, -(-height // rows), scratch, self._flops[index]))
            alive = sum(b.nbytes for b in buffers if b.first_op <= index <= b.last_op)
            peak = max(peak, self._ends + alive + scratch + self._statistics(steps))
        return self._plan("strips", tuple(steps), buffers, peak, f"{reason} {show_bytes(peak)}")

    def whole_peak(self) -> int:
        """What the plain forward takes: everything it still names, and the temporaries of the op at hand.

        diffusers runs norm, activation, convolution, sum and the division of the sum one after another, each into
        memory of its own, and every item of the batch at once.
        """
        peak = 0
        for index, op in enumerate(self._program.ops):
            named = {value for value in range(index + 1) if self._last_reads[value] >= index}
            named |= self._program.held[index] | {0}
            peak = max(
                peak, sum(self._nbytes[value] for value in named) + self._plain_temporaries(op, named, index)
            )
        first = self._program.ops[0]
        entered = self._nbytes[0] if isinstance(first, Convolve) and first.entering else 0
        return self._batch * (peak + entered)

    def _plan(
        self, mode: Mode, steps: tuple[Step, ...], buffers: tuple[Buffer, ...], peak_bytes: int, reason: str
    ) -> Plan:
        return Plan(
            mode,
            self._batch,
            self._height,
            self._width,
            self._itemsize,
            steps,
            buffers,
            peak_bytes,
            self._batch * sum(self._flops),
            reason,
        )

    def _place(self) -> tuple[list[int | None], tuple[Buffer, ...]]:
        """The buffer of every op's target, and all buffers."""
        home_of: dict[int, int] = {}
        spans: list[list[int]] = []  # value, first op, last op
        for index, op in enumerate(self._program.ops[:-1]):
            taken = next((home_of[v] for v in self._may_overwrite(op, index) if v in home_of), None)
            if taken is None:
                taken = len(spans)
                spans.append([op.target, index, index])
            home_of[op.target] = taken
            spans[taken][2] = self._last_reads[op.target]
        buffers = tuple(
            Buffer(self._program.channels[value], *self._sizes[value], self._nbytes[value], first, last)
            for value, first, last in spans
        )
        return [*(home_of[op.target] for op in self._program.ops[:-1]), None], buffers

    def _may_overwrite(self, op: Convolve | Attend, index: int) -> Iterator[int]:
        """Values whose memory the target may take; the input is not among them, for it is the caller's."""
        candidates = [op.source] if isinstance(op, Attend) or op.shortcut else [op.residual, op.source]
        for value in candidates:
            if (
                value is not None
                and self._last_reads[value] == index
                and self._sizes[value] == self._sizes[op.target]
                and self._program.channels[value] == self._program.channels[op.target]
            ):
                yield value

    def _rows(self, op: Convolve, strip_bytes: int) -> int:
        height = self._sizes[op.target][0]
        step = 2 if op.doubled else 1  # both rows of a doubled pair come from one product
        one, two = (self._window_and_strip(op, step * n) for n in (1, 2))
        affordable = 1 + max(0, strip_bytes - one) // (two - one)
        return min(height, step * affordable)

    def _window_and_strip(self, op: Convolve, rows: int) -> int:
        """Bytes of the source rows that ``rows`` target rows need, and of what the convolution gives for them."""
        first, end = op.rows_read(0, rows)
        width = self._sizes[op.source][1]
        padding = op.padding
        columns = width if padding.left == padding.right else width + padding.left + padding.right
        window = (end - first) * columns * op.weights.in_channels
        if op.doubled:
            return (window + 4 * (rows // 2 + 1) * (width + 1) * op.weights.out_channels) * self._itemsize
        return (window + rows * self._sizes[op.target][1] * op.weights.out_channels) * self._itemsize

    def _convolve_scratch(self, op: Convolve, rows: int) -> int:
        numbers = rows * self._sizes[op.target][1] * op.weights.out_channels
        shortcut = numbers * self._itemsize if op.shortcut else 0
        widened = self._itemsize < _STATISTICS_ITEMSIZE and self._program.norm_of(op.target)
        statistics = numbers * _STATISTICS_ITEMSIZE if widened else 0
        return self._window_and_strip(op, rows) + max(shortcut, statistics)

    def _statistics(self, steps: list[Step]) -> int:
        """Mean and variance of every channel and strip, of the values that are still to be normalised."""
        running = len(steps) - 1
        return sum(
            2 * step.strips * self._program.channels[op.target] * max(self._itemsize, _STATISTICS_ITEMSIZE)
            for op, step in zip(self._program.ops, steps, strict=False)
            if self._program.norm_of(op.target) and self._last_reads[op.target] >= running
        )

    def _attend_scratch(self, op: Attend) -> int:
        """The normalised source and q, k, v; then q, k, v and their product; then that and what ``out`` gives."""
        height, width = self._sizes[op.source]
        widest = self._program.channels[op.source] + 3 * op.query.out_channels
        widest = max(widest, 4 * op.query.out_channels)
        return height * width * widest * self._itemsize

    def _plain_temporaries(self, op: Convolve | Attend, named: set[int], index: int) -> int:
        source, target = self._nbytes[op.source], self._nbytes[op.target]
        if isinstance(op, Attend):
            inner = source * op.query.out_channels // self._program.channels[op.source]
            return source + 4 * inner
        # A source that only this op names is gone once it was normalised.
        gone = source if index == self._last_reads[op.source] and op.source not in self._program.held[index] else 0
        if op.doubled:
            return 4 * source + target
        normalising = 0 if op.norm is None else max(2 * source - gone, source - gone + target)
        convolving = max(normalising, target)
        if op.residual is None:
            return convolving
        # What the convolution gave, the shortcut's result, the sum; ResnetBlock2D then divides that, by one.
        adding = (2 + (op.shortcut is not None) + (op.norm is not None)) * target - gone
        return max(convolving, adding)
