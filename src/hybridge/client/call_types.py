"""The types of a client's arguments and results, for type checkers and editors.

What a call returns depends on its ``output``, or on its ``kind`` and on the type of its input; the overloads that
say so name the types and the options here.  Libraries whose types appear are imported for type checkers alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

from ..protocol import PictureFormat, ValueRange
from .flow_types import Progress
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
    #: What is decoded.
    Latents: TypeAlias = Tensor | str | Path
    #: A picture as Pillow has it, or a file of one: its path or its bytes.
    PictureSource: TypeAlias = Image | str | Path | bytes | bytearray
    #: What is encoded.
    Encodable: TypeAlias = Tensor | PictureSource
    #: The result of ``output="picture"``: a list for a batch.
    Pictures: TypeAlias = Image | list[Image]
    #: The result of a decode whose ``output`` is not known to a type checker.
    Decoded: TypeAlias = Pictures | bytes | Tensor

#: The outputs that come back as a tensor, of the kind that the latents were.
TensorOutput = Literal["unit", "signed", "pixels"]

#: The file that a picture travels in; ``jpg`` is diffusers' name for ``jpeg``.
ImageFormat = Literal["jpg"] | PictureFormat


class _SharedOptions(TypedDict, total=False):
    model: str | None
    scaling_factor: float | None
    shift_factor: float | None
    do_scaling: bool | None
    deadline_s: float | None


class DecodeItemOptions(_SharedOptions, total=False):
    """The options of a decode besides ``output`` and ``progress``."""

    height: int | None
    width: int | None
    image_format: ImageFormat
    quality: int | None
    quantize: Precision | None


class EncodeItemOptions(_SharedOptions, total=False):
    """The options of an encode besides ``kind`` and ``progress``."""

    value_range: ValueRange
    sample: bool
    seed: int | None


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
