"""diffusers' ``remote_decode`` and ``remote_encode``: the same arguments, the same results, without their defects.

Where diffusers 0.42 gives what was asked for, these give the same.  Where it fails after the work is done (an MP4
with the default ``return_type``, a tensor from ``output_type="pil"``), reads freed memory (latents on a GPU), sends
elements in the wrong order (non-contiguous latents) or waits for ever, these do what was meant.
Latents and images may be NumPy arrays too, and tensors then come back as NumPy arrays.

Each call opens a connection of its own, because a shared one would be global state; ``client=`` keeps one.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, overload

from ..protocol import DecodeRequest, EncodeRequest, Output, Scaling, WireTensor
from .client import Client
from .conversion import from_wire, image_to_wire, images_from_pixels, picture_format_from, to_wire
from .transport import ANSWER_TIMEOUT_S

if TYPE_CHECKING:
    import torch
    from diffusers.image_processor import VaeImageProcessor
    from diffusers.video_processor import VideoProcessor
    from PIL.Image import Image
    from typing_extensions import Unpack

    from .call_types import NumpyArray, PictureSource, Tensor

TensorT = TypeVar("TensorT", "torch.Tensor", "NumpyArray", WireTensor)


class _RemoteOptions(TypedDict, total=False):
    image_format: Literal["png", "jpg"]
    partial_postprocess: bool
    input_tensor_type: Literal["binary"]
    output_tensor_type: Literal["binary"]
    height: int | None
    width: int | None
    timeout: float | None
    client: Client | None


@overload
def remote_decode(
    endpoint: str,
    tensor: Tensor,
    processor: VaeImageProcessor | VideoProcessor | None = None,
    do_scaling: bool = True,
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
    *,
    output_type: Literal["mp4"],
    return_type: Literal["mp4", "pil", "pt"] = "pil",
    **options: Unpack[_RemoteOptions],
) -> bytes: ...
@overload
def remote_decode(
    endpoint: str,
    tensor: TensorT,
    processor: VaeImageProcessor | VideoProcessor | None = None,
    do_scaling: bool = True,
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
    *,
    output_type: Literal["pil", "pt"] = "pil",
    return_type: Literal["pt"],
    **options: Unpack[_RemoteOptions],
) -> TensorT: ...
@overload
def remote_decode(
    endpoint: str,
    tensor: Tensor,
    processor: None = None,
    do_scaling: bool = True,
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
    *,
    output_type: Literal["pil"] = "pil",
    return_type: Literal["pil"] = "pil",
    **options: Unpack[_RemoteOptions],
) -> Image: ...
@overload
def remote_decode(
    endpoint: str,
    tensor: Tensor,
    processor: VaeImageProcessor | VideoProcessor | None = None,
    do_scaling: bool = True,
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
    *,
    output_type: Literal["pil", "pt"] = "pil",
    return_type: Literal["pil"] = "pil",
    **options: Unpack[_RemoteOptions],
) -> Image | list[Image]: ...
@overload
def remote_decode(
    endpoint: str,
    tensor: Tensor,
    processor: VaeImageProcessor | VideoProcessor | None = None,
    do_scaling: bool = True,
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
    output_type: Literal["mp4", "pil", "pt"] = "pil",
    return_type: Literal["mp4", "pil", "pt"] = "pil",
    image_format: Literal["png", "jpg"] = "jpg",
    partial_postprocess: bool = False,
    input_tensor_type: Literal["binary"] = "binary",
    output_tensor_type: Literal["binary"] = "binary",
    height: int | None = None,
    width: int | None = None,
    *,
    timeout: float | None = ANSWER_TIMEOUT_S,
    client: Client | None = None,
) -> Image | list[Image] | bytes | Tensor: ...


def remote_decode(
    endpoint: str,
    tensor: Tensor,
    processor: VaeImageProcessor | VideoProcessor | None = None,
    do_scaling: bool = True,
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
    output_type: Literal["mp4", "pil", "pt"] = "pil",
    return_type: Literal["mp4", "pil", "pt"] = "pil",
    image_format: Literal["png", "jpg"] = "jpg",
    partial_postprocess: bool = False,
    input_tensor_type: Literal["binary"] = "binary",
    output_tensor_type: Literal["binary"] = "binary",
    height: int | None = None,
    width: int | None = None,
    *,
    timeout: float | None = ANSWER_TIMEOUT_S,
    client: Client | None = None,
) -> Image | list[Image] | bytes | Tensor:
    """Decodes latents at ``endpoint``.

    Args:
        endpoint: The full URL to post to; its query, prefix and ``user:token@`` are kept.
        tensor: Latents (B, C, H, W), (B, C, F, H, W), or packed (B, S, C) with ``height`` and ``width``.
        processor: Makes the pictures of ``output_type="pt"``; with ``"pil"`` its presence asks for the pixels as a
            tensor, and gives a list.
        do_scaling: Whether the server scales: by the factors, or without a ``scaling_factor`` as the model's own
            pipeline does.
        scaling_factor: z / scaling_factor + shift_factor.
        output_type: What travels: a picture file, a tensor, or an MP4.
        return_type: What is returned: PIL images or a tensor; an MP4 is always bytes.
        image_format: The file that a picture travels in.
        partial_postprocess: With ``output_type="pt"``, whether uint8 (N, H, W, 3) travels, not floats in [-1, 1].
        input_tensor_type, output_tensor_type: Ignored: tensors travel as binary, as they do in diffusers.
        timeout: Seconds to wait for the answer, if there is no ``client``.
        client: A client of the same server, whose connections, timeout, retries and key are then used.

    Raises:
        ClientError: as :class:`Client` has them.
        ValueError: for packed latents without a size, and for types that do not exist or do not go together.
    """
    latents, kind = to_wire(tensor)
    if len(latents.shape) == 3 and height is None and width is None:
        raise ValueError("`height` and `width` required for packed latents.")
    output = _wire_output(output_type, return_type, partial_postprocess, has_processor=processor is not None)
    has_size = height is not None and width is not None
    request = DecodeRequest(
        latents,
        scaling=Scaling.of(bool(do_scaling), scaling_factor, shift_factor),
        output=output,
        picture_format=picture_format_from(image_format),
        height=height if has_size else None,
        width=width if has_size else None,
    )
    with _caller(client, endpoint, timeout) as caller:
        reply = caller.send(request, endpoint=endpoint)
    if output == "video":
        return reply.file()
    if output == "picture":
        picture = reply.picture()
        image = picture.convert("RGB")
        image.format = (picture.format or "unknown").lower()
        return image
    if return_type == "pt":
        return from_wire(reply.tensor(), kind)
    if output == "pixels":
        images = images_from_pixels(reply.tensor())
        return images[0] if len(images) == 1 else images
    if output == "unit":
        return images_from_pixels(_pixels_from_unit(reply.tensor()))
    return _postprocess(processor, from_wire(reply.tensor(), "torch"))


@overload
def remote_encode(
    endpoint: str,
    image: TensorT,
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
    *,
    timeout: float | None = ANSWER_TIMEOUT_S,
    client: Client | None = None,
) -> TensorT: ...
@overload
def remote_encode(
    endpoint: str,
    image: PictureSource,
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
    *,
    timeout: float | None = ANSWER_TIMEOUT_S,
    client: Client | None = None,
) -> Tensor: ...
def remote_encode(
    endpoint: str,
    image: Tensor | PictureSource,
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
    *,
    timeout: float | None = ANSWER_TIMEOUT_S,
    client: Client | None = None,
) -> Tensor:
    """Encodes a picture at ``endpoint`` to latents (N, C, H, W).

    Args:
        endpoint: The full URL to post to; its query, prefix and ``user:token@`` are kept.
        image: A PIL image, or a tensor (N, 3, H, W); all else that :meth:`Client.encode` takes is taken too.
        scaling_factor: (z - shift_factor) * scaling_factor; without it the latents are in the VAE's own space.
        timeout: Seconds to wait for the answer, if there is no ``client``.
        client: A client of the same server, whose connections, timeout, retries and key are then used.

    Raises:
        ClientError: as :class:`Client` has them.
    """
    content, kind = image_to_wire(image)
    request = EncodeRequest(content, Scaling.of(None, scaling_factor, shift_factor))
    with _caller(client, endpoint, timeout) as caller:
        reply = caller.send(request, endpoint=endpoint)
    return from_wire(reply.tensor(), kind)


def _caller(
    client: Client | None, endpoint: str, timeout: float | None
) -> contextlib.AbstractContextManager[Client]:
    return Client(endpoint, timeout=timeout) if client is None else contextlib.nullcontext(client)


def _wire_output(output_type: str, return_type: str, partial_postprocess: bool, *, has_processor: bool) -> Output:
    """What has to travel, so that what was asked for can be returned."""
    for name, value in (("output_type", output_type), ("return_type", return_type)):
        if value not in ("mp4", "pil", "pt"):
            raise ValueError(f"`{name}` is {value!r}; expected 'mp4', 'pil' or 'pt'.")
    if output_type == "mp4":
        return "video"
    if return_type == "mp4":
        raise ValueError("`return_type='mp4'` needs `output_type='mp4'`.")
    if output_type == "pil":
        return "picture" if return_type == "pil" and not has_processor else "unit"
    if partial_postprocess or (return_type == "pil" and not has_processor):
        return "pixels"
    return "signed"


def _pixels_from_unit(unit: WireTensor) -> WireTensor:
    """Floats (N, 3, H, W) in [0, 1] as uint8 (N, H, W, 3)."""
    import numpy as np

    floats = unit.to_numpy().astype(np.float32).transpose(0, 2, 3, 1)
    return WireTensor.from_numpy((floats * 255).round().astype(np.uint8))


def _postprocess(processor: Any, signed: torch.Tensor) -> Image | list[Image]:
    """The first picture, or the frames of the first video.  A VideoProcessor is an image processor too."""
    if hasattr(processor, "postprocess_video"):
        return processor.postprocess_video(signed, output_type="pil")[0]  # type: ignore[no-any-return]
    return processor.postprocess(signed, output_type="pil")[0]  # type: ignore[no-any-return]
