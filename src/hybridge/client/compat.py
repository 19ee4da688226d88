"""diffusers' ``remote_decode`` and ``remote_encode`` with the same arguments and results, without their bugs.

Where diffusers 0.42 gives the requested result, these give the same.  Where it fails after the work is done (an MP4
with the default ``return_type``, a tensor from ``output_type="pil"``), reads freed memory (latents on a GPU), sends
elements in the wrong order (non-contiguous latents) or waits for ever, these give the intended result.
Latents and images may also be NumPy arrays; tensors are then returned as NumPy arrays.

Each call opens a new connection, because a shared one would be global state; ``client=`` keeps a connection.
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
    """Decode latents at ``endpoint``.

    Args:
        endpoint: The full URL to post to; its query, prefix and ``user:token@`` are kept.
        tensor: Latents (B, C, H, W), (B, C, F, H, W), or packed (B, S, C) with ``height`` and ``width``.
        processor: Converts the tensor of ``output_type="pt"`` to pictures; with ``"pil"`` the pixels are then sent
            as a tensor, and a list is returned.
        do_scaling: Whether the server scales: by the factors, or if ``scaling_factor`` is None as the model's own
            pipeline does.
        scaling_factor: z / scaling_factor + shift_factor.
        output_type: The form in which the server sends the result: a picture file, a tensor, or an MP4.
        return_type: The type of the result: PIL images or a tensor; an MP4 is always bytes.
        image_format: The file format in which a picture is sent.
        partial_postprocess: With ``output_type="pt"``, whether uint8 (N, H, W, 3) is sent, not floats in [-1, 1].
        input_tensor_type, output_tensor_type: Ignored: tensors are sent as binary, as in diffusers.
        timeout: Seconds to wait for the answer, if ``client`` is None.
        client: A client of the same server, whose connections, timeout, retries and key are used.

    Raises:
        ClientError: as for :class:`Client`.
        ValueError: for packed latents without a size, and for types that do not exist or cannot be combined.
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
    """Encode a picture at ``endpoint`` to latents (N, C, H, W).

    Args:
        endpoint: The full URL to post to; its query, prefix and ``user:token@`` are kept.
        image: A PIL image, a tensor (N, 3, H, W), or any other input of :meth:`Client.encode`.
        scaling_factor: (z - shift_factor) * scaling_factor; if None, the latents are in the VAE's own space.
        timeout: Seconds to wait for the answer, if ``client`` is None.
        client: A client of the same server, whose connections, timeout, retries and key are used.

    Raises:
        ClientError: as for :class:`Client`.
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
    """Return the output to request from the server for the wanted result."""
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
    """Convert floats (N, 3, H, W) in [0, 1] to uint8 (N, H, W, 3)."""
    import numpy as np

    floats = unit.to_numpy().astype(np.float32).transpose(0, 2, 3, 1)
    return WireTensor.from_numpy((floats * 255).round().astype(np.uint8))


def _postprocess(processor: Any, signed: torch.Tensor) -> Image | list[Image]:
    """Return the first picture, or the frames of the first video.  A VideoProcessor is also an image processor."""
    if hasattr(processor, "postprocess_video"):
        return processor.postprocess_video(signed, output_type="pil")[0]  # type: ignore[no-any-return]
    return processor.postprocess(signed, output_type="pil")[0]  # type: ignore[no-any-return]
