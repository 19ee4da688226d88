"""Find the frames of a WebM or Matroska file, with bounds on everything that the file declares.

RFC 8794 defines the elements (EBML) and RFC 9559 their meaning.  As for MP4, the decoder gets packets alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from .video_packets import Packets, VideoTooLong, cut_short, unknown_codec, unreadable_video

#: Most elements that are looked at.
_MAX_ELEMENTS = 262_144

_SEGMENT, _TRACKS, _CLUSTER = 0x18538067, 0x1654AE6B, 0x1F43B675
_TRACK, _NUMBER, _TYPE, _CODEC_ID, _PRIVATE = 0xAE, 0xD7, 0x83, 0x86, 0x63A2
_VIDEO, _WIDTH, _HEIGHT = 0xE0, 0xB0, 0xBA
_ENCODINGS = 0x6D80
_SIMPLE_BLOCK, _GROUP, _BLOCK = 0xA3, 0xA0, 0xA1
_TIMESTAMP = 0xE7

#: Elements whose size a writer may not know; they end where one begins that cannot be inside.
_UNSIZED = frozenset({_SEGMENT, _CLUSTER})
_IN_SEGMENT = frozenset({0x114D9B74, 0x1549A966, _TRACKS, _CLUSTER, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367})

_CODECS = {
    "V_VP8": "vp8",
    "V_VP9": "vp9",
    "V_AV1": "libdav1d",
    "V_MPEG4/ISO/AVC": "h264",
    "V_MPEGH/ISO/HEVC": "hevc",
    "V_MPEG4/ISO/ASP": "mpeg4",
    "V_MPEG4/ISO/SP": "mpeg4",
}
_LACING = 0x06


class _Elements:
    """Reads elements, and counts them."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._left = _MAX_ELEMENTS

    def within(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield id, begin and end of the content of each element."""
        while begin < end:
            self._left -= 1
            if self._left < 0:
                raise unreadable_video(self.data, f"more than {_MAX_ELEMENTS} elements")
            kind, at, _ = self._variable(begin, keep_marker=True)
            size, at, is_unknown = self._variable(at)
            if is_unknown:
                if kind not in _UNSIZED:
                    raise unreadable_video(self.data, "an element of unknown size")
                last = end if kind == _SEGMENT else self._end_of_cluster(at, end)
            else:
                last = at + size
                if last > end:
                    raise cut_short(self.data, f"an element ends at byte {last}")
            yield kind, at, last
            begin = last

    def _end_of_cluster(self, at: int, end: int) -> int:
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise unreadable_video(self.data, f"more than {_MAX_ELEMENTS} elements")
            kind, content, _ = self._variable(at, keep_marker=True)
            if kind in _IN_SEGMENT:
                return at
            size, content, is_unknown = self._variable(content)
            if is_unknown:
                raise unreadable_video(self.data, "an element of unknown size")
            at = content + size
        return end

    def _variable(self, at: int, *, keep_marker: bool = False) -> tuple[int, int, bool]:
        """Return a number of 1 to 8 bytes, the position behind it, and whether all of its bits are set."""
        if at >= len(self.data):
            raise cut_short(self.data, "it ends in the middle of a number")
        first = self.data[at]
        length = 9 - first.bit_length()
        if not first or at + length > len(self.data) or (keep_marker and length > 4):
            raise unreadable_video(self.data, f"no element at byte {at}")
        value = int.from_bytes(self.data[at : at + length], "big")
        bare = value & ((1 << 7 * length) - 1)
        return value if keep_marker else bare, at + length, bare == (1 << 7 * length) - 1

    def number(self, begin: int, end: int) -> int:
        """Return an unsigned integer."""
        return int.from_bytes(self.data[begin : min(end, begin + 8)], "big")

    def track_and_header(self, at: int) -> tuple[int, int, int]:
        """Return a block's track, its flags, and where its frame begins."""
        number, at, _ = self._variable(at)
        if at + 3 > len(self.data):
            raise cut_short(self.data, "a block without its header")
        return number, self.data[at + 2], at + 3


def read_webm(data: bytes, *, max_frames: int) -> Packets:
    """Return the packets of the first video track.

    Raises:
        TooLarge: for more than ``max_frames`` blocks.
        RequestError: for a file that is damaged, cut short, or of an unknown codec.
    """
    elements = _Elements(data)
    track: tuple[int, Packets] | None = None
    times: list[int] = []
    for kind, begin, end in elements.within(0, len(data)):
        if kind != _SEGMENT:
            continue
        for inner, at, last in elements.within(begin, end):
            if inner == _TRACKS and track is None:
                track = _video_track(elements, at, last)
            elif inner == _CLUSTER and track is not None:
                _read_cluster(elements, track, (at, last), times, max_frames)
    if track is None:
        raise unreadable_video(data, "no track with video")
    packets = track[1]
    gaps = [after - before for before, after in zip(sorted(times), sorted(times)[1:], strict=False)]
    # Milliseconds are rounded, so gaps of 66 and 67 are one rate.
    is_variable = bool(gaps) and max(gaps) - min(gaps) > 1
    return Packets(packets.codec, packets.config, packets.width, packets.height, 0, packets.spans, is_variable)


def _video_track(elements: _Elements, begin: int, end: int) -> tuple[int, Packets]:
    data = elements.data
    for kind, at, last in elements.within(begin, end):
        if kind != _TRACK:
            continue
        found = {inner: (b, e) for inner, b, e in elements.within(at, last)}
        if _TYPE not in found or elements.number(*found[_TYPE]) != 1:
            continue
        if not {_NUMBER, _CODEC_ID, _VIDEO} <= set(found):
            raise unreadable_video(data, "a track of video without its description")
        if _ENCODINGS in found:
            raise unreadable_video(data, "frames that are compressed twice, or encrypted")
        begin, end = found[_CODEC_ID]
        name = data[begin : min(end, begin + 40)].decode("latin-1").rstrip("\0")
        if name not in _CODECS:
            raise unknown_codec(data, name)
        size = {inner: elements.number(b, e) for inner, b, e in elements.within(*found[_VIDEO])}
        config = data[slice(*found[_PRIVATE])] if _PRIVATE in found else b""
        codec = _CODECS[name]
        if codec in ("vp8", "vp9"):
            config = b""
        packets = Packets(codec, config, size.get(_WIDTH, 0), size.get(_HEIGHT, 0))
        return elements.number(*found[_NUMBER]), packets
    raise unreadable_video(data, "no track with video")


def _read_cluster(
    elements: _Elements, track: tuple[int, Packets], span: tuple[int, int], times: list[int], max_frames: int
) -> None:
    number, packets = track
    base = 0
    blocks: list[tuple[int, int]] = []
    for kind, at, last in elements.within(*span):
        if kind == _TIMESTAMP:
            base = elements.number(at, last)
        elif kind == _SIMPLE_BLOCK:
            blocks.append((at, last))
        elif kind == _GROUP:
            blocks += [(b, e) for inner, b, e in elements.within(at, last) if inner == _BLOCK]
    for at, last in blocks:
        of, flags, frame = elements.track_and_header(at)
        if of != number:
            continue
        if flags & _LACING:
            raise unreadable_video(elements.data, "several frames in one block")
        if len(packets.spans) >= max_frames:
            raise VideoTooLong(max_frames + 1)
        times.append(base + int.from_bytes(elements.data[frame - 3 : frame - 1], "big", signed=True))
        packets.spans.append((frame, max(0, last - frame)))
