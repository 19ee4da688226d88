"""Find the frames of an MP4 or QuickTime file, with bounds on everything that the file declares.

libavformat takes memory by what a header declares (a table of 2³² samples fits into 20 bytes), unpacks compressed
headers, and can follow references to other files.  So the boxes are read here, and the decoder gets the packets
alone.  ISO/IEC 14496-12 defines the boxes; both kinds of files are read, those with tables in ``moov`` and those in
fragments.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from .video_packets import Packets, VideoTooLong, cut_short, unknown_codec, unreadable_video

#: Most boxes that are looked at.
_MAX_BOXES = 65_536

#: The codec of each sample entry, and the box in it with the codec's configuration.
_CODECS = {
    b"avc1": ("h264", b"avcC"),
    b"avc3": ("h264", b"avcC"),
    b"hvc1": ("hevc", b"hvcC"),
    b"hev1": ("hevc", b"hvcC"),
    b"av01": ("libdav1d", b"av1C"),
    b"vp09": ("vp9", b""),
    b"mp4v": ("mpeg4", b"esds"),
}

_DECODER_CONFIG, _DECODER_SPECIFIC = 0x04, 0x05

#: A rotation matrix's first four numbers, 16.16 → quarter turns clockwise.
_ONE = 1 << 16
_TURNS = {(0, _ONE, -_ONE, 0): 1, (-_ONE, 0, 0, -_ONE): 2, (0, -_ONE, _ONE, 0): 3}


@dataclass(slots=True)
class _Track:
    """A video track: what its header says of it."""

    number: int
    codec: str
    config: bytes
    width: int
    height: int
    turns: int
    tables: dict[bytes, tuple[int, int]]
    defaults: tuple[int, int] = (0, 0)  # duration and size of a fragment's samples, from `trex`
    samples: list[tuple[int, int]] = field(default_factory=list)
    durations: set[int] = field(default_factory=set)


class _Boxes:
    """Reads boxes, and counts them."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._left = _MAX_BOXES

    def within(self, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """Yield kind, begin and end of the content of each box."""
        data = self.data
        while begin + 8 <= end:
            self._left -= 1
            if self._left < 0:
                raise unreadable_video(data, f"more than {_MAX_BOXES} boxes")
            size, kind = struct.unpack_from(">I4s", data, begin)
            content = begin + 8
            if size == 1:
                size = struct.unpack_from(">Q", data, content)[0]
                content += 8
            elif size == 0:
                size = end - begin
            if size < content - begin:
                raise unreadable_video(data, "a box that is smaller than its header")
            if begin + size > end and kind != b"mdat":
                raise cut_short(data, f"its box {kind.decode('latin-1')!r} ends behind it")
            yield kind, content, min(begin + size, end)
            begin += size

    def first(self, begin: int, end: int, *path: bytes) -> tuple[int, int] | None:
        """Return begin and end of the content of the first box at a path."""
        for name in path:
            found = next(((b, e) for kind, b, e in self.within(begin, end) if kind == name), None)
            if found is None:
                return None
            begin, end = found
        return begin, end

    def need(self, begin: int, end: int, *path: bytes) -> tuple[int, int]:
        """Return the same; a file without it cannot be read."""
        found = self.first(begin, end, *path)
        if found is None:
            raise unreadable_video(self.data, f"no box {path[-1].decode('latin-1')!r}")
        return found


def read_mp4(data: bytes, *, max_frames: int) -> Packets:
    """Return the packets of the first video track.

    Raises:
        TooLarge: for more than ``max_frames`` samples; nothing was allocated for them.
        RequestError: for a file that is damaged, cut short, or of an unknown codec.
    """
    try:
        return _read(_Boxes(data), max_frames)
    except (struct.error, IndexError):
        raise cut_short(data, "a box ends in the middle of a number") from None


def _read(boxes: _Boxes, max_frames: int) -> Packets:
    data = boxes.data
    track: _Track | None = None
    fragments: list[tuple[int, int, int]] = []
    for kind, begin, end in boxes.within(0, len(data)):
        if kind == b"moov" and track is None:
            track = _video_track(boxes, begin, end)
        elif kind == b"moof":
            header = 16 if struct.unpack_from(">I", data, begin - 8)[0] == 1 else 8
            fragments.append((begin - header, begin, end))
    if track is None:
        raise cut_short(data, "no `moov` box, which has the table of frames")
    _read_tables(boxes, track, max_frames)
    for start, begin, end in fragments:
        _read_fragment(boxes, track, (start, begin, end), max_frames)
    for offset, size in track.samples:
        if offset + size > len(data):
            raise cut_short(data, f"frames up to byte {offset + size}")
    return Packets(
        codec=track.codec,
        config=track.config,
        width=track.width,
        height=track.height,
        turns=track.turns,
        spans=track.samples,
        is_variable=len(track.durations) > 1,
    )


def _video_track(boxes: _Boxes, begin: int, end: int) -> _Track:
    data = boxes.data
    for kind, inner, inner_end in boxes.within(begin, end):
        if kind == b"cmov":
            raise unreadable_video(data, "a compressed header")
        if kind != b"trak":
            continue
        handler = boxes.first(inner, inner_end, b"mdia", b"hdlr")
        if handler is None or data[handler[0] + 8 : handler[0] + 12] != b"vide":
            continue
        track = _track(boxes, inner, inner_end)
        track.defaults = _defaults(boxes, begin, end, track.number)
        return track
    raise unreadable_video(data, "no track with video")


def _track(boxes: _Boxes, begin: int, end: int) -> _Track:
    data = boxes.data
    header, _ = boxes.need(begin, end, b"tkhd")
    is_long = data[header] == 1
    number = struct.unpack_from(">I", data, header + (20 if is_long else 12))[0]
    matrix = struct.unpack_from(">9i", data, header + (52 if is_long else 40))
    table, table_end = boxes.need(begin, end, b"mdia", b"minf", b"stbl")
    tables = {kind: (b, e) for kind, b, e in boxes.within(table, table_end)}
    if b"stsd" not in tables:
        raise unreadable_video(data, "no box 'stsd'")
    at, last = tables[b"stsd"]
    entry = next(boxes.within(at + 8, last), None)
    if entry is None:
        raise unreadable_video(data, "no description of its codec")
    fourcc, at, last = entry
    if fourcc not in _CODECS:
        raise unknown_codec(data, fourcc.decode("latin-1"))
    codec, config_box = _CODECS[fourcc]
    width, height = struct.unpack_from(">HH", data, at + 24)
    found = boxes.first(at + 78, last, config_box) if config_box else None
    if config_box and found is None:
        raise unreadable_video(data, f"no configuration of its codec {codec}")
    config = b"" if found is None else data[found[0] : found[1]]
    if config_box == b"esds":
        config = _from_descriptors(config)
    turns = _TURNS.get((matrix[0], matrix[1], matrix[3], matrix[4]), 0)
    return _Track(number, codec, config, width, height, turns, tables)


def _from_descriptors(esds: bytes) -> bytes:
    """Return the decoder's configuration from an ``esds`` box (ISO/IEC 14496-1, section 7.2.6)."""
    at = 4
    while at + 2 <= len(esds):
        tag, at = esds[at], at + 1
        length = 0
        for _ in range(4):
            byte, at = esds[at], at + 1
            length = length << 7 | byte & 0x7F
            if not byte & 0x80:
                break
        if tag == _DECODER_SPECIFIC:
            return esds[at : at + length]
        if tag == _DECODER_CONFIG:
            at += 13
        elif tag == 0x03:
            at += 3
        else:
            at += length
    return b""


def _defaults(boxes: _Boxes, begin: int, end: int, number: int) -> tuple[int, int]:
    extends = boxes.first(begin, end, b"mvex")
    if extends is not None:
        for kind, at, _ in boxes.within(*extends):
            if kind == b"trex":
                track, _, duration, size = struct.unpack_from(">IIII", boxes.data, at + 4)
                if track == number:
                    return duration, size
    return 0, 0


def _check_count(count: int, max_frames: int) -> None:
    if count > max_frames:
        raise VideoTooLong(count)


def _read_tables(boxes: _Boxes, track: _Track, max_frames: int) -> None:
    """Append the samples that the tables in ``moov`` name: sizes, samples of each chunk, offsets of chunks."""
    data, tables = boxes.data, track.tables
    if b"stsz" not in tables:
        return
    at, _ = tables[b"stsz"]
    size, count = struct.unpack_from(">II", data, at + 4)
    if not count:
        return
    _check_count(count, max_frames)
    sizes = [size] * count if size else list(struct.unpack_from(f">{count}I", data, at + 12))
    is_long = b"co64" in tables
    if b"stsc" not in tables or not (is_long or b"stco" in tables):
        raise unreadable_video(data, "no table of chunks")
    at, _ = tables[b"co64" if is_long else b"stco"]
    chunk_count = struct.unpack_from(">I", data, at + 4)[0]
    _check_count(chunk_count, max(max_frames, count))
    offsets = struct.unpack_from(f">{chunk_count}{'Q' if is_long else 'I'}", data, at + 8)
    at, _ = tables[b"stsc"]
    run_count = struct.unpack_from(">I", data, at + 4)[0]
    _check_count(run_count, chunk_count)
    runs = [struct.unpack_from(">III", data, at + 8 + 12 * index)[:2] for index in range(run_count)]
    remaining = iter(sizes)
    run = -1
    for chunk, offset in enumerate(offsets, start=1):
        while run + 1 < len(runs) and runs[run + 1][0] <= chunk:
            run += 1
        for _ in range(runs[run][1] if run >= 0 else 0):
            sample = next(remaining, None)
            if sample is None:
                break
            track.samples.append((offset, sample))
            offset += sample
    if len(track.samples) < count:
        raise unreadable_video(data, f"{count} frames of which {len(track.samples)} have a place")
    if b"stts" in tables:
        at, last = tables[b"stts"]
        entries = min(struct.unpack_from(">I", data, at + 4)[0], (last - at - 8) // 8, max_frames)
        deltas = [struct.unpack_from(">II", data, at + 8 + 8 * index) for index in range(entries)]
        # The last sample's duration is often another one.
        track.durations.update(delta for samples, delta in (deltas[:-1] if len(deltas) > 1 else deltas) if samples)


_BASE_OFFSET, _DESCRIPTION, _DURATION, _SIZE = 0x1, 0x2, 0x8, 0x10
_DATA_OFFSET, _FIRST_FLAGS = 0x1, 0x4
_EACH_DURATION, _EACH_SIZE, _EACH_FLAGS, _EACH_TIME = 0x100, 0x200, 0x400, 0x800


def _read_fragment(boxes: _Boxes, track: _Track, fragment: tuple[int, int, int], max_frames: int) -> None:
    """Append the samples of one ``moof``."""
    data = boxes.data
    start, begin, end = fragment
    for kind, inner, inner_end in boxes.within(begin, end):
        if kind != b"traf":
            continue
        at, _ = boxes.need(inner, inner_end, b"tfhd")
        flags, number = struct.unpack_from(">II", data, at)
        if number != track.number:
            continue
        at, base, (duration, size) = at + 8, start, track.defaults
        if flags & _BASE_OFFSET:
            base, at = struct.unpack_from(">Q", data, at)[0], at + 8
        at += 4 * bool(flags & _DESCRIPTION)
        if flags & _DURATION:
            duration, at = struct.unpack_from(">I", data, at)[0], at + 4
        if flags & _SIZE:
            size = struct.unpack_from(">I", data, at)[0]
        following = base
        for name, at, last in boxes.within(inner, inner_end):
            if name == b"trun":
                following = _read_run(data, track, (at, last), (base, following), (duration, size), max_frames)


def _read_run(
    data: bytes,
    track: _Track,
    box: tuple[int, int],
    bases: tuple[int, int],
    defaults: tuple[int, int],
    max_frames: int,
) -> int:
    """Append the samples of one ``trun``; return the offset behind them."""
    at, last = box
    base, offset = bases
    flags, count = struct.unpack_from(">II", data, at)
    flags &= 0xFFFFFF
    at += 8
    if flags & _DATA_OFFSET:
        offset, at = base + struct.unpack_from(">i", data, at)[0], at + 4
    at += 4 * bool(flags & _FIRST_FLAGS)
    _check_count(len(track.samples) + count, max_frames)
    stride = 4 * sum(bool(flags & flag) for flag in (_EACH_DURATION, _EACH_SIZE, _EACH_FLAGS, _EACH_TIME))
    if at + count * stride > last:
        raise cut_short(data, "a fragment's table is shorter than its count of frames")
    for _ in range(count):
        duration, size = defaults
        field_at = at
        if flags & _EACH_DURATION:
            duration, field_at = struct.unpack_from(">I", data, field_at)[0], field_at + 4
        if flags & _EACH_SIZE:
            size = struct.unpack_from(">I", data, field_at)[0]
        at += stride
        track.durations.add(duration)
        if offset < 0:
            raise unreadable_video(data, "a frame in front of the file")
        track.samples.append((offset, size))
        offset += size
    return offset
