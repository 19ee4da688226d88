"""Convert tensors, arrays, pictures and named arguments between the caller's types and the protocol's.

Values of torch, NumPy and Pillow are recognised without importing these: a value exists only after its import.
"""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

from ..errors import BadAnswer, RequestError
from ..protocol import (
    DecodeRequest,
    LatentsFile,
    PictureFile,
    PictureFormat,
    VideoFile,
    WireTensor,
    read_latents,
    sniff_picture,
    sniff_video,
)
from .reply import warn_caller

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image

#: The libraries' forms of a tensor.
Kind = Literal["torch", "numpy", "wire"]

#: Side of a packed token in pixels: it has 2×2 latents of 8×8 pixels each.
_TOKEN_PIXELS = 16

#: Pillow's modes that a PNG supports.  The server converts each of these to RGB in its documented way.
_PNG_MODES = frozenset({"1", "L", "LA", "I;16", "P", "RGB", "RGBA"})


def to_wire(value: Any) -> tuple[WireTensor, Kind]:
    """Convert a tensor from any device and in any memory layout; return it with its kind.

    Raises:
        RequestError: for any other value, and for a dtype that the wire does not support.
    """
    if isinstance(value, WireTensor):
        return value, "wire"
    if _is_a(value, "torch", "Tensor"):
        from ..protocol.torch import from_torch

        return from_torch(value), "torch"
    if _is_a(value, "numpy", "ndarray"):
        return WireTensor.from_numpy(value), "numpy"
    raise RequestError(
        "this cannot be sent as a tensor",
        saw=type(value).__name__,
        expected="a torch tensor, a NumPy array, a WireTensor, or for latents the path of a file",
    )


def latents_of_file(path: str | Path) -> tuple[LatentsFile, Kind]:
    """Return a file's latents with what it says about them, and the best kind installed here.

    Raises:
        RequestError: for a file that :func:`~hybridge.protocol.read_latents` refuses.
        OSError: for a file that does not exist or cannot be read.
    """
    return read_latents(path), best_kind()


def checked_kind(kind: Kind | None) -> Kind | None:
    """Return ``kind``; raise :class:`RequestError` if there is none of this name."""
    if kind is not None and kind not in get_args(Kind):
        raise RequestError("unknown kind of tensors", saw=repr(kind)[:60], expected=", ".join(get_args(Kind)))
    return kind


@overload
def from_wire(tensor: WireTensor, kind: Literal["torch"]) -> torch.Tensor: ...
@overload
def from_wire(tensor: WireTensor, kind: Literal["numpy"]) -> np.ndarray[Any, np.dtype[Any]]: ...
@overload
def from_wire(tensor: WireTensor, kind: Kind) -> torch.Tensor | np.ndarray[Any, np.dtype[Any]] | WireTensor: ...
def from_wire(tensor: WireTensor, kind: Kind) -> Any:
    """Return a tensor as a torch CPU tensor, a NumPy array (bfloat16 as float32), or unchanged."""
    if kind == "torch":
        from ..protocol.torch import to_torch

        return to_torch(tensor)
    if kind == "numpy":
        import numpy as np

        # The received bytes are read-only; the caller's array should be writable.
        return np.require(tensor.to_numpy(), requirements="W")
    return tensor


def image_to_wire(image: Any, *, is_video: bool = False) -> tuple[PictureFile | VideoFile | WireTensor, Kind]:
    """Convert any input of :meth:`Client.encode`; return it with the kind for the latents.

    For pictures and files this is the best kind installed here: torch, else NumPy, else WireTensor.

    Args:
        image: A picture, a video, or a tensor.
        is_video: Whether a GIF is a video; else its first frame is sent.

    Raises:
        RequestError: for a value that is none of these.
        OSError: for a file that does not exist or cannot be read.
    """
    if isinstance(image, (str, Path)):
        return _file(Path(image).read_bytes(), is_video), best_kind()
    if isinstance(image, (bytes, bytearray)):
        return _file(bytes(image), is_video), best_kind()
    if isinstance(image, (list, tuple)):
        return _frames(image)
    if _is_a(image, "PIL.Image", "Image"):
        return PictureFile(_write_png(image)), best_kind()
    tensor, kind = to_wire(image)
    if tensor.dtype == "uint8" and len(tensor.shape) == 3 and tensor.shape[-1] == 3:
        tensor = WireTensor("uint8", (1, *tensor.shape), tensor.data)
    return tensor, kind


def shown_to_wire(value: Any, mode: Literal["RGB", "L"]) -> WireTensor | None:
    """Convert the image or the mask of :meth:`Client.decode`; None stays None.

    A PIL image becomes uint8 (1, H, W, 3), or in the mode ``L`` (1, H, W), and a boolean array 0 and 255.

    Raises:
        RequestError: for a value that is neither a PIL image nor an array.
    """
    if value is None:
        return None
    if _is_a(value, "PIL.Image", "Image"):
        converted = value.convert(mode)
        shape = (1, converted.height, converted.width, *((3,) if mode == "RGB" else ()))
        return WireTensor("uint8", shape, converted.tobytes())
    if _is_a(value, "torch", "Tensor") and value.dtype == sys.modules["torch"].bool:
        value = value.byte() * 255
    elif _is_a(value, "numpy", "ndarray") and value.dtype.name == "bool":
        value = value.astype("uint8") * 255
    return to_wire(value)[0]


def pictures_of(request: DecodeRequest) -> list[DecodeRequest]:
    """Split a request into those for one picture each, whose latents keep their batch axes.

    With four axes, the first is a batch.  With three, it is a batch if the second is the number of tokens (16×16
    pixels each) of a picture of the request's size.  All other latents are one picture.
    """
    latents = request.latents
    tokens = (request.height or 0) // _TOKEN_PIXELS * ((request.width or 0) // _TOKEN_PIXELS)
    has_batch = len(latents.shape) == 4 or (len(latents.shape) == 3 and latents.shape[1] == tokens)
    if not has_batch or latents.shape[0] == 1:
        return [request]
    count = latents.shape[0]
    images = _items_or_one(request.image, count, least_axes=4)
    masks = _items_or_one(request.mask, count, least_axes=3)
    parts = zip(_items(latents, count), images, masks, strict=True)
    return [replace(request, latents=one, image=image, mask=mask) for one, image, mask in parts]


def _items_or_one(tensor: WireTensor | None, count: int, *, least_axes: int) -> Sequence[WireTensor | None]:
    """Return the ``count`` items of a tensor; one of another length, or of fewer axes, is the same for all."""
    if tensor is None or tensor.shape[0] != count or len(tensor.shape) < least_axes:
        return [tensor] * count
    return _items(tensor, count)


def _items(tensor: WireTensor, count: int) -> list[WireTensor]:
    elements = memoryview(tensor.data)
    step = elements.nbytes // count
    shape = (1, *tensor.shape[1:])
    return [
        WireTensor(tensor.dtype, shape, elements[start : start + step], tensor.channels_last)
        for start in range(0, elements.nbytes, step)
    ]


def images_from_pixels(pixels: WireTensor) -> list[Image]:
    """Return the pictures in a uint8 tensor (N, H, W, 3).

    Raises:
        BadAnswer: for any other tensor.
    """
    from PIL import Image

    if pixels.dtype != "uint8" or len(pixels.shape) != 4 or pixels.shape[-1] != 3:
        saw = f"{pixels.dtype} {list(pixels.shape)}"
        raise BadAnswer("the tensor that came holds no pictures", saw=saw, expected="uint8 [N, H, W, 3]")
    count, height, width, _ = pixels.shape
    elements, step = memoryview(pixels.data), height * width * 3
    return [
        Image.frombytes("RGB", (width, height), bytes(elements[index * step : (index + 1) * step]))
        for index in range(count)
    ]


def picture_format_from(name: str) -> PictureFormat:
    """Return the protocol's name of a format; diffusers' ``jpg`` is accepted, too."""
    for known in get_args(PictureFormat):
        if name == known or (name == "jpg" and known == "jpeg"):
            return known  # type: ignore[no-any-return] # get_args returns Any
    raise RequestError("unknown image_format", saw=repr(name), expected="one of jpg, png, webp")


def _is_a(value: object, module: str, name: str) -> bool:
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, getattr(loaded, name))


def best_kind() -> Kind:
    """Return the first of torch and NumPy that is installed, else ``wire``."""
    if importlib.util.find_spec("torch") is not None:
        return "torch"
    return "numpy" if importlib.util.find_spec("numpy") is not None else "wire"


def _file(data: bytes, is_video: bool) -> PictureFile | VideoFile:
    found = sniff_video(data)
    return VideoFile(data) if found and (is_video or found != "image/gif") else _picture_file(data)


def _frames(frames: Sequence[Any]) -> tuple[WireTensor, Kind]:
    """Return the frames of a video, or pictures of one size, as uint8 (F, H, W, 3).

    Args:
        frames: PIL images, or uint8 (H, W, 3) of torch or NumPy.
    """
    kind: Kind = best_kind()
    shape: tuple[int, ...] = ()
    data = bytearray()
    for index, frame in enumerate(frames):
        if _is_a(frame, "PIL.Image", "Image"):
            rgb = _upright(frame).convert("RGB")
            tensor = WireTensor("uint8", (rgb.height, rgb.width, 3), rgb.tobytes())
        else:
            tensor, kind = to_wire(frame)
        if tensor.dtype != "uint8" or len(tensor.shape) != 3 or tensor.shape[2] != 3:
            raise RequestError(
                f"frame {index} is not a picture",
                saw=f"{tensor.dtype} {list(tensor.shape)}",
                expected="PIL images, or uint8 (H, W, 3)",
                hint="floats as one tensor (1, 3, F, H, W)",
            )
        if shape and tensor.shape != shape:
            raise RequestError(
                "the frames have different sizes",
                saw=f"{shape[1]}×{shape[0]}, and frame {index} has {tensor.shape[1]}×{tensor.shape[0]}",
                expected="one size",
            )
        shape = tensor.shape
        data += tensor.data
    if not shape:
        raise RequestError("a video without frames", saw="an empty list", expected="at least one frame")
    return WireTensor("uint8", (len(frames), *shape), data), kind


def _picture_file(data: bytes) -> PictureFile:
    """Return a PNG, JPEG or WebP file unchanged; convert any other file that Pillow reads to PNG."""
    if sniff_picture(data) is not None:
        return PictureFile(data)
    try:
        from PIL import Image

        with Image.open(io.BytesIO(data)) as picture:
            if getattr(picture, "n_frames", 1) > 1:
                warn_caller("of the animation the first frame was read")
            return PictureFile(_write_png(picture))
    except (ImportError, OSError) as error:
        raise RequestError(
            "this is not a picture",
            saw=f"{len(data)} bytes beginning with {data[:12]!r} ({type(error).__name__})",
            expected="a PNG, JPEG or WebP file, or with Pillow installed any that it reads",
        ) from None


def _upright(picture: Image) -> Image:
    """Return a picture as its file says that it is shown, which is how the file itself would be read.

    Only pictures that come straight from a file are rotated: others may have been rotated by the caller.
    """
    if not _is_a(picture, "PIL.ImageFile", "ImageFile"):
        return picture
    from PIL import ImageOps

    picture.load()  # after which TIFF files have been rotated
    return ImageOps.exif_transpose(picture)


def _write_png(picture: Image) -> bytes:
    file = io.BytesIO()
    picture = _upright(picture)
    if picture.mode == "I":  # 32 bits; pictures use 16 of them
        picture = picture.convert("I;16")
    # Level 1 takes a quarter of the time of Pillow's default and gives a few per cent more bytes.
    (picture if picture.mode in _PNG_MODES else picture.convert("RGB")).save(file, "PNG", compress_level=1)
    return file.getvalue()
