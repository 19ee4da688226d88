"""The sizes of a film's values, and the memory of its class's own forward.

All sizes are in bytes, on top of the weights, and include input and output.
"""

from __future__ import annotations

from ..program.ops import Attend, Convolve, Rearrange
from ..program.program import Program
from ..program.recomputing import recomputing
from .conv_algorithms import DeviceProfile
from .courses import Extent
from .shape import Shape

#: A class that attends to frames before makes, for every pair of positions, a comparison and a mask in float32, and
#: another in a narrower dtype.
_MASK_BYTES, _WIDE_BYTES = 5, 4

#: A class that attends along time makes of its source a norm, a copy in another order, queries, keys, values and
#: results.
_COPIES_ATTENDED = 8


class FilmShape:
    """A program of films at one size on one device.

    Attributes:
        program: The program for so many frames.
        batch: Number of items.
        frames: Number of frames of the input.
        arithmetic: The widths in which numbers are stored and computed.
        picture: The sizes of one frame.
        extents: (frames, height, width) of every value.
        nbytes: Bytes of every value of one item.
        ends_bytes: Bytes of input and output of the whole batch.
        flops: Floating-point operations of every op.
        recomputed: The values that each reader computes again; see :mod:`..program.recomputing`.
        together: Ranges of ops that therefore run together.
    """

    def __init__(
        self,
        program: Program,
        batch: int,
        frames: int,
        height: int,
        width: int,
        arithmetic: DeviceProfile,
        recomputed: tuple[int, ...] = (),
    ) -> None:
        made = recomputing(program.at(frames), recomputed)
        self.recomputed, self.together, self._lowered = recomputed, made.together, program
        program = made.program
        self.program, self.batch, self.frames, self.arithmetic = program, batch, frames, arithmetic
        self.picture = Shape(program, batch, height, width, arithmetic)
        lengths = program.lengths(frames)
        self.extents: tuple[Extent, ...] = tuple(
            (length, *size) for length, size in zip(lengths, self.picture.sizes, strict=True)
        )
        self.nbytes = [length * nbytes for length, nbytes in zip(lengths, self.picture.nbytes, strict=True)]
        self.ends_bytes = batch * (self.nbytes[0] + self.nbytes[-1])
        self.flops = program.flops(height, width, frames)

    def recomputing(self, values: tuple[int, ...]) -> FilmShape:
        """Return the shape in which each reader computes these values again."""
        size = self.picture.height, self.picture.width
        return FilmShape(self._lowered, self.batch, self.frames, *size, self.arithmetic, values)

    def whole_peak(self) -> int:
        """Return the peak of the module's own forward: of all frames at once, or of one after another."""
        return self._peak_at_once() if self.program.is_at_once else self._peak_frame_by_frame()

    def _normalising(self, op: Convolve) -> int:
        """Return the copies of its source that a class makes at a time to normalise it, in the source's dtype.

        Norms of positions widen half precision to float32, and then divide.
        """
        if op.norm is None:
            return 0
        if op.norm.kind == "group":
            return op.norm.maps.copies if op.norm.maps is not None else 1
        return 2 * max(1, _WIDE_BYTES // self.arithmetic.stored_bytes)

    def _normed(self, op: Convolve) -> int:
        """Return the copies of its target that a class holds at most to normalise it: widened, and squared."""
        if op.normed is None:
            return 0
        wider = _WIDE_BYTES // self.arithmetic.stored_bytes
        return 1 + 2 * max(1, wider)

    def _peak_at_once(self) -> int:
        """Return the peak of a class that computes the whole film layer by layer.

        Norm, padding and convolution make new values each, and ×2 one, or three of films.  Attention makes a mask
        for every pair of positions.
        """
        peak, program, nbytes = 0, self.program, self.nbytes
        last_reads = program.last_reads()
        for index, op in enumerate(program.ops):
            held = {value for value in range(index + 1) if last_reads[value] >= index} | program.held[index] | {0}
            source, target = nbytes[op.source], nbytes[op.target]
            is_gone = last_reads[op.source] == index and op.source not in program.held[index]
            if program.has_frames_in_batch and not (isinstance(op, Convolve) and op.in_time is not None):
                temporaries = self.extents[op.target][0] * self.picture.plain_temporaries(op, gone_after=is_gone)
            elif isinstance(op, Attend) and op.sees == "pixel before":
                temporaries = _COPIES_ATTENDED * source
            elif isinstance(op, Attend) and op.sees == "frame":
                temporaries = 4 * source
            elif isinstance(op, Attend):
                frames, height, width = self.extents[op.source]
                mask = _MASK_BYTES + (stored if (stored := self.arithmetic.stored_bytes) < _WIDE_BYTES else 0)
                masks = (frames * height * width) ** 2 * mask
                temporaries = 4 * source + masks
            elif isinstance(op, Rearrange):
                temporaries = 2 * target
            elif op.doubled:
                doubled = target * program.channels[op.source] // program.channels[op.target]
                temporaries = doubled + target
                if op.in_time is not None:  # apart from frame 0, joined with it, and padded
                    temporaries += source + 2 * doubled
            else:
                gone = source if is_gone else 0
                normalised = source if op.norm is not None else 0
                padded = source if op.in_time is not None else 0
                temporaries = normalised + padded + max(target, padded) - (gone if normalised else 0)
                if program.padded_copies > 1:
                    frames = self.extents[op.source][0]
                    longer = frames + (op.in_time.kernel - 1 if op.in_time is not None else 0)
                    padded = program.padded_copies * source * longer // frames
                    temporaries = normalised + padded + target - (gone if normalised else 0)
                if op.residual is not None:
                    mixed = 2 if op.weights.scaled_by else 0  # the two that are mixed, each times its share
                    temporaries = max(temporaries, (2 + mixed + (op.shortcut is not None)) * target - gone)
                temporaries = max(temporaries, self._normalising(op) * source, self._normed(op) * target - gone)
            peak = max(peak, sum(nbytes[value] for value in held) + temporaries)
        return self.batch * peak

    def _peak_frame_by_frame(self) -> int:
        """Return the peak of a class that runs one latent frame or one segment after another.

        It keeps the last two frames that each convolution over frames has read, and joins what it has computed
        with what comes next.  CogVideoX's class also keeps the inputs of the maps, and all of these twice: those of
        the segment before until the end of the next.  KVAE's, whose first segment is longer, does not.
        """
        program = self.program
        if program.segment:
            of_first, of_others = self._lowered.segment_lengths(self.frames)
            first, kept = self._peak_of_values(of_first, 0)
            others, _ = self._peak_of_values(of_others, None if program.first_segment else kept)
            peak = max(first, others) if self.frames > of_first[0] else first
        else:
            fewer, more = (program.lengths(frames) for frames in ((1, 2) if program.task == "decode" else (1, 5)))
            at_once = tuple(after - before for before, after in zip(fewer, more, strict=True))
            peak, _ = self._peak_of_values(at_once, None)
        return self.ends_bytes + self.batch * (self.nbytes[-1] + peak)

    def _peak_of_values(self, at_once: tuple[int, ...], before: int | None) -> tuple[int, int]:
        """Return the peak of so many frames of every value, and the bytes that are kept for the next.

        Of the chunk ``before``, so many bytes are kept until its end; None where each is replaced at once.
        """
        program, nbytes = self.program, self.picture.nbytes
        kept = [0]
        peaks = []
        for index, op in enumerate(program.ops):
            source, target = at_once[op.source] * nbytes[op.source], at_once[op.target] * nbytes[op.target]
            own = 0
            if isinstance(op, Convolve) and op.in_time is not None:
                own += (op.in_time.kernel - 1) * nbytes[op.source]
            if op.norm is not None and op.norm.maps is not None and op.norm.maps.is_input_kept:
                own += 2 * source * program.channels[0] // program.channels[op.source]
            kept.append(kept[-1] + own)
            normalising = self._normalising(op) * source if isinstance(op, Convolve) else 0
            held = program.held[index] | {op.source} | ({op.residual} - {None})
            named = sum(at_once[value] * nbytes[value] for value in held if value is not None)
            convolving = source + max(source, target)
            if program.is_by_frame and isinstance(op, Convolve) and op.in_time is not None:
                convolving = self._by_frame(op, index, at_once)
            if program.first_segment and isinstance(op, Convolve) and op.in_time is not None:  # written twice
                convolving = 2 * source + 2 * target - (0 if op.norm else source)
            peaks.append(named + max(convolving, normalising))
        if before is None:
            return kept[-1] + max(peaks), kept[-1]
        return before + max(map(sum, zip(peaks, kept[1:], strict=True))), kept[-1]

    def _by_frame(self, op: Convolve, index: int, at_once: tuple[int, ...]) -> int:
        """Return what a convolution takes, beside its source, whose frames are made one after another and joined.

        That is what it reads, if this is no value; this behind the frames before; its frames, and all of them
        together.  A shortcut is made before the block that it is added to.
        """
        program, nbytes = self.program, self.picture.nbytes
        source, target = (at_once[value] * nbytes[value] for value in (op.source, op.target))
        read = (4 if op.doubled else 1) * source
        made = read if op.norm is not None or op.doubled else 0
        is_free = op.norm is not None and op.source not in program.held[index]
        kept = (op.in_time.kernel - 1) * read // at_once[op.source] if op.in_time is not None else 0
        total = made + read + kept + 2 * target - (source if is_free else 0)
        for one in (op, *program.ops[index + 1 : index + 2]):
            if isinstance(one, Convolve) and one.shortcut and (one is op or one.residual == op.source):
                total += at_once[one.target] * nbytes[one.target]
        return total
