"""What works where no server can: a VAE of the caller's own, on the caller's machine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ..errors import ClientError, RequestError
from ..models import ModelSpec, latents_layout, spec_from_config
from ..protocol import (
    Answer,
    DecodeRequest,
    EncodeRequest,
    FileAnswer,
    PictureFile,
    Request,
    Scaling,
    TensorAnswer,
)
from .steps import Local

#: A diffusers VAE, or a function that answers a request of :mod:`hybridge.protocol`.
Fallback = Any

#: No fallback is asked for more than a machine has room for; the caller chose the size of the picture.
_MAX_PIXELS = 2**28


def local_of(fallback: Fallback) -> Local:
    """The fallback as a function of a request.

    Raises:
        ClientError: for what is neither a VAE nor a function.
    """
    if all(hasattr(fallback, name) for name in ("config", "decode", "encode")):
        return LocalVae(fallback)
    if isinstance(fallback, Callable):  # type: ignore[arg-type] # mypy has no callable test for Any
        return fallback  # type: ignore[no-any-return]
    raise ClientError(
        "this cannot be a fallback",
        saw=type(fallback).__name__,
        expected="a diffusers VAE, or a function from a Request to an Answer",
    )


class LocalVae:
    """A diffusers AutoencoderKL or AutoencoderTiny that answers requests as a server with it would.

    One request at a time, in the VAE's own dtype and on its own device.

    Args:
        vae: The module.
    """

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        config = {**vae.config, "_class_name": type(vae).__name__}
        self._spec = spec_from_config("the fallback", "the caller's VAE", None, config)
        self._turn = threading.Lock()

    def __call__(self, request: Request) -> Answer:
        """The answer to a request.

        Raises:
            RequestError: for what this VAE cannot do.
        """
        import torch

        with self._turn, torch.inference_mode():
            return self._decode(request) if isinstance(request, DecodeRequest) else self._encode(request)

    def _decode(self, request: DecodeRequest) -> Answer:
        from ..protocol.media import write_picture
        from ..protocol.torch import from_torch, to_torch

        if request.output == "video":
            raise RequestError("the fallback makes no videos", saw="output='video'", expected="a server")
        latents = _unpacked(to_torch(request.latents), request, self._spec).to(self._vae.device, self._vae.dtype)
        signed = self._vae.decode(_unscaled(latents, request.scaling, self._spec), return_dict=False)[0]
        if request.output == "signed":
            return TensorAnswer(from_torch(signed))
        unit = (signed.float() / 2 + 0.5).clamp(0, 1)
        if request.output == "unit":
            return TensorAnswer(from_torch(unit.to(signed.dtype)))
        pixels = from_torch((unit * 255).round().byte().permute(0, 2, 3, 1))
        if request.output == "pixels":
            return TensorAnswer(pixels)
        picture: FileAnswer = write_picture(pixels, request.picture_format, quality=request.quality)
        return picture

    def _encode(self, request: EncodeRequest) -> Answer:
        import torch

        from ..protocol.torch import from_torch

        signed = _signed(request, self._spec).to(self._vae.device, self._vae.dtype)
        encoded = self._vae.encode(signed)
        if request.moments:
            if self._spec.kind == "tiny":
                raise RequestError("the fallback has no posterior", saw="moments=True to a tiny autoencoder")
            return TensorAnswer(from_torch(encoded.latent_dist.parameters))
        if self._spec.kind == "tiny":
            z = encoded.latents
        elif request.sample:
            generator = None if request.seed is None else torch.Generator().manual_seed(request.seed)
            z = encoded.latent_dist.sample(generator)
        else:
            z = encoded.latent_dist.mode()
        return TensorAnswer(from_torch(_scaled(z, request.scaling, self._spec)))


def _unpacked(latents: Any, request: DecodeRequest, spec: ModelSpec) -> Any:
    """(B, C, h, w), of the layouts that :func:`latents_layout` knows."""
    layout = latents_layout(request.latents.shape, spec, request.height, request.width)
    shape = (layout.batch, layout.channels, layout.height, layout.width)
    if not layout.is_packed:
        return latents.reshape(shape)
    tokens = latents.reshape(layout.batch, layout.height // 2, layout.width // 2, layout.channels, 2, 2)
    return tokens.permute(0, 3, 1, 4, 2, 5).reshape(shape)


def _factors(scaling: Scaling, spec: ModelSpec) -> tuple[float, float] | None:
    """(scale, shift) that a request means; None for the VAE's own space."""
    if scaling.by == "none":
        return None
    own = spec.normalisation
    if scaling.by == "given":
        return scaling.scaling_factor or 1.0, scaling.shift_factor or 0.0
    return own.scaling_factor, own.shift_factor if scaling.shift_factor is None else scaling.shift_factor


def _unscaled(latents: Any, scaling: Scaling, spec: ModelSpec) -> Any:
    factors = _factors(scaling, spec)
    if factors is None or spec.kind == "tiny":  # a tiny autoencoder eats a pipeline's latents as they are
        return latents
    return latents / factors[0] + factors[1]


def _scaled(latents: Any, scaling: Scaling, spec: ModelSpec) -> Any:
    factors = _factors(scaling, spec)
    if factors is None or spec.kind == "tiny":
        return latents
    return (latents - factors[1]) * factors[0]


def _signed(request: EncodeRequest, spec: ModelSpec) -> Any:
    """Pixels (B, 3, H, W) in [-1, 1], of whatever was to be encoded."""
    from ..protocol.media import read_picture
    from ..protocol.torch import to_torch

    image = request.image
    if isinstance(image, PictureFile):
        image = read_picture(image.data, max_pixels=_MAX_PIXELS, multiple=spec.spatial_factor)
    pixels = to_torch(image)
    if len(image.shape) == 3:
        pixels = pixels[None]
    if image.dtype == "uint8":
        is_last = pixels.shape[-1] == 3
        return (pixels.permute(0, 3, 1, 2) if is_last else pixels).float() / 127.5 - 1
    is_signed = request.value_range == "signed" or (request.value_range == "auto" and bool((pixels < 0).any()))
    return pixels if is_signed else pixels * 2 - 1
