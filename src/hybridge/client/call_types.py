"""The types of a client's arguments and results, for type checkers and editors.

The type of a call's result depends on ``output``, or on ``kind`` and the type of the input; the overloads use the
types and options from here.  The libraries of these types are imported only for type checkers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

from ..protocol import PictureFormat, ValueRange, VideoOptions
from .flow_types import FrameProgress, Progress
from .precision import Precision
from .queue import Order

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from PIL.Image import Image

    from ..protocol import WireTensor

    TorchTensor: TypeAlias = torch.Tensor
    NumpyArray: TypeAlias = np.ndarray[Any, np.dtype[Any]]
    Tensor: TypeAlias = TorchTensor | NumpyArray | WireTensor
    #: The input of a decode.
    Latents: TypeAlias = Tensor | str | Path
    #: A Pillow image, or a picture file: its path or its bytes.
    PictureSource: TypeAlias = Image | str | Path | bytes | bytearray
    #: The input of an encode.
    Encodable: TypeAlias = Tensor | PictureSource
    #: The result of ``output="picture"``: a list for a batch.
    Pictures: TypeAlias = Image | list[Image]
    #: The result of a decode whose ``output`` is not known to a type checker.
    Decoded: TypeAlias = Pictures | bytes | Tensor

#: The outputs that are returned as a tensor of the same kind as the latents.
TensorOutput = Literal["unit", "signed", "pixels"]

#: The file format in which a picture is sent; ``jpg`` is diffusers' name for ``jpeg``.
ImageFormat = Literal["jpg"] | PictureFormat


class _SharedOptions(TypedDict, total=False):
    model: str | None
    scaling_factor: float | None
    shift_factor: float | None
    do_scaling: bool | None
    deadline_s: float | None


class _DecodeOptions(_SharedOptions, total=False):
    height: int | None
    width: int | None
    quality: int | None
    quantize: Precision | None
    metadata: bool
    decode_timestep: float | None
    decode_noise_scale: float | None
    seed: int | None
    decode_chunk_size: int | None
    image: Image | Tensor | None
    mask: Image | Tensor | None


class DecodeItemOptions(_DecodeOptions, total=False):
    """The options of a decode besides ``output`` and ``progress``."""

    image_format: ImageFormat
    video: VideoOptions


class DecodeVideoOptions(_DecodeOptions, total=False):
    """The options of :meth:`Client.decode_video` besides ``to``."""

    video: VideoOptions | None
    on_frame: FrameProgress | None
    progress: Progress | None


class EncodeItemOptions(_SharedOptions, total=False):
    """The options of an encode besides ``kind`` and ``progress``."""

    value_range: ValueRange
    sample: bool
    seed: int | None
    drop_frames: bool


class _CallOptions(TypedDict, total=False):
    progress: Progress | None


class DecodeOptions(DecodeItemOptions, _CallOptions, total=False):
    """The options of :meth:`Client.decode` besides ``output``."""


class EncodeOptions(EncodeItemOptions, _CallOptions, total=False):
    """The options of :meth:`Client.encode` besides ``kind``."""


class _QueueOptions(TypedDict, total=False):
    limit: int
    order: Order
    progress: bool | Callable[..., Any]
    total: int | None
    stop_on_error: bool


class DecodeQueueOptions(DecodeItemOptions, _QueueOptions, total=False):
    """The options of :meth:`Client.decode_queue` besides ``output`` and ``callback``."""


class EncodeQueueOptions(EncodeItemOptions, _QueueOptions, total=False):
    """The options of :meth:`Client.encode_queue` besides ``kind`` and ``callback``."""
