"""The local fallback: the caller's own VAE, used when no server can answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ..errors import ClientError, RequestError
from ..models import CLASS_NAMES, ModelSpec, Normalisation, latent_space, latents_layout, spec_from_config
from ..protocol import (
    Answer,
    DecodeRequest,
    EncodeRequest,
    FileAnswer,
    Request,
    Scaling,
    TensorAnswer,
    WireTensor,
)
from .flow_types import Local

#: A diffusers VAE, or a function that answers a request of :mod:`hybridge.protocol`.
Fallback = Any

#: Most pixels of a local request: practically unlimited, because the caller chose the size of the picture.
_MAX_PIXELS = 2**28


def local_of(fallback: Fallback) -> Local:
    """Return the fallback as a function of a request.

    Raises:
        ClientError: for a value that is neither a VAE nor a function.
    """
    if all(hasattr(fallback, name) for name in ("config", "decode", "encode")):
        return LocalVae(fallback)
    if isinstance(fallback, Callable):  # type: ignore[arg-type] # mypy does not narrow Any to a callable
        return fallback  # type: ignore[no-any-return]
    raise ClientError(
        "this cannot be a fallback",
        saw=type(fallback).__name__,
        expected="a diffusers VAE, or a function from a Request to an Answer",
    )


class LocalVae:
    """A diffusers AutoencoderKL or AutoencoderTiny that answers requests as a server would.

    It runs one request at a time, in the VAE's own dtype and on its own device.

    Args:
        vae: The module.
    """

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        if not any(base.__name__ in CLASS_NAMES for base in type(vae).__mro__):
            raise ClientError(
                "this VAE cannot be a fallback", saw=type(vae).__name__, expected=" or ".join(CLASS_NAMES)
            )
        config = {**vae.config, "_class_name": type(vae).__name__}
        self._spec = spec_from_config("the fallback", "the caller's VAE", None, config)
        self._turn = threading.Lock()

    def __call__(self, request: Request) -> Answer:
        """Answer a request.

        Raises:
            RequestError: for a request that this VAE cannot answer.
        """
        import torch

        with self._turn, torch.inference_mode():
            return self._decode(request) if isinstance(request, DecodeRequest) else self._encode(request)

    def _decode(self, request: DecodeRequest) -> Answer:
        from ..protocol.media import write_picture
        from ..protocol.torch import from_torch, to_torch

        if request.output == "video":
            raise RequestError("the fallback makes no videos", saw="output='video'", expected="a server")
        if request.image is not None:
            raise RequestError("the fallback takes no image and mask", saw=type(self._vae).__name__)
        layout = latents_layout(request.latents.shape, self._spec, request.height, request.width)
        sent = _normalisation(request.scaling, self._spec)
        latents = latent_space.unpack(to_torch(request.latents), layout).to(self._vae.device, self._vae.dtype)
        z = latent_space.to_module(latents, self._spec, sent)
        signed = self._vae.decode(z, return_dict=False)[0]
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
        wanted = _normalisation(request.scaling, self._spec)
        return TensorAnswer(from_torch(latent_space.from_module(z, self._spec, wanted)))


def _normalisation(scaling: Scaling, spec: ModelSpec) -> Normalisation | None:
    return latent_space.normalisation_of(spec, scaling.by, scaling.scaling_factor, scaling.shift_factor)


def _signed(request: EncodeRequest, spec: ModelSpec) -> Any:
    """Return the input of an encode as pixels (B, 3, H, W) in [-1, 1]."""
    from ..protocol.torch import to_torch
    from ..protocol.video_reader import read_file

    image = request.image
    if not isinstance(image, WireTensor):
        image = read_file(image, is_video=spec.is_video, max_pixels=_MAX_PIXELS, multiple=spec.spatial_factor)
    pixels = to_torch(image)
    if len(image.shape) == 3:
        pixels = pixels[None]
    if image.dtype == "uint8":
        is_last = pixels.shape[-1] == 3
        return (pixels.permute(0, 3, 1, 2) if is_last else pixels).float() / 127.5 - 1
    is_signed = request.value_range == "signed" or (request.value_range == "auto" and bool((pixels < 0).any()))
    return pixels if is_signed else pixels * 2 - 1
