"""A VAE that is on a server, as a module that diffusers' pipelines take for one of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils.accelerate_utils import apply_forward_hook

from ..errors import BadAnswer
from ..protocol import DecodeRequest, EncodeRequest, Request, Scaling
from ..protocol.torch import from_torch, to_torch
from .client import Client
from .model_matching import ServedModel


class _Nothing(torch.nn.Module):
    """One parameter without elements: it has a dtype and a device, and whatever moves modules moves it for free."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(0, dtype=dtype, device=device), requires_grad=False)


class RemoteVAE(torch.nn.Module, ConfigMixin):  # type: ignore[misc] # diffusers is not typed
    """What AutoencoderKL and AutoencoderTiny are to a pipeline, computed elsewhere.

    Latents travel in VAE space and in this module's dtype, unrounded and unscaled; what comes back is given in this
    module's dtype, on the device that the input was on.  Encoding with a full VAE gives a real distribution made of
    the server's moments, so that drawing from it uses the caller's generator.  Nothing here has a gradient.

    It is no ModelMixin on purpose: ``from_pipe`` hands those on only if their class is the one that it expects.

    Args:
        client: The server; closing it is the caller's business.
        model: What the server said of the model.
        dtype: As of a module that is loaded so; ``.to()`` changes it.
        device: The same.

    Attributes:
        model: The server's name for the model.
        use_slicing: Whether each item of a batch is sent as a request of its own.
        use_tiling: Kept for whoever asks; how a picture fits in memory is the server's decision.
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
        self._client = client
        self._is_tiny = model.kind == "tiny"
        # A tiny autoencoder works in its pipeline's space, which the wire calls scaled as the model's own.
        self._scaling = Scaling("model") if self._is_tiny else Scaling()
        # SDXL's pipelines ask this part for its dtype after they have moved the whole to float32.
        self.post_quant_conv = _Nothing(dtype, torch.device(device))

    @property
    def dtype(self) -> torch.dtype:
        """Of what is sent and of what is returned."""
        return self.post_quant_conv.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where pipelines believe it to be."""
        return self.post_quant_conv.weight.device

    def enable_tiling(self, use_tiling: bool = True) -> None:
        """Changes nothing: the server fits pictures into its memory by itself."""
        self.use_tiling = use_tiling

    def disable_tiling(self) -> None:
        """Undoes :meth:`enable_tiling`."""
        self.enable_tiling(False)

    def enable_slicing(self) -> None:
        """Sends each item of a batch as a request of its own, for batches that pass the server's limits."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Undoes :meth:`enable_slicing`."""
        self.use_slicing = False

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        """Pictures (B, 3, H, W) in [-1, 1] → AutoencoderKLOutput, or for a tiny autoencoder AutoencoderTinyOutput.

        Raises:
            ClientError: as :class:`~hybridge.client.Client` has them.
        """
        encoded = self._send(x, self._encode_request)
        if self._is_tiny:
            return AutoencoderTinyOutput(latents=encoded) if return_dict else (encoded,)
        posterior = DiagonalGaussianDistribution(encoded)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def decode(
        self, z: torch.Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Latents (B, C, h, w) as the VAE has them → DecoderOutput with pictures (B, 3, H, W) in about [-1, 1].

        ``generator`` is taken because pipelines pass one; decoding draws nothing, in diffusers neither.

        Raises:
            ClientError: as :class:`~hybridge.client.Client` has them.
        """
        sample = self._send(z, self._decode_request)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, sample: torch.Tensor, sample_posterior: bool = False, return_dict: bool = True) -> Any:
        """Pictures → pictures, through the latents' mode, or with ``sample_posterior`` through a draw."""
        encoded = self.encode(sample, return_dict=False)[0]
        if not self._is_tiny:
            encoded = encoded.sample() if sample_posterior else encoded.mode()
        return self.decode(encoded, return_dict=return_dict)

    def extra_repr(self) -> str:
        """Where it is."""
        return f"{self.model} of {self._client.server}"

    def _decode_request(self, z: torch.Tensor) -> DecodeRequest:
        return DecodeRequest(from_torch(z), self._scaling, output="signed")

    def _encode_request(self, x: torch.Tensor) -> EncodeRequest:
        return EncodeRequest(from_torch(x), self._scaling, value_range="signed", moments=not self._is_tiny)

    def _send(self, batch: torch.Tensor, request: Callable[[torch.Tensor], Request]) -> torch.Tensor:
        """The answer to ``batch``, in this module's dtype, where ``batch`` is."""
        items = torch.split(batch, 1) if self.use_slicing else (batch,)
        answers = []
        for item in items:
            answer = self._client.send(request(item.to(self.dtype)), model=self.model).tensor()
            if len(answer.shape) != batch.ndim or answer.shape[0] != item.shape[0]:
                raise BadAnswer(
                    f"{self._client.server} answered with another tensor",
                    saw=list(answer.shape),
                    expected=f"{batch.ndim} axes, the first {item.shape[0]}",
                )
            answers.append(to_torch(answer))
        return torch.cat(answers).to(device=batch.device, dtype=self.dtype)
