"""What :func:`hybridge.exact` wraps stays what it is to pipelines: its class, its calls, its names, its dtype."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from conftest import small_kl, small_tiny
from torch import nn

from hybridge.engine.exact import ExactVAE, exact
from hybridge.errors import RequestError

DOWN, UP = ["DownEncoderBlock2D"] * 2, ["UpDecoderBlock2D"] * 2
KL = {
    "block_out_channels": (8, 8),
    "down_block_types": DOWN,
    "up_block_types": UP,
    "norm_num_groups": 4,
    "latent_channels": 4,
}
WAN = {
    "base_dim": 4,
    "z_dim": 16,
    "dim_mult": [1] * 4,
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
}
FOUR = {"block_out_channels": (8,) * 4, "latent_channels": 4, "layers_per_block": 1}

#: Small ones of random weights: what they are made of, and the shape of a picture, a video or a sound.
SMALL: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "AutoencoderKL": (KL, (1, 3, 32, 32)),
    "AutoencoderKLFlux2": (KL, (1, 3, 32, 32)),
    "AutoencoderTiny": (
        {f"{part}_block_out_channels": (8, 8) for part in ("encoder", "decoder")}
        | {f"num_{part}_blocks": (1, 1) for part in ("encoder", "decoder")},
        (1, 3, 32, 32),
    ),
    "AsymmetricAutoencoderKL": (
        {
            "down_block_types": DOWN,
            "down_block_out_channels": (8, 8),
            "up_block_types": UP,
            "up_block_out_channels": (8, 8),
            "norm_num_groups": 4,
        },
        (1, 3, 32, 32),
    ),
    "VQModel": (KL | {"num_vq_embeddings": 16}, (1, 3, 32, 32)),
    "AutoencoderKLTemporalDecoder": (
        {"block_out_channels": (32, 32), "down_block_types": DOWN, "layers_per_block": 1},
        (3, 3, 32, 32),
    ),
    "AutoencoderDC": (
        {
            "latent_channels": 4,
            "attention_head_dim": 2,
            **{f"{part}_block_types": ("ResBlock", "EfficientViTBlock") for part in ("encoder", "decoder")},
            **{f"{part}_block_out_channels": (8, 8) for part in ("encoder", "decoder")},
            **{f"{part}_qkv_multiscales": ((), (5,)) for part in ("encoder", "decoder")},
            **{f"{part}_layers_per_block": (1, 1) for part in ("encoder", "decoder")},
            "downsample_block_type": "conv",
            "upsample_block_type": "interpolate",
        },
        (1, 3, 32, 32),
    ),
    "AutoencoderKLLTXVideo": (
        {
            "latent_channels": 8,
            "block_out_channels": (8,) * 4,
            "decoder_block_out_channels": (8,) * 4,
            "layers_per_block": (1,) * 5,
            "decoder_layers_per_block": (1,) * 5,
            "decoder_inject_noise": (False,) * 5,
            "upsample_residual": (False,) * 4,
            "upsample_factor": (1,) * 4,
            "timestep_conditioning": True,
            "spatio_temporal_scaling": (True, True, False, False),
            "decoder_spatio_temporal_scaling": (True, True, False, False),
            "patch_size": 1,
        },
        (1, 3, 9, 16, 16),
    ),
    "AutoencoderKLWan": (WAN, (1, 3, 5, 32, 32)),
    "AutoencoderKLQwenImage": (WAN, (1, 3, 1, 32, 32)),
    "AutoencoderKLHunyuanVideo": (FOUR | {"norm_num_groups": 4}, (1, 3, 5, 32, 32)),
    "AutoencoderKLCogVideoX": (FOUR | {"norm_num_groups": 2}, (1, 3, 5, 32, 32)),
    "AutoencoderKLMagvit": (FOUR | {"norm_num_groups": 8}, (1, 3, 9, 16, 16)),
    "AutoencoderKLMochi": (
        {
            "latent_channels": 4,
            "encoder_block_out_channels": (32,) * 4,
            "decoder_block_out_channels": (32,) * 4,
            "layers_per_block": (1,) * 5,
        },
        (1, 3, 7, 16, 16),
    ),
    "AutoencoderOobleck": (
        {
            "encoder_hidden_size": 12,
            "decoder_channels": 12,
            "decoder_input_channels": 6,
            "downsampling_ratios": [2, 4],
            "channel_multiples": [1, 2],
        },
        (1, 2, 24),
    ),
    "AutoencoderKLHunyuanImage": (
        {
            "latent_channels": 4,
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "in_channels": 3,
            "out_channels": 3,
            "spatial_compression_ratio": 2,
            "sample_size": 32,
        },
        (1, 3, 32, 32),
    ),
}

#: Every class of diffusers that encodes and decodes.
ALL = sorted(
    name
    for name in dir(diffusers)
    if ("Autoencoder" in name or name in ("VQModel", "ConsistencyDecoderVAE"))
    and inspect.isclass(getattr(diffusers, name))
)


def made(name: str) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    config, shape = SMALL[name]
    return getattr(diffusers, name)(**config).eval(), torch.randn(shape)


def tensor_of(answer: Any) -> torch.Tensor:
    first = answer[0]
    return first.mode() if hasattr(first, "mode") and not isinstance(first, torch.Tensor) else first


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")  # Oobleck's
@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_it_answers_as_its_class_does(name: str) -> None:
    vae, source = made(name)
    wrapped = exact(vae)
    assert isinstance(wrapped, type(vae))
    assert isinstance(wrapped, ExactVAE)
    z = tensor_of(vae.encode(source))
    assert torch.allclose(tensor_of(wrapped.encode(source, return_dict=False)), z, atol=1e-5)
    besides = {
        "num_frames": 3,
        "temb": torch.tensor([0.05]),
        "image": source,
        "mask": torch.ones_like(source[:, :1]),
    }
    taken = inspect.signature(vae.decode).parameters
    given = {key: value for key, value in besides.items() if key in taken}
    expected = vae.decode(z, **given)
    made_now = wrapped.decode(z, **given)
    assert type(made_now) is type(expected)
    assert torch.allclose(made_now.sample, expected.sample, atol=1e-5)
    by_position = [z, *(given.get(key, one.default) for key, one in list(taken.items())[1:])]
    assert torch.allclose(wrapped.decode(*by_position).sample, expected.sample, atol=1e-5)
    assert list(inspect.signature(wrapped.forward).parameters) == list(inspect.signature(vae.forward).parameters)


@pytest.mark.parametrize("name", ALL)
def test_every_argument_of_every_class_arrives(name: str) -> None:
    kind = getattr(diffusers, name)

    class Recording(kind):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            nn.Module.__init__(self)

    for task in ("encode", "decode"):
        if not hasattr(kind, task):
            continue
        names = [key for key, one in inspect.signature(getattr(kind, task)).parameters.items() if one.kind < 2][1:]
        values = [object() for _ in names]
        setattr(Recording, task, lambda self, *given, **named: (given, named))
        wrapped = exact(Recording())
        assert isinstance(wrapped, kind)
        assert getattr(wrapped, task)(*values) == (tuple(values), {})
        by_name = dict(zip(names, values, strict=True))
        assert getattr(wrapped, task)(**by_name) == ((), by_name)


@torch.no_grad()
def test_a_tiny_ones_order_of_arguments_and_its_whole() -> None:
    vae = small_tiny(4)
    wrapped, z, picture = exact(vae), torch.randn(1, 4, 40, 36), torch.randn(1, 3, 64, 64)
    assert isinstance(wrapped.decode(z, None, False), tuple)
    assert torch.allclose(wrapped(picture).sample, vae(picture).sample, atol=1e-3)  # which rounds latents to bytes


class TestDtypes:
    """Whatever the latents are in, the answer is in the module's dtype."""

    @pytest.mark.parametrize("own", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
    @pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
    @pytest.mark.parametrize("hooked", [False, True], ids=["strips", "plain"])
    @torch.no_grad()
    def test_of_latents_and_pictures(self, own, given, hooked) -> None:
        vae, z = small_kl(4).to(own), torch.randn(1, 4, 16, 12).to(given)
        wrapped = exact(vae)
        wrapped.modes = ("strips",)
        if hooked:
            vae.decoder.register_forward_hook(lambda module, given, made: None)
        sample, expected = wrapped.decode(z).sample, vae.decode(z.to(own)).sample
        assert sample.dtype is own
        tolerance = {torch.bfloat16: 0.1, torch.float16: 0.01}.get(own, 5e-5)
        assert (sample - expected).double().norm() <= tolerance * expected.double().norm()
        assert wrapped.encode(torch.zeros(1, 3, 32, 32, dtype=given)).latent_dist.mode().dtype is own

    @torch.no_grad()
    def test_converted_after_wrapping(self) -> None:
        wrapped, z = exact(small_kl(4)), torch.randn(1, 4, 40, 36)
        for dtype in (torch.float16, torch.float32, torch.bfloat16):
            assert wrapped.to(dtype=dtype) is wrapped  # as pipelines upcast
            assert wrapped.dtype is dtype
            assert wrapped.decode(z).sample.dtype is dtype
        assert wrapped.half().dtype is torch.float16
        assert wrapped.vae.dtype is torch.float16

    @pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
    @pytest.mark.parametrize("has_gradients", [False, True], ids=["strips", "plain"])
    def test_what_is_no_real_number_is_refused(self, dtype, has_gradients: bool) -> None:
        refused = pytest.raises(RequestError, match="expected floating-point numbers on cpu")
        with torch.set_grad_enabled(has_gradients), refused:
            exact(small_kl(4)).decode(torch.ones(1, 4, 8, 8, dtype=dtype))

    @torch.no_grad()
    def test_another_device_is_refused(self) -> None:
        with pytest.raises(RequestError, match="expected floating-point numbers on cpu"):
            exact(small_kl(4)).decode(torch.ones(1, 4, 8, 8, device="meta"))

    @pytest.mark.parametrize("modes", [("strips",), ("whole",)])
    @torch.no_grad()
    def test_autocast_changes_nothing(self, modes) -> None:
        wrapped, z = exact(small_kl(4)), torch.randn(1, 4, 16, 12)
        wrapped.modes = modes
        expected = wrapped.decode(z).sample
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(wrapped.decode(z).sample, expected)


class TestToAPipeline:
    def test_its_names_are_the_vaes(self) -> None:
        vae = small_kl(4)
        wrapped = exact(vae)
        assert list(wrapped.state_dict()) == list(vae.state_dict())
        assert [name for name, _ in wrapped.named_parameters()] == [name for name, _ in vae.named_parameters()]
        wrapped.load_state_dict(small_kl(4, seed=3).state_dict())
        assert torch.equal(vae.decoder.conv_in.weight, small_kl(4, seed=3).decoder.conv_in.weight)

    def test_what_is_set_on_it_is_set_on_the_vae(self) -> None:
        vae = small_kl(4)
        wrapped = exact(vae)
        wrapped.tile_sample_min_size = 24
        wrapped.decoder.conv_act = nn.ReLU()
        wrapped.post_quant_conv = None
        wrapped.train()
        assert (vae.tile_sample_min_size, vae.post_quant_conv, vae.training) == (24, None, True)
        assert not wrapped.eval().training
        assert not vae.decoder.training
        wrapped.budget_bytes = 5
        assert not hasattr(vae, "budget_bytes")

    def test_it_is_saved_as_the_vae(self, tmp_path: Path) -> None:
        vae = small_kl(4)
        exact(vae).save_pretrained(tmp_path / "alone")
        loaded = diffusers.AutoencoderKL.from_pretrained(tmp_path / "alone")
        assert torch.equal(loaded.decoder.conv_in.weight, vae.decoder.conv_in.weight)

    @torch.no_grad()
    def test_a_pickle_is_wrapped_too(self) -> None:
        other = pickle.loads(pickle.dumps(exact(small_kl(4), "1GiB")))  # noqa: S301 - made in the same line
        assert type(other) is ExactVAE
        assert other.decoder is other.vae.decoder
        assert other.budget_bytes == 2**30

    @torch.no_grad()
    def test_hooks_that_were_there_before_it_was_wrapped(self) -> None:
        from accelerate import cpu_offload_with_hook
        from accelerate.hooks import remove_hook_from_module

        vae, _ = cpu_offload_with_hook(small_kl(4), execution_device="cpu")
        wrapped = exact(vae)
        assert wrapped.why_plain("decode") is None
        wrapped.decode(torch.zeros(1, 4, 8, 8))
        wrapped(torch.zeros(1, 3, 32, 32))
        remove_hook_from_module(wrapped)
        assert "_hf_hook" not in vars(vae)
        wrapped(torch.zeros(1, 3, 32, 32))
