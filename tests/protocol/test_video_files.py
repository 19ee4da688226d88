"""Video files: what is written plays, leaves early, and is read back; files that mean harm take no memory."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from hybridge.errors import RequestError, TooLarge
from hybridge.protocol import WireTensor
from hybridge.protocol.video_formats import CODECS, PIXEL_FORMATS, VideoOptions, sniff_video
from hybridge.protocol.video_reader import is_animation, read_video
from hybridge.protocol.video_writer import VideoWriter, crf_of, write_video

PLENTY = 10**7

ALL = [
    *((f, codec, p) for f, codecs in CODECS.items() for codec in codecs for p in PIXEL_FORMATS[codec]),
    ("gif", None, None),
    ("webp", None, None),
]


def film(frames: int = 9, height: int = 64, width: int = 96) -> np.ndarray[Any, Any]:
    """Frames that lossy formats keep: slow gradients that move."""
    y, x = np.mgrid[0:height, 0:width]
    made = [
        np.stack([200 * x / width + 3 * i, 200 * y / height + 2 * i, 200 * (x + y) / (width + height)], -1)
        for i in range(frames)
    ]
    return np.stack(made).clip(0, 255).astype(np.uint8)


def written(frames: np.ndarray[Any, Any], *options: Any) -> bytes:
    return bytes(write_video(WireTensor.from_numpy(frames), VideoOptions(*options)).data)


def read(data: bytes, **arguments: Any) -> np.ndarray[Any, Any]:
    tensor = read_video(data, **{"max_pixels": PLENTY, **arguments})
    assert tensor.dtype == "uint8"
    return tensor.to_numpy()


def far(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    assert one.shape == other.shape
    return float(np.abs(one.astype(int) - other).mean())


# ---------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize(("file_format", "codec", "pixel_format"), ALL)
def test_every_format_is_read_back(file_format: Any, codec: Any, pixel_format: Any) -> None:
    frames = film()
    data = written(frames, file_format, 12.5, codec, pixel_format)
    assert is_animation(data)
    assert far(read(data), frames) < 4
    assert data == written(frames, file_format, 12.5, codec, pixel_format)


@pytest.mark.parametrize(("file_format", "codec", "pixel_format"), [one for one in ALL if one[0] != "webp"])
def test_other_programs_read_it(file_format: Any, codec: Any, pixel_format: Any) -> None:
    """libavformat finds what was asked for, and the colours by their tags."""
    with av.open(io.BytesIO(written(film(), file_format, 24, codec, pixel_format))) as container:
        (stream,) = container.streams
        assert codec in (None, stream.codec_context.codec.canonical_name)
        assert pixel_format in (None, stream.codec_context.pix_fmt)
        decoded = list(container.decode(stream))
        assert len(decoded) == 9
        # A GIF counts hundredths of a second, and a WebM milliseconds.
        times = [float(frame.pts * frame.time_base) for frame in decoded]
        assert np.allclose(times, np.arange(9) / 24, atol=0.011)
        assert far(np.stack([frame.to_ndarray(format="rgb24") for frame in decoded]), film()) < 4
        if codec:
            assert (decoded[0].colorspace, decoded[0].color_range) == (1, 1)  # BT.709, limited


def test_the_default_is_what_unmodified_clients_expect() -> None:
    answer = write_video(WireTensor.from_numpy(film()))
    assert answer.media_type == "video/mp4"
    with av.open(io.BytesIO(answer.data)) as container:
        (stream,) = container.streams
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 15


def test_an_animated_webp_repeats_and_keeps_its_rate() -> None:
    with Image.open(io.BytesIO(written(film(), "webp", 20))) as picture:
        assert (picture.n_frames, picture.info["loop"]) == (9, 0)
        picture.seek(1)
        picture.load()
        assert picture.info["duration"] == 50


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="this system has no policies of scheduling")
def test_no_encoder_keeps_real_time_priority() -> None:
    """SVT-AV1 takes it for all its threads when it runs as root, and for the thread that called it."""
    writer = VideoWriter(VideoOptions(codec="av1"), 64, 64)
    writer.add(np.zeros((2, 64, 64, 3), np.uint8))
    policies = {os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")}
    writer.finish()
    assert policies == {os.sched_getscheduler(0)} == {os.SCHED_OTHER}


@pytest.mark.parametrize(
    ("file_format", "codec"), [("mp4", "h264"), ("mp4", "hevc"), ("mp4", "av1"), ("webm", "vp9")]
)
def test_frames_leave_while_others_come(file_format: Any, codec: Any) -> None:
    frames = film(17)
    writer = VideoWriter(VideoOptions(file_format, codec=codec), 96, 64)
    parts = [writer.add(frames[i : i + 1]) for i in range(17)]
    early = b"".join(parts[:9])
    assert len(early) > 1000
    whole = early + b"".join(parts[9:]) + writer.finish()
    assert far(read(whole), frames) < 4
    # What has left by then holds whole frames.
    with av.open(io.BytesIO(early)) as container:
        assert sum(1 for packet in container.demux(video=0) if packet.size) >= 1


def test_the_writer_holds_no_film() -> None:
    writer = VideoWriter(VideoOptions(), 320, 256)
    frames = film(4, 256, 320)
    writer.add(frames)
    tracemalloc.start()
    for _ in range(15):
        writer.add(frames)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    writer.finish()
    assert held < 8 * frames[0].nbytes


@pytest.mark.parametrize("file_format", ["mp4", "webm"])
def test_odd_sides(file_format: Any) -> None:
    frames = film(3, 65, 97)
    writer = VideoWriter(VideoOptions(file_format), 97, 65)
    data = writer.add(frames) + writer.finish()
    assert "98x66" in str(writer.options.note(97, 65))
    padded = read(data)
    assert padded.shape == (3, 66, 98, 3)
    assert far(padded[:, :65, :97], frames) < 4
    whole = VideoWriter(VideoOptions(file_format, pixel_format="yuv444p"), 97, 65)
    assert far(read(whole.add(frames) + whole.finish()), frames) < 4
    assert whole.options.note(97, 65) is None


@pytest.mark.parametrize(
    ("file_format", "codec"), [("mp4", "h264"), ("mp4", "av1"), ("webm", "vp9"), ("webp", None)]
)
def test_quality(file_format: Any, codec: Any) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (3, 64, 96, 3), np.uint8)
    sizes = []
    for quality in (1, 50, 95):
        writer = VideoWriter(VideoOptions(file_format, codec=codec), 96, 64, quality=quality)
        sizes.append(len(writer.add(noise) + writer.finish()))
    assert sizes == sorted(set(sizes))
    assert (crf_of(1), round(crf_of(95)), crf_of(100)) == (51.0, 17, 15.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fps": 0}, "1 to 240"),
        ({"fps": 1e9}, "1 to 240"),
        ({"fps": float("nan")}, "1 to 240"),
        ({"format": "gif", "fps": 60}, "1 to 50"),
        ({"format": "avi"}, "mp4, webm, gif, webp"),
        ({"codec": "vp9"}, "output_type=webm"),
        ({"codec": "h265"}, "h264, hevc, av1"),
        ({"format": "gif", "codec": "h264"}, "only its own"),
        ({"codec": "av1", "pixel_format": "yuv444p"}, "yuv420p"),
        ({"pixel_format": "rgb24"}, "yuv420p, yuv444p"),
        ({"format": "webp", "pixel_format": "yuv420p"}, "only its own"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        VideoOptions(**options)


@pytest.mark.parametrize(
    ("options", "size", "said"),
    [
        (VideoOptions(codec="hevc"), (32, 64), "64 to 16384"),
        (VideoOptions(codec="av1"), (64, 32), "codec=h264"),
        (VideoOptions(), (16_386, 64), "output_type=pt"),
        (VideoOptions("webp"), (16_384, 64), "16383"),
    ],
)
def test_sizes_that_a_codec_cannot_have(options: VideoOptions, size: tuple[int, int], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        VideoWriter(options, *size)


def test_a_library_without_the_encoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "codecs_available", {"libx264"})
    with pytest.raises(RequestError, match=r"no libsvtav1, expected one of h264"):
        VideoWriter(VideoOptions(codec="av1"), 64, 64)


def test_frames_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \(f, 64, 96, 3\)"):
        VideoWriter(VideoOptions(), 96, 64).add(film(1, 96, 64))


# ---------------------------------------------------------------------------------------------- reading


def muxed(
    file_format: str, codec: str, change: Callable[[Any, Any], object] = lambda _c, _s: None, **options: str
) -> bytes:
    """A film as other programs write it: with tables instead of fragments, and B-frames."""
    file = io.BytesIO()
    with av.open(file, "w", format=file_format) as container:
        stream: Any = container.add_stream(codec, rate=Fraction(15), options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        change(container, stream)
        for rgb in film():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p")))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize(
    ("file_format", "codec"),
    [
        ("mp4", "libx264"),
        ("mov", "libx264"),
        ("mp4", "libx265"),
        ("mp4", "mpeg4"),
        ("mp4", "libvpx-vp9"),
        ("matroska", "libx264"),
        ("matroska", "libx265"),
        ("matroska", "mpeg4"),
        ("webm", "libvpx"),
    ],
)
def test_films_of_other_programs(file_format: str, codec: str) -> None:
    data = muxed(file_format, codec)
    assert sniff_video(data)
    with av.open(io.BytesIO(data)) as container:
        # With threads the first frames of MPEG-4 part 2 differ in some runs.
        container.streams.video[0].codec_context.thread_count = 1
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert (read(data) == np.stack(expected)).all()


def test_sound_is_ignored() -> None:
    def with_sound(container: Any, _: Any) -> None:
        sound = container.add_stream("aac", rate=48_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48_000
        container.mux(sound.encode(frame))
        container.mux(sound.encode())

    assert read(muxed("mp4", "libx264", with_sound)).shape == (9, 64, 96, 3)


def boxed(data: bytes | bytearray, kind: bytes) -> int:
    """The position of a box's content."""
    at = data.rindex(kind)
    return at + 4


def rotated(film: bytes, turns: int) -> bytes:
    data = bytearray(film)
    matrix = {1: (0, 1, -1, 0), 2: (-1, 0, 0, -1), 3: (0, -1, 1, 0)}[turns]
    at = boxed(data, b"tkhd") + 40
    a, b, c, d = (n << 16 for n in matrix)
    struct.pack_into(">9i", data, at, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    return bytes(data)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotation(turns: int) -> None:
    """As phones store films: turned clockwise for display."""
    data = muxed("mp4", "libx264")
    assert (read(rotated(data, turns)) == np.rot90(read(data), -turns, axes=(1, 2))).all()


def test_frames_of_different_durations_are_told() -> None:
    notes: list[str] = []
    read(muxed("mp4", "libx264"), note=lambda _, text: notes.append(text))
    read(written(film(), "webm"), note=lambda _, text: notes.append(text))
    assert not notes
    data = bytearray(muxed("mp4", "libx264", bf="0"))
    at = boxed(data, b"stts") + 4
    assert struct.unpack_from(">II", data, at)[0] == 1
    # One entry has to do for two: the count of another box's bytes stays, so split it in a fragmented film instead.
    fragmented = bytearray(written(film()))
    at = fragmented.rindex(b"tfhd")
    flags = struct.unpack_from(">I", fragmented, at + 4)[0]
    assert flags & 0x8, "the duration is in each fragment's header"
    struct.pack_into(">I", fragmented, at + 12, 7)
    assert read(bytes(fragmented), note=lambda _, text: notes.append(text)).shape[0] == 9
    assert notes == ["the frames have different durations, which are ignored: one follows another"]


@pytest.mark.parametrize("file_format", ["GIF", "WEBP"])
@pytest.mark.parametrize("durations", [[40, 40, 40], [40, 80, 40]])
def test_pictures_of_an_animation_that_are_shown_differently_long(file_format: str, durations: list[int]) -> None:
    first, *others = (Image.fromarray(frame) for frame in film()[::4])
    file = io.BytesIO()
    first.save(file, file_format, save_all=True, append_images=others, duration=durations)
    codes: list[str] = []
    assert len(read(file.getvalue(), note=lambda code, _: codes.append(code))) == 3
    assert codes == (["uneven-frames"] if len(set(durations)) > 1 else [])


def test_frames_are_resized_as_pictures_are() -> None:
    notes: list[str] = []
    data = written(film(3, 66, 98))
    resized = read(data, multiple=16, note=lambda _, text: notes.append(text))
    assert notes == ["the frames of 98x66 pixels were resized to 96x64, because sides must be multiples of 16"]
    expected = [Image.fromarray(one).resize((96, 64), Image.Resampling.LANCZOS) for one in read(data)]
    assert (resized == np.stack([np.asarray(one) for one in expected])).all()
    with pytest.raises(RequestError, match="at least 128×128"):
        read(data, multiple=128)


def test_transparency_is_dropped() -> None:
    file = io.BytesIO()
    clear = [Image.new("RGBA", (16, 16), (200, 100, 50, alpha)) for alpha in (255, 128)]
    clear[0].save(file, "WEBP", save_all=True, append_images=clear[1:], lossless=True, exact=True)
    frames = read(file.getvalue())
    assert (frames == np.array([200, 100, 50])).all()


GOOD = {
    "mp4 in fragments": lambda: written(film()),
    "mp4 with tables": lambda: muxed("mp4", "libx264"),
    "webm": lambda: written(film(), "webm"),
    "mkv": lambda: muxed("matroska", "libx264"),
    "gif": lambda: written(film(), "gif"),
    "webp": lambda: written(film(), "webp"),
}


def read_or_refused(data: bytes, **arguments: Any) -> np.ndarray[Any, Any] | None:
    try:
        return read(data, **arguments)
    except RequestError:
        return None


@pytest.mark.parametrize("make", GOOD.values(), ids=GOOD.keys())
def test_a_film_that_was_cut_short_is_refused(make: Callable[[], bytes]) -> None:
    """Or has frames less, where the end was in between two: never other frames."""
    data = make()
    whole = read(data)
    for length in (*range(13, 900, 37), *(len(data) * part // 10 for part in range(1, 10)), len(data) - 5):
        part = read_or_refused(data[:length])
        if part is not None:
            assert len(part) <= len(whole)
            assert far(part, whole[: len(part)]) < 1


@pytest.mark.parametrize("make", GOOD.values(), ids=GOOD.keys())
def test_damaged_films_are_refused_or_read(make: Callable[[], bytes]) -> None:
    data = make()
    random = np.random.default_rng(5)
    for _ in range(60):
        damaged = bytearray(data)
        for at in random.integers(0, min(len(data), 1500), 4):
            damaged[at] = int(random.integers(0, 256))
        read_or_refused(bytes(damaged), max_pixels=10**6)


@pytest.mark.parametrize("make", GOOD.values(), ids=GOOD.keys())
def test_limits(make: Callable[[], bytes]) -> None:
    data = make()
    assert len(read(data, max_pixels=9 * 64 * 96, max_frames=9)) == 9
    with pytest.raises(TooLarge, match=r"9 frames of 96×64 = 55296 pixels|9 frames of 96×64"):
        read(data, max_pixels=9 * 64 * 96 - 1)
    with pytest.raises(TooLarge, match="too many frames"):
        read(data, max_frames=8)


@pytest.mark.parametrize("make", GOOD.values(), ids=GOOD.keys())
def test_reading_stops_when_nobody_waits(make: Callable[[], bytes]) -> None:
    asked: list[bool] = []

    def on_third() -> bool:
        asked.append(True)
        return len(asked) == 3

    with pytest.raises(RequestError, match="nobody waits"):
        read(make(), should_stop=on_third)
    assert len(asked) == 3


def refused_without_memory(data: bytes, error: type[RequestError], said: str) -> None:
    read(written(film(1)))  # what reading imports
    tracemalloc.start()
    with pytest.raises(error, match=said):
        read(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_million_frames_by_its_header() -> None:
    """In 20 bytes: a table whose samples all have one size has no entries."""
    data = bytearray(muxed("mp4", "libx264"))
    struct.pack_into(">II", data, boxed(data, b"stsz") + 4, 1, 10**6)
    refused_without_memory(bytes(data), TooLarge, r"1000000 or more, expected at most 16384")
    fragmented = bytearray(written(film()))
    at = fragmented.index(b"trun")
    struct.pack_into(">II", fragmented, at + 4, 0, 2**32 - 1)
    refused_without_memory(bytes(fragmented), TooLarge, "4294967296|4294967295")


def test_frames_of_a_huge_size_by_its_header() -> None:
    data = bytearray(muxed("mp4", "libx264"))
    struct.pack_into(">HH", data, boxed(data, b"avc1") + 24, 65_535, 65_535)
    refused_without_memory(bytes(data), TooLarge, "9 frames of 65535×65535")
    gif = bytearray(written(film(), "gif"))
    struct.pack_into("<HH", gif, 6, 65_535, 65_535)
    refused_without_memory(bytes(gif), TooLarge, "9 frames of 65535×65535")


def test_frames_that_are_larger_than_the_header_says() -> None:
    """The codec's own header has a size too, and its decoder would take memory for that."""
    data = bytearray(written(film(2, 512, 640)))
    struct.pack_into(">HH", data, boxed(data, b"avc1") + 24, 16, 16)
    refused_without_memory(bytes(data), RequestError, "cannot be read")


def test_zero_frames() -> None:
    data = bytearray(muxed("mp4", "libx264"))
    struct.pack_into(">II", data, boxed(data, b"stsz") + 4, 0, 0)
    with pytest.raises(RequestError, match="zero frames"):
        read(bytes(data))
    with pytest.raises(RequestError, match="zero frames"):
        read(b"GIF89a" + struct.pack("<HHBBB", 16, 16, 0, 0, 0) + b";")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (lambda: muxed("mp4", "libx264").replace(b"avc1", b"drac"), "'drac', expected H.264, HEVC"),
        (lambda: muxed("matroska", "ffv1"), "'V_FFV1'"),
        (lambda: muxed("mp4", "libx264").replace(b"mvhd", b"cmov"), "compressed header"),
        (lambda: muxed("mp4", "libx264").replace(b"vide", b"soun"), "no track with video"),
        (lambda: b"RIFF\0\0\0\0AVI LIST", "expected an MP4, WebM, GIF or animated WebP"),
        (lambda: b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", "no `moov`"),
        (lambda: b"", "cannot be read"),
    ],
)
def test_files_that_are_not_read(data: Callable[[], bytes], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        read(data())


def test_boxes_without_number_end() -> None:
    with pytest.raises(RequestError, match="65536 boxes"):
        read(b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + b"\0\0\0\x08free" * 70_000)
    with pytest.raises(RequestError, match="smaller than its header"):
        read(b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + b"\0\0\0\1free" + b"\0" * 8)
    with pytest.raises(RequestError, match="262144 elements"):
        read(b"\x1a\x45\xdf\xa3\x80" + b"\xec\x80" * 300_000)
