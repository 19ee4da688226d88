"""TAESD's newer architectures: for FLUX.2, with norms; for Sana, with 32 pixels per latent; for Qwen-Image 2.1.

The architecture is that of https://github.com/madebyollin/taesd; the older one is diffusers' ``AutoencoderTiny``.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

#: Groups of the norm between a block and what it adds, and how much wider that is than the block.
_POOL_GROUPS = 4
_POOL_WIDENING = 4

#: Red, green, blue and alpha.
_PIXEL_CHANNELS = 4


def conv(before: int, after: int, **options: Any) -> nn.Conv2d:
    """Return a 3×3 convolution that keeps the size."""
    return nn.Conv2d(before, after, 3, padding=1, **options)


class Clamp(nn.Module):
    """Keeps latents within ±3, smoothly."""

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Return 3 tanh(latents / 3)."""
        return torch.tanh(latents / 3) * 3


class Block(nn.Module):
    """Three convolutions and a residual; with ``has_pool``, after adding what a norm over the picture sees.

    Args:
        width: Channels.
        has_pool: Whether there is a norm.
    """

    def __init__(self, width: int, *, has_pool: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv(width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width))
        wide = width * _POOL_WIDENING
        self.pool = (
            nn.Sequential(
                nn.Conv2d(width, wide, 1, bias=False),
                nn.GroupNorm(_POOL_GROUPS, wide),
                nn.ReLU(),
                nn.Conv2d(wide, width, 1, bias=False),
            )
            if has_pool
            else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) → the same shape."""
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


def _blocks(width: int, *, has_pool: bool = False) -> list[nn.Module]:
    return [Block(width, has_pool=has_pool) for _ in range(3)]


def _encoder(channels: int, width: int, *, has_pool: bool) -> nn.Sequential:
    layers: list[nn.Module] = [conv(3, width), Block(width)]
    for step in range(3):
        layers += [conv(width, width, stride=2, bias=False), *_blocks(width, has_pool=has_pool and step == 2)]
    return nn.Sequential(*layers, conv(width, channels))


def _decoder(channels: int, width: int, *, has_pool: bool) -> nn.Sequential:
    layers: list[nn.Module] = [Clamp(), conv(channels, width), nn.ReLU()]
    for step in range(3):
        up = [nn.Upsample(scale_factor=2), conv(width, width, bias=False)]
        layers += [*_blocks(width, has_pool=has_pool and step == 0), *up]
    return nn.Sequential(*layers, Block(width), conv(width, 3))


def _encoder_32(channels: int, width: int) -> nn.Sequential:
    start = [conv(3, width // 2, stride=2), nn.ReLU(), conv(width // 2, width, stride=2), nn.ReLU(), Block(width)]
    layers: list[nn.Module] = [*start]
    for _ in range(3):
        layers += [conv(width, width, stride=2, bias=False), *_blocks(width)]
    return nn.Sequential(*layers, conv(width, channels))


def _decoder_32(channels: int, width: int) -> nn.Sequential:
    widths = (4 * width, 2 * width, width, width, width, width)
    layers: list[nn.Module] = [Clamp(), conv(channels, widths[0]), nn.ReLU()]
    for before, after in pairwise(widths):
        layers += [*_blocks(before), nn.Upsample(scale_factor=2), conv(before, after, bias=False)]
    return nn.Sequential(*layers, Block(width), conv(width, 3))


def _encoder_16(channels: int, width: int, pixels: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.PixelUnshuffle(2), conv(4 * pixels, width), nn.ReLU(), Block(width)]
    for before, after in pairwise((width, width, 2 * width, 4 * width)):
        layers += [conv(before, after, stride=2, bias=False), *_blocks(after)]
    return nn.Sequential(*layers, conv(4 * width, channels))


def _decoder_16(channels: int, width: int, pixels: int) -> nn.Sequential:
    layers: list[nn.Module] = [Clamp(), conv(channels, 4 * width), nn.ReLU()]
    for before, after in pairwise((4 * width, 2 * width, width, width)):
        layers += [*_blocks(before), nn.Upsample(scale_factor=2), conv(before, after, bias=False)]
    return nn.Sequential(*layers, Block(width), conv(width, 4 * pixels), nn.PixelShuffle(2))


class AutoencoderTAESD(ModelMixin, ConfigMixin):  # type: ignore[misc] # untyped bases
    """A tiny autoencoder of pictures.

    Args:
        latent_channels: Channels of the latents, which are those of pipelines: already normalised.
        spatial_factor: Pixels per latent on each side: 8, or 32.
        width: Channels of the layers at full size.
        has_pool: Whether the blocks at the size of the latents have norms.
    """

    @register_to_config  # type: ignore[untyped-decorator] # of diffusers
    def __init__(
        self, latent_channels: int = 32, spatial_factor: int = 8, width: int = 64, has_pool: bool = False
    ) -> None:
        super().__init__()
        if spatial_factor == 32:
            self.encoder, self.decoder = _encoder_32(latent_channels, width), _decoder_32(latent_channels, width)
        else:
            self.encoder = _encoder(latent_channels, width, has_pool=has_pool)
            self.decoder = _decoder(latent_channels, width, has_pool=has_pool)

    def decode(self, z: torch.Tensor, return_dict: bool = False) -> tuple[torch.Tensor]:
        """Latents (B, C, h, w) → (pictures (B, 3, H, W) in about [-1, 1],)."""
        return (self.decoder(z) * 2 - 1,)

    def encode(self, x: torch.Tensor, return_dict: bool = False) -> tuple[torch.Tensor]:
        """Pictures (B, 3, H, W) in [-1, 1] → (latents,)."""
        return (self.encoder(x / 2 + 0.5),)


class AutoencoderTAEQI(ModelMixin, ConfigMixin):  # type: ignore[misc] # untyped bases
    """A tiny autoencoder of pictures with alpha: 16 pixels per latent, a frame axis of one (Qwen-Image 2.1).

    Args:
        latent_channels: Channels of the latents, which are those of pipelines: already normalised.
        width: Channels of the layers at half of the full size.
    """

    @register_to_config  # type: ignore[untyped-decorator] # of diffusers
    def __init__(self, latent_channels: int = 64, width: int = 64) -> None:
        super().__init__()
        self.encoder = _encoder_16(latent_channels, width, _PIXEL_CHANNELS)
        self.decoder = _decoder_16(latent_channels, width, _PIXEL_CHANNELS)

    def decode(self, z: torch.Tensor, return_dict: bool = False) -> tuple[torch.Tensor]:
        """Latents (B, C, 1, h, w) → (pictures (B, 4, 1, H, W) in about [-1, 1],)."""
        return (self.decoder(z[:, :, 0])[:, :, None] * 2 - 1,)

    def encode(self, x: torch.Tensor, return_dict: bool = False) -> tuple[torch.Tensor]:
        """Pictures (B, 4, 1, H, W) in [-1, 1] → (latents,)."""
        return (self.encoder(x[:, :, 0] / 2 + 0.5)[:, :, None],)
