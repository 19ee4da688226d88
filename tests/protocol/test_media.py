"""Picture and video files: the pixels that diffusers would have got, and files that mean harm."""

from __future__ import annotations

import io
import struct
import sys
import tracemalloc
import zlib
from typing import Any

import av
import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import load_image
from PIL import Image, ImageFile, ImageOps
from PIL.JpegImagePlugin import get_sampling

from hybridge.errors import RequestError, TooLarge
from hybridge.protocol import WireTensor
from hybridge.protocol.media import read_picture, write_picture

PLENTY = 10**6


def noise(*shape: int, seed: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray[Any, Any]:
    """A picture that lossy formats keep: slow gradients in each channel."""
    y, x = np.mgrid[0:height, 0:width]
    channels = (255 * x / width, 255 * y / height, 255 * (x + y) / (height + width))
    return np.stack(channels, axis=-1).astype(np.uint8)


def saved(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def pixels(data: bytes, **arguments: int) -> np.ndarray[Any, Any]:
    tensor = read_picture(data, **{"max_pixels": PLENTY, **arguments})
    assert tensor.dtype == "uint8"
    assert tensor.shape[0] == 1
    assert tensor.shape[3] == 3
    return tensor.to_numpy()[0]


def as_diffusers(data: bytes) -> np.ndarray[Any, Any]:
    """``load_image`` and ``VaeImageProcessor``, as a pipeline would: (H, W, 3), 0 to 255."""
    with Image.open(io.BytesIO(data)) as image:
        if "transparency" in image.info and image.mode == "P":
            image = image.convert("RGBA")  # what Pillow's own warning asks for
        upright = load_image(image)
    tensor = VaeImageProcessor(vae_scale_factor=8).preprocess(upright)[0]
    return ((tensor + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


def test_rgb_is_read_pixel_for_pixel() -> None:
    array = noise(16, 24, 3)
    assert (pixels(saved(Image.fromarray(array))) == array).all()
    assert (pixels(saved(Image.fromarray(array), "WEBP", lossless=True)) == array).all()


def test_alpha_is_dropped_and_not_blended() -> None:
    array = noise(16, 24, 4)
    array[:4, :, 3] = 0
    expected = array[..., :3]
    assert (pixels(saved(Image.fromarray(array, "RGBA"))) == expected).all()
    webp = saved(Image.fromarray(array, "RGBA"), "WEBP", lossless=True, exact=True)
    assert (pixels(webp) == expected).all()


def test_grey() -> None:
    array = noise(16, 24)
    expected = np.repeat(array[..., None], 3, axis=-1)
    assert (pixels(saved(Image.fromarray(array))) == expected).all()
    grey_alpha = np.dstack([array, noise(16, 24, seed=2)])
    assert (pixels(saved(Image.fromarray(grey_alpha, "LA"))) == expected).all()


def test_one_bit() -> None:
    array = noise(16, 24) > 127
    expected = np.repeat(array[..., None] * np.uint8(255), 3, axis=-1)
    assert (pixels(saved(Image.fromarray(array))) == expected).all()


@pytest.mark.parametrize("transparency", [None, 3, bytes([0, 128, 255, 7])])
def test_palette(transparency: object) -> None:
    index, palette = noise(16, 24) % 8, noise(8, 3, seed=2)
    image = Image.frombytes("P", (24, 16), index.tobytes())
    image.putpalette(palette.tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    assert (pixels(saved(image, **options)) == palette[index]).all()


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_transparent_colour_stays_what_it_is(mode: str) -> None:
    array = noise(16, 24, 3) if mode == "RGB" else noise(16, 24)
    data = saved(Image.fromarray(array), transparency=(1, 2, 3) if mode == "RGB" else 5)
    assert b"tRNS" in data
    assert (pixels(data) == (array if mode == "RGB" else array[..., None])).all()


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    values = np.linspace(0, 65535, 16 * 24).round().astype(np.uint16).reshape(16, 24)
    data = saved(Image.fromarray(values))
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode.startswith("I")
    expected = np.round(values / 257.0).astype(np.uint8)
    assert expected.min() == 0
    assert expected.max() == 255
    assert (pixels(data) == expected[..., None]).all()


def test_cmyk_jpeg() -> None:
    data = saved(Image.fromarray(smooth(16, 24)).convert("CMYK"), "JPEG", quality=95)
    assert (pixels(data) == as_diffusers(data)).all()
    assert np.abs(pixels(data).astype(int) - smooth(16, 24)).mean() < 4  # not inverted


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_exif_turns_the_picture_upright(orientation: int, file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = saved(Image.fromarray(smooth(16, 24)), file_format, exif=exif, **options)
    array = pixels(data)
    assert array.shape == ((16, 24, 3) if orientation < 5 else (24, 16, 3))
    assert (array == as_diffusers(data)).all()
    if file_format == "JPEG":
        return
    # The EXIF standard's table: which corner the first stored row and column belong to.
    upright = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: a.transpose(1, 0, 2)[::-1],
    }[orientation]
    assert (array == upright(smooth(16, 24))).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1"])
@pytest.mark.parametrize(("size", "floored"), [((17, 9), (16, 8)), ((23, 31), (16, 24)), ((8, 15), (8, 8))])
def test_odd_sizes_shrink_to_multiples_of_eight_as_in_diffusers(
    mode: str, size: tuple[int, int], floored: tuple[int, int]
) -> None:
    image = Image.fromarray(noise(size[1], size[0], 4), "RGBA").convert("RGB").convert(mode)
    data = saved(image)
    array = pixels(data)
    assert array.shape == (floored[1], floored[0], 3)
    assert (array == as_diffusers(data)).all()


def test_multiple_is_the_callers() -> None:
    data = saved(Image.fromarray(noise(40, 33, 3)))
    assert pixels(data, multiple=16).shape == (32, 32, 3)
    assert pixels(data, multiple=1).shape == (40, 33, 3)


@pytest.mark.parametrize("size", [(7, 64), (64, 7), (1, 1)])
def test_too_small(size: tuple[int, int]) -> None:
    with pytest.raises(RequestError, match=f"saw {size[0]}×{size[1]}, expected at least 8×8"):
        read_picture(saved(Image.new("RGB", size)), max_pixels=PLENTY)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_read(file_format: str) -> None:
    frames = [noise(16, 24, 3, seed=seed) for seed in (1, 2, 3)]
    first, *rest = (Image.fromarray(frame) for frame in frames)
    data = saved(first, file_format, save_all=True, append_images=rest, lossless=True)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 3
    assert (pixels(data) == frames[0]).all()


# ------------------------------------------------------------------------------------ broken and hostile


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_cut_short(file_format: str) -> None:
    data = saved(Image.fromarray(noise(64, 64, 3)), file_format)
    for keep in (len(data) // 2, len(data) * 3 // 4, 20):
        with pytest.raises(RequestError, match="the picture file cannot be read") as caught:
            read_picture(data[:keep], max_pixels=PLENTY)
        assert type(caught.value) is RequestError


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x00\x00\x00\x00WEBP", b"x" * 99]
)
def test_garbage(data: bytes) -> None:
    with pytest.raises(RequestError, match=f"saw {len(data)} bytes"):
        read_picture(data, max_pixels=PLENTY)


@pytest.mark.parametrize("file_format", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_not_opened(file_format: str) -> None:
    with pytest.raises(RequestError, match="expected a whole PNG, JPEG or WebP file"):
        read_picture(saved(Image.new("RGB", (16, 16)), file_format), max_pixels=PLENTY)


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    zeros = zlib.compress(bytes(10_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zeros) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height", "max_pixels", "saw"),
    [
        (50_000, 50_000, PLENTY, "50000×50000 = 2500000000 pixels"),
        (50_000, 50_000, 10**10, "a decompression bomb"),  # Pillow's own limit stands
        (9_000, 9_000, PLENTY, "9000×9000 = 81000000 pixels"),
        (1_001, 1_000, PLENTY, "1001×1000 = 1001000 pixels"),
    ],
)
def test_a_bomb_is_refused_by_its_header(
    monkeypatch: pytest.MonkeyPatch, width: int, height: int, max_pixels: int, saw: str
) -> None:
    data = png_that_claims(width, height)
    assert len(data) < 200

    def must_not_load(self: object) -> None:
        raise AssertionError("pixels were asked for")  # would come back as a RequestError that is no TooLarge

    monkeypatch.setattr(ImageFile.ImageFile, "load", must_not_load)
    with pytest.raises(RequestError):  # Pillow's plugins have settled in before memory is measured
        read_picture(data, max_pixels=1)
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge) as caught:
            read_picture(data, max_pixels=max_pixels)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert caught.value.saw == saw
    assert caught.value.expected == f"at most {max_pixels} pixels"


def test_the_limit_itself_is_allowed() -> None:
    data = saved(Image.new("RGB", (16, 8)))
    assert read_picture(data, max_pixels=128).shape == (1, 8, 16, 3)
    with pytest.raises(TooLarge):
        read_picture(data, max_pixels=127)


# --------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize(("picture_format", "name"), [("png", "PNG"), ("webp", "WEBP")])
def test_lossless_formats_are_exact(picture_format: str, name: str) -> None:
    array = noise(1, 17, 33, 3)
    answer = write_picture(WireTensor.from_numpy(array), picture_format)  # type: ignore[arg-type]
    assert answer.media_type == f"image/{picture_format}"
    with Image.open(io.BytesIO(answer.data)) as image:
        assert (image.format, image.mode, image.size) == (name, "RGB", (33, 17))
        assert (np.asarray(image) == array[0]).all()


@pytest.fixture(params=["isal", "zlib"])
def deflate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library that most have, and what takes its place."""
    if request.param == "zlib":
        monkeypatch.setitem(sys.modules, "isal", None)
    else:
        pytest.importorskip("isal")


@pytest.mark.usefixtures("deflate")
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (40, 1), (3, 5), (64, 96)])
def test_png_is_what_other_readers_expect(height: int, width: int) -> None:
    array = noise(1, height, width, 3)
    array[:, height // 2 :] = smooth(height, width)[height // 2 :]
    data = write_picture(WireTensor.from_numpy(array), "png").data
    with Image.open(io.BytesIO(data)) as image:
        image.verify()  # the checksums, which loading does not look at
    with av.open(io.BytesIO(data), format="png_pipe", options={"err_detect": "crccheck+explode"}) as file:
        (frame,) = file.decode(video=0)
    assert (frame.to_ndarray(format="rgb24") == array[0]).all()


@pytest.mark.usefixtures("deflate")
def test_png_of_a_smooth_picture_is_small() -> None:
    array = smooth(256, 256)
    assert len(write_picture(WireTensor.from_numpy(array[None]), "png").data) < array.nbytes / 5


def test_jpeg_is_close_and_keeps_full_colour_resolution() -> None:
    array = smooth(64, 96)
    tensor = WireTensor.from_numpy(array[None])
    answer = write_picture(tensor, "jpeg")
    assert answer.media_type == "image/jpeg"
    with Image.open(io.BytesIO(answer.data)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (96, 64))
        assert get_sampling(image) == 0  # 4:4:4
        assert np.abs(np.asarray(image).astype(int) - array).max() <= 6
    assert write_picture(tensor, "jpeg", quality=95).data == answer.data
    assert len(write_picture(tensor, "jpeg", quality=30).data) < len(answer.data)


@pytest.mark.parametrize("picture_format", ["png", "webp"])
def test_picture_round_trip(picture_format: str) -> None:
    array = noise(1, 16, 24, 3)
    answer = write_picture(WireTensor.from_numpy(array), picture_format)  # type: ignore[arg-type]
    assert read_picture(answer.data, max_pixels=PLENTY) == WireTensor("uint8", (1, 16, 24, 3), array.tobytes())


def test_exif_orientation_is_not_written_back() -> None:
    answer = write_picture(WireTensor.from_numpy(noise(1, 8, 16, 3)), "png")
    with Image.open(io.BytesIO(answer.data)) as image:
        assert ImageOps.exif_transpose(image).size == (16, 8)


def test_errors_hold_no_addresses_in_memory() -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    data = file.getvalue()
    empty = data[:16] + bytes(8) + data[24:]  # of no pixels, as its header says
    with pytest.raises(RequestError) as refused:
        read_picture(empty, max_pixels=100)
    assert "0x" not in str(refused.value)
