"""How channels become positions and positions channels: an index map, with a rule for the first frame.

A block of ``frames`` × ``rows`` × ``columns`` positions of one value and so many times the channels of another hold
the same numbers.  In time, frame 0 is usually a block of its own and the others come in blocks of ``frames``.

No code here uses a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from .layers import Segments

#: From and to which frame or row: [from, to).
_Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the numbers of one target position, or of those of one target frame of a block.

    Attributes:
        frame: The source frame.
        row: The row within a block.
        column: The column within a block.
        channels: The source channel of every number.
        targets: The target channel that it is added to.
        share: What it is multiplied by.
    """

    frame: int
    row: int
    column: int
    channels: tuple[int, ...]
    targets: tuple[int, ...]
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Where a target's numbers come from.

    Attributes:
        goes_up: Whether channels become positions; otherwise positions become channels.
        frames: Frames of a block.
        rows: Rows of a block.
        columns: Columns of a block.
        order: The order in which channels run: ``c`` for the channel that stays one, ``t``, ``y`` and ``x`` for
            positions; the last runs fastest.
        repeats: How often each channel is repeated before they become positions.
        is_cycled: Whether they are repeated after that instead, all channels one after another.
        is_thinned: Whether of each block only the first position is kept; only where positions become channels.
        mean: Of how many neighbouring channels the mean is taken; only where positions become channels.
        first: Frame 0, where blocks have several frames.  If channels become positions, ``last`` takes it as the
            last of its block; if positions become channels, ``zeros`` and ``nearest`` say what stands before it.
            With ``alone`` it is arranged as if blocks had one frame, with as few of the channels as are needed, or
            with all of them as often as are needed.  With ``whole`` it is the first of a block like any other.
            ``odd`` means ``alone`` for an odd number of frames and ``whole`` for an even one; see :meth:`at`.
        lone_last: The source's segments, if of a last segment of one frame only one is made; None if not.
    """

    goes_up: bool = True
    frames: int = 1
    rows: int = 1
    columns: int = 1
    order: str = "ctyx"
    repeats: int = 1
    is_cycled: bool = False
    is_thinned: bool = False
    mean: int = 1
    first: Literal["last", "zeros", "nearest", "alone", "whole", "odd"] = "last"
    lone_last: Segments | None = None

    def at(self, frames: int) -> Arrangement:
        """Return the arrangement of a source of so many frames."""
        if self.first != "odd":
            return self
        return replace(self, first="alone" if frames % 2 else "whole")

    @property
    def stays(self) -> bool:
        """Whether every number stays where it is."""
        return (self.frames, self.rows, self.columns, self.repeats, self.mean) == (1, 1, 1, 1, 1)

    def channels(self, channels: int) -> int:
        """Return the number of target channels for so many of the source."""
        block = 1 if self.is_thinned else self.frames * self.rows * self.columns
        return channels * self.repeats // block if self.goes_up else channels * block // self.mean

    def fits(self, frames: int, height: int, width: int) -> bool:
        """Return whether a source of this size is a whole number of blocks; frames that are left over may be."""
        if self.goes_up:
            return True
        rest = frames - (0 if self.at(frames).first == "whole" else 1)
        is_whole = rest % self.frames == 0 or self.first == "zeros"
        return is_whole and height % self.rows == 0 and width % self.columns == 0

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the target."""
        if self.goes_up:
            return self.rows * height, self.columns * width
        return height // self.rows, width // self.columns

    def output_frames(self, frames: int) -> int:
        """Return the number of target frames."""
        if self.at(frames).first == "whole":
            return self.frames * frames if self.goes_up else frames // self.frames
        if not self.goes_up:
            return 1 + (frames - 1) // self.frames
        part_of = None if self.lone_last is None else self.lone_last.part_of
        is_lone = part_of is not None and frames > 1 and part_of(frames - 1) > part_of(frames - 2)
        return 1 + self.frames * (frames - 1) - (self.frames - 1 if is_lone else 0)

    def rows_read(self, first: int, end: int) -> _Span:
        """Return the source rows for target rows [first, end)."""
        if self.goes_up:
            return first // self.rows, -(-end // self.rows)
        return first * self.rows, end * self.rows

    def frames_read(self, first: int, end: int) -> _Span:
        """Return the source frames for target frames [first, end); they may begin before the source."""
        if self.first == "whole":
            span = first // self.frames, -(-end // self.frames)
            return span if self.goes_up else (first * self.frames, end * self.frames)
        if self.goes_up:
            return -(-first // self.frames), -(-(end - 1) // self.frames) + 1
        return (first - 1) * self.frames + 1, (end - 1) * self.frames + 1

    def frames_split(self, end: int) -> int:
        """Return how many target frames before ``end`` are of one block with some after it."""
        if not self.goes_up or end <= 0:
            return 0
        return (end if self.first == "whole" else end - 1) % self.frames

    def like(self, frame: int) -> int:
        """Return the first target frame that is arranged as this one is."""
        if self.first == "whole":
            return frame % self.frames if self.goes_up else 0
        if frame == 0:
            return 0
        return 1 + (frame - 1) % self.frames if self.goes_up else 1

    def parts(self, frame: int, into: int) -> Iterator[Part]:
        """Yield the parts of a target frame, for ``into`` source channels."""
        out = self.channels(into)
        if self.goes_up:
            yield from self._spread(frame, into, out)
        else:
            yield from self._gathered(frame, into, out)

    def _spread(self, frame: int, into: int, out: int) -> Iterator[Part]:
        is_alone = frame == 0 and self.first == "alone"
        source = self.frames_read(frame, frame + 1)[0]
        frames = 1 if is_alone else self.frames
        time = 0 if is_alone else (frame if self.first == "whole" else frame - 1) % self.frames
        repeats = max(1, self.repeats // self.frames) if is_alone else self.repeats
        shared = 1 if self.is_cycled else repeats
        of_one = into * shared // (frames * self.rows * self.columns)
        targets = tuple(range(out))
        for y in range(self.rows):
            for x in range(self.columns):
                found = (self._index(c % of_one, time, y, x, of_one, frames) // shared for c in targets)
                yield Part(source, y, x, tuple(found), targets)

    def _gathered(self, frame: int, into: int, out: int) -> Iterator[Part]:
        if self.is_thinned:
            yield Part(self.frames_read(frame, frame + 1)[0], 0, 0, tuple(range(into)), tuple(range(into)))
            return
        is_alone = frame == 0 and self.first == "alone"
        frames = 1 if is_alone else self.frames
        mean = max(1, self.mean // self.frames) if is_alone else self.mean
        packed = into * frames * self.rows * self.columns
        copies = range(out * mean // packed)  # more than one where frame 0 fills all channels by itself
        for t in range(frames):
            source = 0 if is_alone else self.frames_read(frame, frame + 1)[0] + t
            if source < 0 and self.first == "zeros":
                continue
            for y in range(self.rows):
                for x in range(self.columns):
                    for copy in copies:
                        found = (self._index(c, t, y, x, into, frames) for c in range(into))
                        targets = tuple((copy * packed + index) // mean for index in found)
                        yield Part(max(source, 0), y, x, tuple(range(into)), targets, 1 / mean)

    def _index(self, channel: int, time: int, row: int, column: int, channels: int, frames: int) -> int:
        """Return a channel's number within a block."""
        places = {"c": (channel, channels), "t": (time, frames), "y": (row, self.rows), "x": (column, self.columns)}
        index = 0
        for axis in self.order:
            place, count = places[axis]
            index = index * count + place
        return index


#: Every number stays where it is.
IN_PLACE = Arrangement()
