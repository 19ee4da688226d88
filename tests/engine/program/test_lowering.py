"""Lowering: diffusers' modules become flat programs, weights or none; what is not understood is refused by name."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from conftest import small_kl, small_tiny
from diffusers import AsymmetricAutoencoderKL, AutoencoderKL, AutoencoderKLFlux2, AutoencoderTiny
from diffusers.models.attention_processor import AttnAddedKVProcessor
from torch import nn

from hybridge.engine.program.lowering import lower, skeleton
from hybridge.engine.program.ops import Attend, Convolve
from hybridge.errors import CannotLower

#: What SD, SDXL, SD3 and Flux have in common.
FULL_SIZE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
}


def convolutions(program) -> list[Convolve]:
    return [op for op in program.ops if isinstance(op, Convolve)]


class TestFullSizeWithoutWeights:
    """On the meta device: nothing of these is ever allocated."""

    def test_sd_decoder(self) -> None:
        program = lower(skeleton("AutoencoderKL", FULL_SIZE | {"latent_channels": 4}), "decode")
        assert [type(op) for op in program.ops].count(Attend) == 1
        assert sum(op.doubled for op in convolutions(program)) == 3
        # post_quant_conv, conv_in, 14 resnets, attention, 3 × upsample, conv_out
        assert len(program.ops) == 1 + 1 + 2 * 14 + 1 + 3 + 1
        assert program.sizes(64, 96)[-1] == (512, 768)
        assert sum(program.flops(64, 64)) == pytest.approx(2.128e12, rel=1e-3)

    def test_flux_has_no_quant_convolutions(self) -> None:
        config = FULL_SIZE | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
        module = skeleton("AutoencoderKL", config)
        assert lower(module, "decode").ops[0].weights.name == "decoder.conv_in"
        assert lower(module, "encode").ops[-1].weights.name == "encoder.conv_out"
        assert lower(module, "encode").channels[-1] == 32

    def test_flux2_is_made_of_the_same_blocks(self) -> None:
        module = skeleton("AutoencoderKLFlux2", {})
        assert lower(module, "decode").channels[0] == 32
        assert lower(module, "encode").sizes(512, 512)[-1] == (64, 64)

    def test_the_tiny_one_doubles_with_a_plain_upsample(self) -> None:
        program = lower(skeleton("AutoencoderTiny", {}), "decode")
        assert sum(op.doubled for op in convolutions(program)) == 3
        assert program.ops[0].entering == "soft_clamp"
        assert program.ops[-1].leaving == "to_signed"
        assert not any(op.norm for op in program.ops)


def test_values_are_numbered_and_read_after_they_are_made() -> None:
    for module, task in [(small_kl(4), "decode"), (small_kl(4), "encode"), (small_tiny(4), "decode")]:
        program = lower(module, task)
        for index, op in enumerate(program.ops):
            assert op.target == index + 1
            assert op.source <= index
            assert op.residual is None or op.residual <= index
        assert program == lower(module, task), "the same module gives an equal program"


@pytest.mark.parametrize("size", [(8, 8), (7, 13), (1, 5)])
@pytest.mark.parametrize("task", ["decode", "encode"])
@torch.inference_mode()
def test_sizes_are_those_that_diffusers_gives(task, size) -> None:
    module = small_kl(4)
    height, width = size if task == "decode" else (8 * size[0] + 3, 8 * size[1] + 5)
    source = torch.zeros(1, 4 if task == "decode" else 3, height, width)
    given = module.decode(source).sample if task == "decode" else module.encode(source).latent_dist.parameters
    program = lower(module, task)
    assert (program.channels[-1], *program.sizes(height, width)[-1]) == tuple(given.shape[1:])


def test_rows_read_cover_what_a_convolution_reaches() -> None:
    """Checked against torch: the gradient of a target row is non-zero in exactly the source rows it reads."""
    for op in (*convolutions(lower(small_kl(4), "encode")), *convolutions(lower(small_kl(4), "decode"))):
        height, kernel = 12, op.weights.kernel
        for first in range(0, op.output_size(height, height)[0], 2 if op.doubled else 1):
            source = torch.zeros(1, 1, height, height, requires_grad=True)
            doubled = nn.functional.interpolate(source, scale_factor=2.0) if op.doubled else source
            padding = op.padding
            padded = nn.functional.pad(doubled, (padding.left, padding.right, padding.top, padding.bottom))
            made = nn.functional.conv2d(padded, torch.ones(1, 1, kernel, kernel), stride=op.stride)
            end = first + (2 if op.doubled else 1)
            made[0, 0, first:end].sum().backward()
            reached = source.grad[0, 0].sum(1).nonzero().flatten().tolist()
            start, stop = op.rows_read(first, end)
            assert (reached[0], reached[-1] + 1) == (max(start, 0), min(stop, height)), op


class TestWhatCannotBeLowered:
    def test_another_class(self) -> None:
        with pytest.raises(CannotLower, match=r"AsymmetricAutoencoderKL.*AutoencoderTiny"):
            lower(AsymmetricAutoencoderKL(), "decode")

    def test_a_subclass_may_have_another_forward(self) -> None:
        class Mine(AutoencoderKL):
            pass

        with pytest.raises(CannotLower, match="Mine"):
            lower(Mine(block_out_channels=(32,)), "decode")

    def test_a_wrapped_convolution(self) -> None:
        class Adapted(nn.Conv2d):
            pass

        module = small_kl(4)
        module.decoder.up_blocks[1].resnets[0].conv1 = Adapted(16, 16, 3, padding=1)
        with pytest.raises(CannotLower, match=r"decoder.up_blocks.1.resnets.0.conv1: expected a Conv2d"):
            lower(module, "decode")
        lower(module, "encode")

    def test_another_attention_processor(self) -> None:
        module = small_kl(4)
        module.decoder.mid_block.attentions[0].processor = AttnAddedKVProcessor()
        with pytest.raises(CannotLower, match="not AttnAddedKVProcessor"):
            lower(module, "decode")

    def test_another_block(self) -> None:
        module = AutoencoderKL(
            up_block_types=("AttnUpDecoderBlock2D",), block_out_channels=(32,), norm_num_groups=4
        )
        with pytest.raises(CannotLower, match="AttnUpDecoderBlock2D"):
            lower(module, "decode")

    def test_an_upsampling_that_is_not_nearest(self) -> None:
        with pytest.raises(CannotLower, match="nearest ×2"):
            lower(AutoencoderTiny(upsample_fn="bilinear"), "decode")

    def test_dropout(self) -> None:
        module = small_kl(4)
        module.encoder.mid_block.resnets[0].dropout.p = 0.1
        with pytest.raises(CannotLower, match="no dropout"):
            lower(module, "encode")


def test_the_small_flux2_decoder_has_channels_of_its_own() -> None:
    module = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16, 16), decoder_block_out_channels=(4, 4, 8, 8), norm_num_groups=4
    )
    assert lower(module, "decode").channels[-2] == 4
    assert lower(module, "encode").channels[1] == 8


def test_a_skeleton_leaves_the_constants_of_its_file_where_they_are() -> None:
    """Cosmos' wavelets are made when its file is imported, which the first skeleton does."""
    script = """
import torch
from hybridge.engine.program.lowering import class_of, skeleton
blank = skeleton("AutoencoderKLCosmos", {})
assert {one.device.type for one in (*blank.parameters(), *blank.buffers())} == {"meta"}
widths = {f"{part}_block_out_channels": (8, 8, 8, 8) for part in ("encoder", "decode")}
real = class_of("AutoencoderKLCosmos")(**widths)
assert {one.device.type for one in real.buffers()} == {"cpu"}
"""
    subprocess.run([sys.executable, "-c", script], check=True)
