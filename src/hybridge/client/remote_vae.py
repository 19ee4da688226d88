"""A server's VAE as a module that replaces the VAE of diffusers' pipelines."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import (
    DecoderOutput,
    DiagonalGaussianDistribution,
    EncoderOutput,
    IdentityDistribution,
)
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils.accelerate_utils import apply_forward_hook

from ..errors import BadAnswer, Mismatch
from ..models import VAE_CLASSES
from ..protocol import DecodeRequest, EncodeRequest, Request, Scaling, WireTensor
from ..protocol.torch import from_torch, to_torch
from .client import Client
from .served_vaes import ServedModel, read_models
from .vae_stand_in import add_attributes, interface_of, read_arguments

#: Classes of which pipelines read the config alone.
_PLAIN = frozenset({"AutoencoderKL", "AutoencoderTiny"})


class _Nothing(torch.nn.Module):
    """A module with one empty parameter, which has a dtype and a device and can be moved at no cost."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(0, dtype=dtype, device=device), requires_grad=False)


class RemoteVAE(torch.nn.Module, ConfigMixin):  # type: ignore[misc] # diffusers is not typed
    """A replacement of a VAE of diffusers that runs on a server.

    Latents are sent in VAE space and in this module's dtype, unrounded and unscaled; results have this module's
    dtype and the input's device.  Encoding with a VAE that has a posterior returns a distribution with the server's
    moments, so sampling from it uses the caller's generator.  Results have no gradient.

    Tensors have the axes of the class that it stands in for, which are not always those of its pipelines' latents.

    It is not a ModelMixin on purpose: ``from_pipe`` passes a ModelMixin on only if it has the expected class.  For
    pipelines that ask for the class of their VAE, ``is_posing`` lets ``isinstance`` tell it.

    Args:
        client: The client of the server; the caller has to close it.
        model: The server's description of the model.
        dtype: The module's dtype; ``.to()`` changes it.
        device: The module's device; ``.to()`` changes it.

    Attributes:
        model: The server's name for the model.
        use_slicing: Whether each item of a batch is sent as a separate request.
        is_posing: Whether ``isinstance`` takes it for the diffusers class.
        use_tiling: Stored only for compatibility; the server decides how a picture fits in its memory.
    """

    config_name = "config.json"

    def __init__(
        self,
        client: Client,
        model: ServedModel,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        ConfigMixin.register_to_config(self, **model.config, _class_name=model.class_name)
        self.model = model.name
        self.use_slicing = False
        self.use_tiling = False
        self.is_posing = False
        self._client = client
        self._class = VAE_CLASSES[model.class_name]
        self._interface = interface_of(model.class_name)
        frames = self._class.frames(model.config)
        self._has_single_frames = frames.has_axis and not frames.is_video
        # A tiny autoencoder takes normalised latents, which on the wire is the scaling ``model``.
        self._scaling = Scaling("model") if self._class.kind == "tiny" else Scaling()
        # SDXL's pipelines read the dtype of this part after they have converted the VAE to float32.
        self.post_quant_conv = _Nothing(dtype, torch.device(device))
        if model.class_name not in _PLAIN:
            add_attributes(self, model.class_name, model.config, model.statistics)

    @classmethod
    def of_server(
        cls, server: str | Client, model: str, *, dtype: torch.dtype = torch.float32, api_key: str | None = None
    ) -> RemoteVAE:
        """Return a server's VAE for ``from_pretrained(…, vae=…)``, for pipelines that cannot be made without one.

        Args:
            server: Its URL, or a client, which the caller has to close.
            model: The server's name of the model.
            dtype: The module's dtype.
            api_key: Sent as ``Authorization: Bearer``; not together with a client.

        Raises:
            ClientError: as for :class:`~hybridge.client.Client`; Mismatch when there is no such model.
        """
        with contextlib.ExitStack() as owned:
            client = server if isinstance(server, Client) else owned.enter_context(Client(server, api_key=api_key))
            models = read_models(client.models(), client.server)
            found = next((one for one in models if one.name == model), None)
            if found is None:
                raise Mismatch(
                    f"{client.server} has no VAE {model[:60]!r}",
                    saw=", ".join(one.name for one in models) or "no VAE at all",
                    expected=model[:60],
                )
            vae = cls(client, found, dtype=dtype)
            weakref.finalize(vae, owned.pop_all().close)
        vae.is_posing = True
        return vae

    @property  # type: ignore[misc] # read by isinstance()
    def __class__(self) -> type:
        """The diffusers class that it stands in for, if ``is_posing``; else its own."""
        own: type = type(self)
        return getattr(diffusers, self._class.name) if vars(self).get("is_posing") else own

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the tensors that are sent and returned."""
        return self.post_quant_conv.weight.dtype

    @property
    def device(self) -> torch.device:
        """The device that pipelines see."""
        return self.post_quant_conv.weight.device

    def enable_tiling(self, use_tiling: bool = True, *_sides: object, **_named_sides: object) -> None:
        """Set ``use_tiling``, which has no effect: the server fits pictures into its memory itself.

        Classes of videos take the sides of tiles, as their first arguments or by name.
        """
        self.use_tiling = use_tiling is not False

    def disable_tiling(self) -> None:
        """Undo :meth:`enable_tiling`."""
        self.enable_tiling(False)

    def enable_slicing(self) -> None:
        """Send each item of a batch as a separate request, for batches that exceed the server's limits."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Undo :meth:`enable_slicing`."""
        self.use_slicing = False

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        """Encode pictures (B, 3, H, W) or videos (B, 3, F, H, W) in [-1, 1] to the class's own output.

        Raises:
            ClientError: as for :class:`~hybridge.client.Client`.
        """
        # A class that takes frames in the batch encodes each by itself: they are the frames of one video.
        x = self._interface.to_pixels(x)
        sent = x.transpose(0, 1)[None] if self._interface.has_frames_in_batch else x
        encoded = self._send(sent, self._encode_request).to(self.dtype)
        if self._class.axes == "BTCHW":
            encoded = encoded.transpose(1, 2)
        if self._interface.has_frames_in_batch:
            encoded = encoded[0].transpose(0, 1)
        if self._interface.has_identity:
            identity = IdentityDistribution(encoded)
            return AutoencoderKLOutput(latent_dist=identity) if return_dict else (identity,)
        if not self._class.has_posterior:
            made = AutoencoderTinyOutput(latents=encoded)
            if self._class.kind != "tiny":
                made = EncoderOutput(latent=encoded)
            return made if return_dict else (encoded,)
        posterior = DiagonalGaussianDistribution(encoded)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def decode(self, z: torch.Tensor, *given: Any, **named: Any) -> DecoderOutput | tuple[torch.Tensor]:
        """Decode the VAE's latents to a DecoderOutput with pictures or videos, about [-1, 1].

        Args:
            z: (B, C, h, w) or (B, C, f, h, w), as the class takes them.
            given, named: The other arguments of the class's own ``decode``.  A ``generator`` is accepted because
                pipelines pass one; decoding uses no random numbers, as in diffusers.

        Raises:
            ClientError: as for :class:`~hybridge.client.Client`.
            RequestError: for arguments that a server cannot be told.
        """
        arguments = read_arguments(self._class.name, given, named)
        frames = arguments.num_frames or 1
        sent = z.reshape(-1, frames, *z.shape[1:]) if self._interface.has_frames_in_batch else z
        if self._class.axes == "BTCHW" and not self._interface.has_frames_in_batch:
            sent = z.transpose(1, 2)
        if self._interface.folds:
            sent = torch.cat((z, z), 1)
        shown = arguments.inpainting

        def request(part: torch.Tensor, *beside: torch.Tensor) -> DecodeRequest:
            return self._decode_request(part, arguments.timestep, dict(zip(shown, beside, strict=True)))

        sample = self._send(sent, request, *shown.values())
        if self._interface.has_frames_in_batch:
            sample = sample.transpose(1, 2).flatten(0, 1)
        if self._interface.gives_frames_first:
            sample = sample.transpose(1, 2)
        sample = self._interface.from_pixels(sample).to(self.dtype)
        return DecoderOutput(sample=sample) if arguments.return_dict else (sample,)

    def forward(
        self,
        sample: torch.Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        num_frames: int | None = None,
    ) -> Any:
        """Encode pictures and decode the posterior's mode, or with ``sample_posterior`` a sample from it.

        Stable Video Diffusion's pipeline looks for ``num_frames`` here, and passes it to :meth:`decode`.
        """
        encoded = self.encode(sample, return_dict=False)[0]
        if self._class.has_posterior or self._interface.has_identity:
            encoded = encoded.sample() if sample_posterior else encoded.mode()
        named = {} if num_frames is None else {"num_frames": num_frames}
        return self.decode(encoded, return_dict=return_dict, **named)

    def save_pretrained(self, *_: object, **__: object) -> None:
        """Save nothing, with a warning: ``save_pretrained`` of a pipeline saves everything but its remote VAE."""
        warnings.warn(f"{self.model} of {self._client.server} is not saved with the pipeline", stacklevel=2)

    def extra_repr(self) -> str:
        """Return the server's address and the model for ``repr``."""
        return f"{self.model} of {self._client.server}"

    def _decode_request(
        self, z: torch.Tensor, timestep: float | None, shown: Mapping[str, torch.Tensor]
    ) -> DecodeRequest:
        # The pipeline has mixed noise into the latents already.
        noise = None if timestep is None else 0.0
        return DecodeRequest(
            from_torch(z),
            self._scaling,
            output="signed",
            decode_timestep=timestep,
            decode_noise_scale=noise,
            image=from_torch(shown["image"]) if shown else None,
            mask=from_torch(shown["mask"]) if shown else None,
        )

    def _encode_request(self, x: torch.Tensor) -> EncodeRequest:
        has_posterior = self._class.has_posterior
        return EncodeRequest(from_torch(x), self._scaling, value_range="signed", moments=has_posterior)

    def _send(self, batch: torch.Tensor, request: Callable[..., Request], *beside: torch.Tensor) -> torch.Tensor:
        """Return the answer to ``batch``, on its device.

        Args:
            batch: What is decoded or encoded.
            request: Makes the request for a part of it, and of ``beside``.
            beside: Tensors that belong to the batch, with as many items, or one for all.
        """
        given = (batch, *beside)
        count = batch.shape[0] if self.use_slicing else 1
        sliced = [
            torch.split(one, 1) if self.use_slicing and one.shape[0] == count else (one,) * count for one in given
        ]
        answers = []
        for parts in zip(*sliced, strict=True):
            item = parts[0]
            answer = self._client.send(request(*(part.to(self.dtype) for part in parts)), model=self.model).tensor()
            if (
                self._has_single_frames and len(answer.shape) == batch.ndim - 1
            ):  # pictures have no frames on the wire
                answer = WireTensor(answer.dtype, (*answer.shape[:2], 1, *answer.shape[2:]), answer.data)
            if len(answer.shape) != batch.ndim or answer.shape[0] != item.shape[0]:
                raise BadAnswer(
                    f"{self._client.server} answered with another tensor",
                    saw=list(answer.shape),
                    expected=f"{batch.ndim} axes, the first {item.shape[0]}",
                )
            answers.append(to_torch(answer))
        return torch.cat(answers).to(batch.device)
