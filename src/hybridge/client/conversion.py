"""What callers hold and say ↔ what the wire carries: tensors, arrays, pictures, and arguments by name.

torch, NumPy and Pillow are recognised without being imported: a value of theirs can exist only once they are.
"""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

from ..errors import BadAnswer, RequestError
from ..protocol import (
    DecodeRequest,
    PictureFile,
    PictureFormat,
    Scaling,
    WireTensor,
    read_latents,
    sniff_picture,
)

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image

#: The forms in which a tensor comes and goes.
Kind = Literal["torch", "numpy", "wire"]

#: A packed token stands for 2×2 latents of 8×8 pixels each.
_TOKEN_PIXELS = 16

#: What a PNG can hold.  The server makes RGB of each of these in its own, documented way.
_PNG_MODES = frozenset({"1", "L", "LA", "I;16", "P", "RGB", "RGBA"})


def to_wire(value: Any) -> tuple[WireTensor, Kind]:
    """A tensor, from whatever device and in whatever memory layout, and the kind that it was.

    Raises:
        RequestError: for anything else, and for a dtype that the wire does not have.
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


def latents_of_file(path: str | Path) -> tuple[WireTensor, Kind, Scaling | None]:
    """The latents of a file, the best kind installed here, and the space that they are in where the file says so.

    Raises:
        RequestError: for a file that :func:`~hybridge.protocol.read_latents` refuses.
        OSError: for a file that is not there.
    """
    file = read_latents(path)
    return file.tensor, best_kind(), file.scaling


@overload
def from_wire(tensor: WireTensor, kind: Literal["torch"]) -> torch.Tensor: ...
@overload
def from_wire(tensor: WireTensor, kind: Literal["numpy"]) -> np.ndarray[Any, np.dtype[Any]]: ...
@overload
def from_wire(tensor: WireTensor, kind: Kind) -> torch.Tensor | np.ndarray[Any, np.dtype[Any]] | WireTensor: ...
def from_wire(tensor: WireTensor, kind: Kind) -> Any:
    """The same elements as a torch CPU tensor, as a NumPy array (bfloat16 as float32), or as they are."""
    if kind == "torch":
        from ..protocol.torch import to_torch

        return to_torch(tensor)
    if kind == "numpy":
        import numpy as np

        # The received bytes are read-only; a caller's array should not be.
        return np.require(tensor.to_numpy(), requirements="W")
    return tensor


def image_to_wire(image: Any) -> tuple[PictureFile | WireTensor, Kind]:
    """Anything that :meth:`Client.encode` takes, and the kind that its latents should have.

    For pictures and files that is the best kind installed here: torch, else NumPy, else WireTensor.

    Raises:
        RequestError: for what is neither a picture nor a tensor.
        OSError: for a file that is not there.
    """
    if isinstance(image, (str, Path)):
        return _picture_file(Path(image).read_bytes()), best_kind()
    if isinstance(image, (bytes, bytearray)):
        return _picture_file(bytes(image)), best_kind()
    if _is_a(image, "PIL.Image", "Image"):
        return PictureFile(_write_png(image)), best_kind()
    tensor, kind = to_wire(image)
    if tensor.dtype == "uint8" and len(tensor.shape) == 3 and tensor.shape[-1] == 3:
        tensor = WireTensor("uint8", (1, *tensor.shape), tensor.data)
    return tensor, kind


def pictures_of(request: DecodeRequest) -> list[WireTensor]:
    """Latents cut into those of one picture each, batch axes kept.

    Of three axes the first is a batch if the second counts the tokens of a picture of the request's size, 16×16
    pixels each; else they are one picture, and so is whatever has another number of axes.
    """
    latents = request.latents
    tokens = (request.height or 0) // _TOKEN_PIXELS * ((request.width or 0) // _TOKEN_PIXELS)
    has_batch = len(latents.shape) == 4 or (len(latents.shape) == 3 and latents.shape[1] == tokens)
    if not has_batch or latents.shape[0] == 1:
        return [latents]
    elements = memoryview(latents.data)
    step = elements.nbytes // latents.shape[0]
    shape = (1, *latents.shape[1:])
    return [
        WireTensor(latents.dtype, shape, elements[start : start + step], latents.channels_last)
        for start in range(0, elements.nbytes, step)
    ]


def images_from_pixels(pixels: WireTensor) -> list[Image]:
    """The pictures in a uint8 tensor (N, H, W, 3).

    Raises:
        BadAnswer: when it is another tensor.
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
    """``jpg``, as diffusers spells it, or one of the wire's own names."""
    for known in get_args(PictureFormat):
        if name == known or (name == "jpg" and known == "jpeg"):
            return known  # type: ignore[no-any-return] # get_args gives Any
    raise RequestError("unknown image_format", saw=repr(name), expected="one of jpg, png, webp")


def _is_a(value: object, module: str, name: str) -> bool:
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, getattr(loaded, name))


def best_kind() -> Kind:
    """The first of torch and NumPy that is installed, else ``wire``."""
    if importlib.util.find_spec("torch") is not None:
        return "torch"
    return "numpy" if importlib.util.find_spec("numpy") is not None else "wire"


def _picture_file(data: bytes) -> PictureFile:
    """A PNG, JPEG or WebP file as it is; any other kind that Pillow reads, as PNG."""
    if sniff_picture(data) is not None:
        return PictureFile(data)
    try:
        from PIL import Image

        with Image.open(io.BytesIO(data)) as picture:
            return PictureFile(_write_png(picture))
    except (ImportError, OSError) as error:
        raise RequestError(
            "this is not a picture",
            saw=f"{len(data)} bytes beginning with {data[:12]!r} ({type(error).__name__})",
            expected="a PNG, JPEG or WebP file, or with Pillow installed any that it reads",
        ) from None


def _write_png(picture: Image) -> bytes:
    file = io.BytesIO()
    if picture.mode == "I":  # 32 bits, of which pictures use 16
        picture = picture.convert("I;16")
    # Level 1 takes a quarter of the time of Pillow's default for a few per cent more bytes.
    (picture if picture.mode in _PNG_MODES else picture.convert("RGB")).save(file, "PNG", compress_level=1)
    return file.getvalue()
