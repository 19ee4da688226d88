"""TAEHV, a tiny autoencoder of videos, in the architecture of https://github.com/madebyollin/taehv.

Its blocks see the frame before, and nothing else of the past, so frames are computed one after another from the
last input of each block: a film of any length takes the memory of one latent frame.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from .taesd import Clamp, conv

#: The last input of each block that sees the past, by the number of its layer.
Memory = dict[int, torch.Tensor]


class MemoryBlock(nn.Module):
    """Three convolutions of a frame and the one before, and a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            conv(2 * width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width)
        )

    def forward(self, x: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) of a frame and of the one before → the same shape."""
        return torch.relu(self.conv(torch.cat((x, past), 1)) + x)


class TimePool(nn.Module):
    """Joins ``stride`` frames to one."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width * stride, width, 1, bias=False)


class TimeGrow(nn.Module):
    """Makes ``stride`` frames of one."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)


class FrameLayers(nn.Sequential):
    """Layers that are run on one frame after another."""

    def forward(self, frames: list[torch.Tensor], memory: Memory) -> list[torch.Tensor]:  # type: ignore[override]
        """Run the layers on the next frames, each (B, C, H, W).

        Args:
            frames: As many as ``TimePool`` layers join, or a multiple.
            memory: What the calls before left behind; empty for the first frame.
        """
        for number, layer in enumerate(self):
            if isinstance(layer, MemoryBlock):
                made = []
                for frame in frames:
                    past = memory.get(number)
                    made.append(layer(frame, torch.zeros_like(frame) if past is None else past))
                    memory[number] = frame
                frames = made
            elif isinstance(layer, TimePool):
                groups = [frames[first : first + layer.stride] for first in range(0, len(frames), layer.stride)]
                frames = [layer.conv(torch.cat(group, 1)) for group in groups]
            elif isinstance(layer, TimeGrow):
                frames = [part for frame in frames for part in layer.conv(frame).chunk(layer.stride, 1)]
            else:
                frames = [layer(frame) for frame in frames]
        return frames


class _Decoder(FrameLayers):
    """The decoder's layers, called once for each latent frame."""

    def __init__(self, layers: list[nn.Module], patch: int) -> None:
        super().__init__(*layers)
        self.patch = patch

    def forward(self, latents: torch.Tensor, memory: Memory, skipped: int = 0) -> torch.Tensor:  # type: ignore[override]
        """Latents of one frame (B, C, 1, h, w) → frames (B, 3, f, H, W) in [-1, 1], less the ``skipped`` first."""
        frames = super().forward([latents[:, :, 0]], memory)[skipped:]
        return torch.stack([pixel_shuffle(frame, self.patch).clamp(0, 1) for frame in frames], 2) * 2 - 1


class AutoencoderTAEHV(ModelMixin, ConfigMixin):  # type: ignore[misc] # untyped bases
    """A tiny autoencoder of videos.

    Args:
        latent_channels: Channels of the latents, which are those of pipelines: already normalised.
        patch_size: Side of the square of pixels that is one position of the first and the last layer.
        encoder_width: Channels of the encoder.
        decoder_widths: Channels of the decoder's four steps.
        encoder_strides: Frames that become one before each of three steps.
        decoder_strides: Frames that one becomes after each of three steps.
        keeps_even: For an even number of latent frames, keep the frames that come first (CogVideoX).
    """

    @register_to_config  # type: ignore[untyped-decorator] # of diffusers
    def __init__(
        self,
        latent_channels: int = 16,
        patch_size: int = 1,
        encoder_width: int = 64,
        decoder_widths: tuple[int, ...] = (256, 128, 64, 64),
        encoder_strides: tuple[int, ...] = (2, 2, 1),
        decoder_strides: tuple[int, ...] = (1, 2, 2),
        keeps_even: bool = False,
    ) -> None:
        super().__init__()
        pixels, width = 3 * patch_size**2, encoder_width
        layers: list[nn.Module] = [conv(pixels, width), nn.ReLU()]
        for stride in encoder_strides:
            blocks = [MemoryBlock(width) for _ in range(3)]
            layers += [TimePool(width, stride), conv(width, width, stride=2, bias=False), *blocks]
        self.encoder = FrameLayers(*layers, conv(width, latent_channels))
        layers = [Clamp(), conv(latent_channels, decoder_widths[0]), nn.ReLU()]
        for before, after, stride in zip(decoder_widths[:-1], decoder_widths[1:], decoder_strides, strict=True):
            layers += [MemoryBlock(before) for _ in range(3)]
            layers += [nn.Upsample(scale_factor=2), TimeGrow(before, stride), conv(before, after, bias=False)]
        self.decoder = _Decoder([*layers, nn.ReLU(), conv(decoder_widths[-1], pixels)], patch_size)

    def decode(self, z: torch.Tensor, return_dict: bool = False) -> tuple[torch.Tensor]:
        """Latents (B, C, T, h, w) → (a video (B, 3, F, H, W) in [-1, 1],); see :class:`.FrameRule` for F."""
        config: Any = self.config
        grown = 1
        for stride in config.decoder_strides:
            grown *= stride
        is_kept = config.keeps_even and z.shape[2] % 2 == 0
        memory: Memory = {}
        made = [
            self.decoder(z[:, :, frame : frame + 1], memory, 0 if frame or is_kept else grown - 1)
            for frame in range(z.shape[2])
        ]
        return (torch.cat(made, 2),)

    def encode(self, x: torch.Tensor, return_dict: bool = False) -> tuple[torch.Tensor]:
        """A video (B, 3, F, H, W) in [-1, 1] → (latents (B, C, T, h, w),); its last frame is repeated as needed."""
        config: Any = self.config
        joined = 1
        for stride in config.encoder_strides:
            joined *= stride
        memory: Memory = {}
        made = []
        for first in range(0, x.shape[2], joined):
            group = [x[:, :, min(frame, x.shape[2] - 1)] for frame in range(first, first + joined)]
            frames = [pixel_unshuffle(frame / 2 + 0.5, config.patch_size) for frame in group]
            made += self.encoder(frames, memory)
        return (torch.stack(made, 2),)
