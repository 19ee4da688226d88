"""A VAE of a server, for sockets of the type VAE.

ComfyUI's nodes call the methods of their own VAE class; this one has those that they use, with the same shapes and
ranges, and never the weights.

============================  ===========================================================================
latents, ``samples``          (B, C, h, w); of videos (B, C, f, h, w); floats, see :mod:`.latent_forms`
pixels                        (B, H, W, 3) floats in [0, 1]; decoded videos (B, F, H, W, 3)
============================  ===========================================================================
"""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable
from queue import SimpleQueue
from typing import Any

import torch

from hybridge.client import AsyncClient, Picture, Reply
from hybridge.errors import ServerRefused
from hybridge.protocol import DecodeRequest, EncodeRequest, Scaling, WireTensor
from hybridge.protocol.torch import from_torch, to_torch

from .background import Progress
from .latent_forms import LatentConversion, lacks_statistics
from .messages import NodeError
from .servers import Server

#: How pixels come back: as 8-bit levels, or as floats, which are four times as many bytes.
PRECISIONS = ("8-bit", "float")

#: The sides of latents that are decoded for no other reason than to have the model loaded.
_SMALL = 4

#: A request: made on the node's thread, sent on the event loop.
_Sent = Callable[[AsyncClient, Progress], Awaitable[WireTensor]]


class RemoteVAE:
    """A model of a server in the place of ComfyUI's VAE.

    Args:
        server: The server.
        facts: The model's entry of ``/v1/models``.
        precision: One of :data:`PRECISIONS`, for decoded pixels.

    Attributes:
        model: The server's name for the model.
        conversion: From a LATENT to the latents of the server's model, and back.
        latent_channels: C of the latents.
        latent_dim: 2 for pictures, 3 for latents with a frame axis.
        output_channels: Channels of decoded pictures: 3, or 4 with alpha.
        not_video, crop_input, device, output_device, vae_dtype, size: As ComfyUI's VAE has them.

    Raises:
        NodeError: for a class whose latents ComfyUI does not have, or has in another way.
    """

    def __init__(self, server: Server, facts: dict[str, Any], precision: str = PRECISIONS[0]) -> None:
        self.model = str(facts["name"])
        self._server = server
        self.conversion = LatentConversion(_loaded(server, facts) if lacks_statistics(facts) else facts)
        form = self.conversion.form
        # The server's own pixels have no alpha, which only the decoder's numbers have.
        self._output = "signed" if form.colours > 3 else "unit" if precision == "float" else "pixels"
        self._factor = _number(server, facts, "spatial_factor") * form.fold
        self._temporal = int(facts.get("temporal_factor") or 1)
        self._is_video = bool(facts.get("frames"))
        self._can_encode = "encode" in (facts.get("tasks") or ())
        self.latent_channels = _number(server, facts, "latent_channels") * form.fold**2
        self.latent_dim = 3 if self.conversion.has_frames else 2
        self.output_channels = form.colours
        self.not_video = False
        self.crop_input = True
        self.device = self.output_device = torch.device("cpu")
        self.vae_dtype = torch.float32
        self.size = 0
        self.patcher = None

    def __repr__(self) -> str:
        """Name the model and the profile: ComfyUI shows nodes' inputs in errors."""
        return f"RemoteVAE({self.model!r} on {self._server.profile!r})"

    # ---------------------------------------------------------------------------------------- what nodes call

    def decode(self, samples: torch.Tensor, vae_options: Any = None) -> torch.Tensor:
        """Decode latents to pixels.

        Args:
            samples: See above; (B, C, 1, h, w) is accepted for pictures, and (B, C, h, w) for videos of one frame.
            vae_options: Accepted because nodes pass it; of no meaning here.

        Raises:
            NodeError: for latents of another model, and every failure of the server.
        """
        return self._decode(samples)

    def _decode(self, samples: torch.Tensor, previews: SimpleQueue[Any] | None = None) -> torch.Tensor:
        latents = self._checked(samples)
        items = latents.split(1)
        works = [
            self._decoding(from_torch(self.conversion.to_server(item)), None if index else previews)
            for index, item in enumerate(items)
        ]
        pixels: list[torch.Tensor] = []

        def take(index: int, answer: WireTensor) -> None:
            # Allocated for the whole batch when the first answer says the size, and then filled in place.
            shape = self._pixels_shape(answer)
            if not pixels:
                pixels.append(torch.empty((len(items), *shape), dtype=torch.float32))
            self._fill(pixels[0][index], answer)

        self._server.call_all(works, take, shows_progress=True, previews=previews)
        return pixels[0]

    def decode_with_preview(self, samples: torch.Tensor) -> torch.Tensor:
        """Decode as :meth:`decode`, and show an approximation of the first picture before it is done.

        Models of videos, and servers without a preview for the model, decode without one.
        """
        if self._is_video:
            return self.decode(samples)
        return self._decode(samples, previews=SimpleQueue())

    def decode_tiled(self, samples: torch.Tensor, *sizes: Any, **named_sizes: Any) -> torch.Tensor:
        """Decode without tiles, whatever their sizes: the server fits it into its memory, without seams."""
        return self.decode(samples)

    def encode(self, pixel_samples: torch.Tensor, not_video: bool | None = None) -> torch.Tensor:
        """Encode pixels to latents: the mode of the VAE's posterior.

        Args:
            pixel_samples: (B, H, W, 3) or (B, F, H, W, 3) in [0, 1]; more channels are dropped, and the sides are
                cropped at their centre to multiples of the VAE's factor.  For a model of videos, (B, H, W, 3) is
                one video of B frames.
            not_video: Whether (B, H, W, 3) is B pictures for a model of videos, too.

        Raises:
            NodeError: for a decoder without an encoder, and every failure of the server.
        """
        return self._encode(pixel_samples, not_video, shows_progress=False)

    def encode_tiled(self, pixel_samples: torch.Tensor, *sizes: Any, **named: Any) -> torch.Tensor:
        """Encode without tiles, whatever their sizes."""
        return self._encode(pixel_samples, named.get("not_video"), shows_progress=True)

    def spacial_compression_decode(self) -> int:
        """Return the pixels of a latent on each side; the spelling is ComfyUI's."""
        return self._factor

    def spacial_compression_encode(self) -> int:
        """Return the same for encoding."""
        return self._factor

    def temporal_compression_decode(self) -> int | None:
        """Return the frames of a latent frame; None for pictures."""
        return self._temporal if self._is_video else None

    @property
    def downscale_ratio(self) -> Any:
        """Pixels of a latent on each side; for videos (frames → latent frames, height, width)."""
        if not self._is_video:
            return self._factor
        return (lambda frames: max(0, (frames + self._temporal - 1) // self._temporal), self._factor, self._factor)

    @property
    def upscale_ratio(self) -> Any:
        """The same for decoding; for videos (latent frames → frames, height, width)."""
        if not self._is_video:
            return self._factor
        return (lambda latent: max(0, 1 + (latent - 1) * self._temporal), self._factor, self._factor)

    @property
    def downscale_index_formula(self) -> tuple[int, int, int] | None:
        """Frames, height and width of a latent; None for pictures."""
        return (self._temporal, self._factor, self._factor) if self._is_video else None

    @property
    def upscale_index_formula(self) -> tuple[int, int, int] | None:
        """The same for decoding."""
        return self.downscale_index_formula

    def vae_encode_crop_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Crop (…, H, W, C) at the centre to multiples of the factor."""
        for axis in (-3, -2):
            side = pixels.shape[axis]
            whole = side // self._factor * self._factor
            pixels = pixels.narrow(axis, (side - whole) // 2, whole)
        return pixels

    def throw_exception_if_invalid(self) -> None:
        """Do nothing: a model that the server lacks was refused before."""

    def vae_output_dtype(self) -> torch.dtype:
        """Return the dtype of decoded pixels and of encoded latents."""
        return torch.float32

    def is_dynamic(self) -> bool:
        """Return False: nothing of it is in this machine's memory."""
        return False

    def model_size(self) -> int:
        """Return 0 bytes."""
        return 0

    def get_sd(self) -> dict[str, Any]:
        """Raise NodeError: there are no weights to save."""
        raise NodeError(f"The weights of {self.model!r} are on the server, so they cannot be saved from here.")

    @property
    def first_stage_model(self) -> Any:
        """Raise NodeError, for nodes that change the module itself."""
        raise NodeError(
            f"{self.model!r} runs on a server: a node that changes the VAE's own module needs a local VAE."
        )

    # ------------------------------------------------------------------------------------------ how it is done

    def _checked(self, samples: torch.Tensor) -> torch.Tensor:
        given, axes = list(samples.shape), 4 if self.latent_dim == 2 else 5
        if samples.ndim == 5 and axes == 4 and samples.shape[2] == 1:
            samples = samples[:, :, 0]
        if samples.ndim == 4 and axes == 5:
            samples = samples.unsqueeze(2)
        is_one = self._is_video or samples.ndim != 5 or samples.shape[2] == 1
        if samples.ndim != axes or samples.shape[1] != self.latent_channels or not is_one:
            what = "videos" if self._is_video else "pictures"
            raise NodeError(
                f"These latents have the shape {given}, but {self.model!r} decodes {what} from"
                f" latents with {self.latent_channels} channels: use the VAE of the model that made them."
            )
        return samples

    def _decoding(self, latents: WireTensor, previews: SimpleQueue[Any] | None = None) -> _Sent:
        conversion = self.conversion
        # The noise is in the latents already.
        timestep = conversion.decode_timestep
        noise = None if timestep is None else 0.0
        given: dict[str, Any] = {"output": self._output, "decode_timestep": timestep, "decode_noise_scale": noise}
        request = DecodeRequest(latents, conversion.scaling, **given)
        scales = True if conversion.scaling.by == "model" else None

        async def send(client: AsyncClient, progress: Progress) -> WireTensor:
            how: dict[str, Any] = {"model": self.model, "progress": progress}
            if previews is None:
                return self._noted(await client.send(request, **how))
            try:
                parts = client.decode_with_preview(latents, do_scaling=scales, **given, **how)
                async for part in parts:
                    if isinstance(part, Picture):
                        return part.value
                    previews.put(part.picture)
            except ServerRefused as refusal:
                if refusal.code != "NoPreview":
                    raise
            return self._noted(await client.send(request, **how))

        return send

    def _noted(self, reply: Reply) -> WireTensor:
        self._server.note(reply.warning)
        return reply.tensor()

    def _pixels_shape(self, answer: WireTensor) -> tuple[int, ...]:
        """Return the shape of an item's pixels: (H, W, C), or (F, H, W, C) where latents have a frame axis."""
        height, width = answer.shape[1:3] if self._output == "pixels" else answer.shape[2:4]
        shape = (height, width, self.output_channels)
        return (answer.shape[0], *shape) if self.latent_dim == 3 else shape

    def _fill(self, pixels: torch.Tensor, answer: WireTensor) -> None:
        """Write an answer, (F, H, W, C) bytes or (F, C, H, W) floats, into the pixels of its item."""
        found = _view(answer)
        if self._output != "pixels":
            found = found.movedim(1, -1)
        if self.latent_dim == 2:
            found = found[0]
        if found.shape != pixels.shape:
            raise NodeError(f"{self.model!r} answered with pictures of different sizes.")
        pixels.copy_(found)
        if self._output == "pixels":
            pixels.div_(255.0)
        elif self._output == "signed":
            pixels.add_(1.0).div_(2.0).clamp_(0.0, 1.0)

    def _encode(self, pixels: torch.Tensor, not_video: bool | None, *, shows_progress: bool) -> torch.Tensor:
        if not self._can_encode:
            raise NodeError(f"{self.model!r} on the server {self._server.profile!r} is a decoder alone.")
        pixels = self.vae_encode_crop_pixels(pixels[..., : self.output_channels])
        if 0 in pixels.shape:
            raise NodeError(f"A picture for {self.model!r} needs at least {self._factor} pixels on each side.")
        if pixels.ndim == 4:
            is_one = self._is_video and not (self.not_video if not_video is None else not_video)
            pixels = pixels[None] if is_one else pixels[:, None]
        if not self._is_video and pixels.shape[1] > 1:
            pixels = pixels.flatten(0, 1)[:, None]
        if self.conversion.form.drops_frames:
            pixels = pixels[:, : 1 + (pixels.shape[1] - 1) // self._temporal * self._temporal]
        latents: dict[int, torch.Tensor] = {}

        def take(index: int, answer: WireTensor) -> None:
            latents[index] = self.conversion.to_comfyui(to_torch(answer).to(torch.float32))

        works = [self._encoding(item[0]) for item in pixels.split(1)]
        self._server.call_all(works, take, shows_progress=shows_progress)
        return torch.cat([latents[index] for index in range(len(works))])

    def _encoding(self, frames: torch.Tensor) -> _Sent:
        """Return the request for frames (F, H, W, 3): bytes if they are 8-bit levels, else floats in [-1, 1]."""
        levels = levels_of(frames)
        if levels is not None:
            image = from_torch(levels)
        else:
            signed = frames.movedim(-1, 1) * 2 - 1
            image = from_torch(signed.transpose(0, 1)[None] if self._is_video else signed)
        value_range: Any = "auto" if levels is not None else "signed"
        request = EncodeRequest(image, self.conversion.scaling, value_range=value_range)

        async def send(client: AsyncClient, progress: Progress) -> WireTensor:
            return self._noted(await client.send(request, model=self.model, progress=progress))

        return send


def _number(server: Server, facts: dict[str, Any], name: str) -> int:
    value = facts.get(name)
    if not isinstance(value, int):
        of = f"The server {server.profile!r} is of another version"
        raise NodeError(f"{of}: it does not tell the {name} of {facts['name']!r}.")
    return value


def levels_of(pixels: torch.Tensor) -> torch.Tensor | None:
    """Return pixels as uint8 if they are exactly that, as those of a picture file are; else None.

    Args:
        pixels: Floats in [0, 1].
    """
    if pixels.dtype is torch.uint8:
        return pixels
    levels = (pixels * 255.0).round_().clamp_(0, 255).to(torch.uint8)
    return levels if torch.equal(levels.to(pixels.dtype) / 255.0, pixels) else None


def _view(answer: WireTensor) -> torch.Tensor:
    """Return a tensor on the received bytes, which is only read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the bytes cannot be written
        return torch.frombuffer(answer.data, dtype=getattr(torch, answer.dtype)).reshape(answer.shape)


def _loaded(server: Server, facts: dict[str, Any]) -> dict[str, Any]:
    """Return a model's entry once the server has its weights: it decodes a latent, for which it loads them."""
    name, frames = str(facts["name"]), (1,) if facts.get("axes") == "BCTHW" else ()
    latents = from_torch(torch.zeros(1, _number(server, facts, "latent_channels"), *frames, _SMALL, _SMALL))
    request = DecodeRequest(latents, Scaling(), output="pixels")
    server.call(lambda client, progress: client.send(request, model=name, progress=progress))
    return server.model(name, "decode")
