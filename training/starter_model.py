"""The starter model before its training: its layers, with colours carried from end to end."""

from __future__ import annotations

import math

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

# The shape of Stable Diffusion's VAE (8 pixels to a latent, 4 latent channels), an eighth to a quarter its
# width. Most of the time of such a net goes where pictures are still large: the first widths are smallest.
ARCHITECTURE = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [16, 32, 96, 128],
    "layers_per_block": 1,
    "latent_channels": 4,
    # Few, wide groups: GroupNorm takes away each group's mean, and what is left of a picture's overall
    # brightness is the difference between channels of one group. The usual 32 groups would leave none.
    "norm_num_groups": 4,
    "sample_size": 256,
    "force_upcast": False,
}


def new_model() -> AutoencoderKL:
    """The untrained net, which already turns pictures into 8x8 mean colours and those into a blurred picture.

    From random weights the first half of a short run goes into learning just that. Three channels carry red,
    green and blue past every block, whose own contribution starts at nothing; the others begin at random.
    """
    model = AutoencoderKL(**ARCHITECTURE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("conv2.weight", "conv2.bias", "to_out.0.weight", "to_out.0.bias")):
                parameter.zero_()  # what a block adds to its input
        carry_colours_through_encoder(model.encoder)
        carry_colours_through_decoder(model.decoder)
        latents = ARCHITECTURE["latent_channels"]
        for conv in (model.quant_conv, model.post_quant_conv):
            connect(conv, dict(enumerate(range(latents))))
        # The rest of the encoder's output is the log-variance: begin with next to no noise.
        model.quant_conv.weight[latents:] = 0.0
        model.quant_conv.bias[latents:] = -7.0
    return model


COLOURS = {0: 0, 1: 1, 2: 2}  # output channel: input channel
ANCHOR = 6.0  # pixels lie in [-1, 1]
COPY = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]])
MEAN_OF_2X2 = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 0]]) / 4  # diffusers pads on the right and below
BILINEAR = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16  # of what nearest neighbour has doubled


def connect(conv: nn.Conv2d, wiring: dict[int, int], kernel: Tensor = COPY) -> None:
    """Make output channels copies of input channels, seen through a 3x3 kernel (a 1x1 takes its centre)."""
    for target, source in wiring.items():
        conv.weight[target] = 0.0
        conv.bias[target] = 0.0
        conv.weight[target, source] = kernel if conv.kernel_size == (3, 3) else 1.0


def anchor(conv: nn.Conv2d, positive: int, negative: int) -> None:
    """Make two channels constants, so large that GroupNorm's mean and deviation hardly depend on the picture.

    Without them the norm would take away how bright and how contrasty the picture is.
    """
    for channel, value in ((positive, ANCHOR), (negative, -ANCHOR)):
        conv.weight[channel] = 0.0
        conv.bias[channel] = value


def pass_norm_and_activation(norm: nn.GroupNorm, conv: nn.Conv2d, wiring: dict[int, int]) -> None:
    """Wire the last convolution so that colours come through the norm and SiLU before it nearly unchanged."""
    lift = 2.0  # where SiLU is nearly a straight line of slope 1.09
    deviation = ANCHOR * math.sqrt(2 * norm.num_groups / norm.num_channels)
    connect(conv, wiring)
    for target, source in wiring.items():
        norm.weight[source] = deviation
        norm.bias[source] = lift
        conv.weight[target] /= 1.09
        conv.bias[target] = -lift * torch.tensor(lift).sigmoid() / 1.09


def carry_colours_through_encoder(encoder: nn.Module) -> None:
    """RGB in, mean RGB of every 8x8 pixels out, in the first three latents."""
    connect(encoder.conv_in, COLOURS)
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            if resnet.conv_shortcut is not None:
                connect(resnet.conv_shortcut, COLOURS)
        for sampler in block.downsamplers or ():
            connect(sampler.conv, COLOURS, MEAN_OF_2X2)
    anchor(encoder.down_blocks[-1].resnets[0].conv_shortcut, 3, 4)
    pass_norm_and_activation(encoder.conv_norm_out, encoder.conv_out, COLOURS)


def carry_colours_through_decoder(decoder: nn.Module) -> None:
    """Mean RGB in the first three latents in, a bilinear enlargement out."""
    connect(decoder.conv_in, COLOURS)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            if resnet.conv_shortcut is not None:
                connect(resnet.conv_shortcut, COLOURS)
        for sampler in block.upsamplers or ():
            connect(sampler.conv, COLOURS, BILINEAR)
    # The last norm has groups of four channels: one colour to a group, and two anchors beside it.
    group = decoder.conv_norm_out.num_channels // decoder.conv_norm_out.num_groups
    last = decoder.up_blocks[-1].resnets[0].conv_shortcut
    connect(last, {group * colour: colour for colour in range(3)})
    for colour in range(3):
        anchor(last, group * colour + 1, group * colour + 2)
    wiring = {colour: group * colour for colour in range(3)}
    pass_norm_and_activation(decoder.conv_norm_out, decoder.conv_out, wiring)
