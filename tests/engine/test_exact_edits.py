"""What is done to a VAE before and after it is wrapped: :func:`hybridge.exact` gives what the edited module gives.

Each edit is a function that makes one change and returns what undoes it.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import small_kl, small_tiny
from torch import nn

from hybridge.engine.exact import ExactVAE, exact
from hybridge.engine.program.module_structure import Structure, why_touched

Undo = Callable[[], Any]
Edit = Callable[[Any], Undo]


def _set(owner: Any, name: str, value: Any) -> Undo:
    before = getattr(owner, name)
    setattr(owner, name, value)
    return lambda: setattr(owner, name, before)


def setting(path: str, name: str, value: Any) -> Edit:
    def edit(vae: Any) -> Undo:
        return _set(vae.get_submodule(path), name, value)

    edit.__name__ = f"{path}.{name}"
    return edit


def _shadow(owner: Any, name: str, function: Any) -> Undo:
    setattr(owner, name, function)
    return lambda: delattr(owner, name)


def forward_hook(vae: Any) -> Undo:
    return vae.decoder.mid_block.register_forward_hook(lambda module, given, made: made * 2).remove


def forward_pre_hook(vae: Any) -> Undo:
    return vae.decoder.conv_out.register_forward_pre_hook(lambda module, given: (given[0] * 2,)).remove


def global_hook(vae: Any) -> Undo:
    def double(module: Any, given: Any, made: Any) -> Any:
        return made * 2 if isinstance(module, nn.Conv2d) else None

    return nn.modules.module.register_module_forward_hook(double).remove


def own_forward(vae: Any) -> Undo:
    conv = vae.decoder.conv_in
    return _shadow(conv, "forward", lambda x: nn.Conv2d.forward(conv, x) * 2)


def own_decode(vae: Any) -> Undo:
    before = vae._decode
    return _shadow(vae, "_decode", lambda z, return_dict=True: before(z * 2))


def seamless(vae: Any) -> Undo:
    """As scripts for tiling textures do it."""
    undo = []
    for conv in vae.modules():
        if isinstance(conv, nn.Conv2d):

            def wrap(x: Any, weight: Any, bias: Any, conv: Any = conv) -> Any:
                padded = nn.functional.pad(x, conv._reversed_padding_repeated_twice, mode="circular")
                return nn.functional.conv2d(padded, weight, bias, conv.stride)

            undo.append(_shadow(conv, "_conv_forward", wrap))
    return lambda: [one() for one in undo]


def padding_mode(mode: str) -> Edit:
    def edit(vae: Any) -> Undo:
        convs = [part for part in vae.modules() if isinstance(part, nn.Conv2d)]
        undo = [_set(conv, "padding_mode", mode) for conv in convs]
        return lambda: [one() for one in undo]

    edit.__name__ = mode
    return edit


def class_patched(vae: Any) -> Undo:
    before = nn.GroupNorm.forward
    nn.GroupNorm.forward = lambda self, x: before(self, x) * 2  # type: ignore[method-assign]
    return lambda: setattr(nn.GroupNorm, "forward", before)


def processor(vae: Any) -> Undo:
    class Halved:
        def __call__(self, attn: Any, hidden_states: Any, **others: Any) -> Any:
            return hidden_states / 2

    before = vae.attn_processors
    vae.set_attn_processor(Halved())
    return lambda: vae.set_attn_processor(before)


def old_processor_with_a_scale(vae: Any) -> Undo:
    from diffusers.models.attention_processor import AttnProcessor

    before = vae.attn_processors
    vae.set_attn_processor(AttnProcessor())
    undo = _set(vae.decoder.mid_block.attentions[0], "scale", 3.0)
    return lambda: (undo(), vae.set_attn_processor(before))


def namesake(vae: Any) -> Undo:
    """An adapter's layer, by the name of what it replaces."""

    class Conv2d(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    conv = vae.decoder.conv_in
    other = Conv2d(conv.in_channels, conv.out_channels, 3, padding=1)
    other.load_state_dict(conv.state_dict())
    return _set(vae.decoder, "conv_in", other)


def other_submodule(vae: Any) -> Undo:
    conv = vae.decoder.conv_in
    torch.manual_seed(5)
    return _set(vae.decoder, "conv_in", nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1))


def other_kernel(vae: Any) -> Undo:
    conv = vae.decoder.conv_in
    torch.manual_seed(5)
    return _set(vae.decoder, "conv_in", nn.Conv2d(conv.in_channels, conv.out_channels, 5, padding=2))


def without_bias(vae: Any) -> Undo:
    return _set(vae.decoder.conv_in, "bias", None)


def parametrised(vae: Any) -> Undo:
    class Double(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * 2

    conv = vae.decoder.conv_in
    nn.utils.parametrize.register_parametrization(conv, "weight", Double())
    return lambda: nn.utils.parametrize.remove_parametrizations(conv, "weight", leave_parametrized=False)


def weight_normed(vae: Any) -> Undo:
    conv = vae.decoder.conv_in
    nn.utils.parametrizations.weight_norm(conv)
    undo = _set(conv.parametrizations.weight, "original0", nn.Parameter(conv.parametrizations.weight.original0 * 3))
    return lambda: (undo(), nn.utils.parametrize.remove_parametrizations(conv, "weight"))


def training_with_dropout(vae: Any) -> Undo:
    undo = _set(vae.decoder.mid_block.resnets[0].dropout, "p", 1.0)
    vae.train()
    return lambda: (undo(), vae.eval())


def sequentially_offloaded(vae: Any) -> Undo:
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_submodules

    vae.requires_grad_(False)
    cpu_offload(vae, "cpu")
    return lambda: remove_hook_from_submodules(vae)


def group_offloaded(vae: Any) -> Undo:
    vae.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    return lambda: None


def cast_layer_by_layer(vae: Any) -> Undo:
    vae.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    return lambda: None


def written(how: Callable[[nn.Parameter], Any], path: str = "decoder.conv_in.weight") -> Edit:
    """Weights, written to in a way that torch does or does not count."""

    def edit(vae: Any) -> Undo:
        parameter = vae.get_parameter(path)
        before = parameter.detach().clone()
        how(parameter)
        return lambda: parameter.data.copy_(before)

    edit.__name__ = path
    return edit


def one_number_of_numpys(parameter: nn.Parameter) -> None:
    parameter.detach().numpy().reshape(-1)[-1] += 1.0


def loaded(vae: Any) -> Undo:
    before = copy.deepcopy(vae.state_dict())
    vae.load_state_dict(small_kl(4, seed=9).state_dict())
    return lambda: vae.load_state_dict(before)


def loaded_by_assignment(vae: Any) -> Undo:
    before = dict(vae.state_dict())
    vae.load_state_dict(small_kl(4, seed=9).state_dict(), assign=True)
    return lambda: vae.load_state_dict(before, assign=True)


RESNET, ATTENTION = "decoder.up_blocks.3.resnets.1", "decoder.mid_block.attentions.0"

EDITS: dict[str, Edit] = {
    "forward hook": forward_hook,
    "forward pre-hook": forward_pre_hook,
    "hook on all modules": global_hook,
    "own forward": own_forward,
    "own _decode": own_decode,
    "own _conv_forward": seamless,
    "circular padding": padding_mode("circular"),
    "reflected padding": padding_mode("reflect"),
    "replicated padding": padding_mode("replicate"),
    "forward of a class": class_patched,
    "attention processor": processor,
    "attention scale": old_processor_with_a_scale,
    "an adapter's Conv2d": namesake,
    "another submodule": other_submodule,
    "another kernel": other_kernel,
    "no bias": without_bias,
    "eps": setting("decoder.conv_norm_out", "eps", 10.0),
    "groups": setting("decoder.conv_norm_out", "num_groups", 2),
    "groups of attention": setting(f"{ATTENTION}.group_norm", "num_groups", 2),
    "heads": setting(ATTENTION, "heads", 4),
    "residual connection": setting(ATTENTION, "residual_connection", False),
    "rescaled output": setting(ATTENTION, "rescale_output_factor", 3.0),
    "output scale": setting(RESNET, "output_scale_factor", 3.0),
    "activation": setting(RESNET, "nonlinearity", nn.ReLU()),
    "last activation": setting("decoder", "conv_act", nn.Tanh()),
    "no interpolation": setting("decoder.up_blocks.0.upsamplers.0", "interpolate", False),
    "no shortcut": setting("decoder.up_blocks.3", "upsamplers", None),
    "stride": setting("decoder.conv_out", "stride", (2, 2)),
    "padding": setting("decoder.conv_out", "padding", (3, 3)),
    "dilation": setting("decoder.conv_out", "dilation", (2, 2)),
    "dropout in training": training_with_dropout,
    "parametrisation": parametrised,
    "weight norm": weight_normed,
    "sequential offloading": sequentially_offloaded,
    "data.add_": written(lambda parameter: parameter.data.add_(1.0)),
    "data.flip": written(lambda parameter: parameter.data.copy_(parameter.data.flip(-1))),
    "data.roll": written(lambda parameter: parameter.data.copy_(parameter.data.roll(1, 0))),
    "data of a norm": written(lambda parameter: parameter.data.mul_(3.0), "decoder.conv_norm_out.weight"),
    "data of a bias": written(lambda parameter: parameter.data.add_(3.0), "decoder.conv_out.bias"),
    "data of attention": written(lambda parameter: parameter.data.mul_(9.0), f"{ATTENTION}.to_v.weight"),
    "data replaced": written(lambda parameter: setattr(parameter, "data", parameter.data * 2)),
    "NumPy": written(one_number_of_numpys, "decoder.conv_out.weight"),
    "load_state_dict": loaded,
    "load_state_dict by assignment": loaded_by_assignment,
}

UNDONE_NEVER: dict[str, Edit] = {"group offloading": group_offloaded, "layerwise casting": cast_layer_by_layer}


def latents() -> torch.Tensor:
    return torch.randn((1, 4, 40, 36), generator=torch.Generator().manual_seed(0))


def in_strips(vae: Any) -> ExactVAE:
    """Wrapped, with strips even for small pictures."""
    wrapped = exact(vae)
    wrapped.modes = ("strips", "lean", "recompute")
    return wrapped


def same(wrapped: ExactVAE, vae: Any) -> bool:
    ours, theirs = (module.decode(latents()).sample for module in (wrapped, vae))
    return ours.shape == theirs.shape and bool((ours - theirs).norm() <= 5e-5 * theirs.norm())


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@torch.no_grad()
def test_an_edit_after_wrapping_and_its_undoing(edit: Edit) -> None:
    vae = small_kl(4)
    wrapped = in_strips(vae)
    untouched = wrapped.decode(latents()).sample
    assert wrapped.why_plain("decode", latents()) is None
    undo = edit(vae)
    try:
        made = vae.decode(latents()).sample
        is_another = made.shape != untouched.shape or not torch.allclose(made, untouched)
        assert is_another or edit is sequentially_offloaded
        assert same(wrapped, vae)
    finally:
        undo()
    assert same(wrapped, vae)
    assert torch.allclose(wrapped.decode(latents()).sample, untouched, atol=1e-5)


@pytest.mark.parametrize("edit", (EDITS | UNDONE_NEVER).values(), ids=EDITS | UNDONE_NEVER)
@torch.no_grad()
def test_an_edit_before_wrapping_and_its_undoing(edit: Edit) -> None:
    vae = small_kl(4)
    undo = edit(vae)
    try:
        wrapped = in_strips(vae)
        assert same(wrapped, vae)
    finally:
        undo()
    assert same(wrapped, vae)


@pytest.mark.parametrize("edit", UNDONE_NEVER.values(), ids=UNDONE_NEVER)
@torch.no_grad()
def test_what_changes_how_weights_are_kept(edit: Edit) -> None:
    vae = small_kl(4)
    wrapped = in_strips(vae)
    wrapped.decode(latents())
    edit(vae)
    assert same(wrapped, vae)
    assert wrapped.why_plain("decode") is not None


@torch.no_grad()
def test_every_weight_counts() -> None:
    vae, z = small_kl(4), torch.ones(1, 4, 8, 8)
    wrapped = in_strips(vae)
    for parameter in (*vae.decoder.parameters(), *vae.post_quant_conv.parameters()):
        parameter.data.view(-1)[parameter.numel() // 2] += 1.0
        assert torch.allclose(wrapped.decode(z).sample, vae.decode(z).sample, rtol=1e-3, atol=1e-3)
    assert wrapped.why_plain("decode") is None


@torch.no_grad()
def test_a_tiny_ones_edits() -> None:
    vae = small_tiny(4)
    wrapped = in_strips(vae)
    assert same(wrapped, vae)
    vae.decoder.layers[-1].weight.data.mul_(1.1)
    assert same(wrapped, vae)
    upsample = next(part for part in vae.decoder.modules() if isinstance(part, nn.Upsample))
    upsample.mode = "bilinear"
    assert same(wrapped, vae)


@torch.no_grad()
def test_the_reason_is_named_and_logged_once(caplog) -> None:
    vae = small_kl(4)
    wrapped = in_strips(vae)
    undo = forward_hook(vae)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            wrapped.decode(latents())
    assert wrapped.why_plain("decode") == "decoder.mid_block has a forward hook"
    assert wrapped.why_plain("encode") is None
    assert caplog.text.count("decode runs as the plain module: decoder.mid_block has a forward hook") == 1
    undo()
    assert wrapped.why_plain("decode") is None


@torch.no_grad()
def test_a_hook_on_the_whole_runs_when_the_whole_is_called() -> None:
    vae, picture = small_kl(4), torch.zeros(1, 3, 32, 32)
    wrapped, seen = exact(vae), []
    vae.register_forward_hook(lambda module, given, made: seen.append(made))
    assert wrapped.why_plain("decode") is None  # decode is no call of the whole
    wrapped(picture)
    assert len(seen) == 1


class TestWithGradients:
    def test_those_of_parameters_in_evaluation(self) -> None:
        vae = small_kl(4)
        wrapped = in_strips(vae)
        assert wrapped.why_plain("decode", latents()) == "gradients are wanted"
        wrapped.decode(latents()).sample.sum().backward()
        assert vae.decoder.conv_in.weight.grad is not None

    def test_transforms_of_functions(self) -> None:
        vae = small_kl(4).requires_grad_(False)
        wrapped, z = in_strips(vae), torch.randn(2, 1, 4, 8, 8)

        def total(decode: Any) -> Any:
            return lambda z: decode(z, return_dict=False)[0].sum()

        warnings.simplefilter("ignore")  # torch has some of its own, under vmap
        for transform in (torch.func.vmap, lambda f: torch.func.vmap(torch.func.grad(f))):
            assert torch.allclose(transform(total(wrapped.decode))(z), transform(total(vae.decode))(z), rtol=1e-4)
        tiny = small_tiny(4).requires_grad_(False)  # torch's attention has no forward mode
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(z[0], torch.ones_like(z[0]))
            pair = [
                torch.autograd.forward_ad.unpack_dual(one.decode(dual).sample) for one in (in_strips(tiny), tiny)
            ]
        assert torch.equal(pair[0].tangent, pair[1].tangent)

    @torch.no_grad()
    def test_what_writes_down_what_is_computed(self) -> None:
        vae = small_kl(4).requires_grad_(False)
        wrapped, z = in_strips(vae), torch.randn(1, 4, 8, 8)
        expected = vae.decode(2 * z).sample
        compiled = torch.compile(lambda z: wrapped.decode(z).sample, backend="eager")
        with warnings.catch_warnings(action="ignore"):
            traced = torch.jit.trace(lambda z: wrapped.decode(z, return_dict=False)[0], (z,))
        drawn = torch.fx.experimental.proxy_tensor.make_fx(lambda z: wrapped.decode(z, return_dict=False)[0])(z)
        for made in (compiled, traced, drawn):
            made(z)
            assert torch.allclose(made(2 * z), expected, atol=1e-5)


class TestALook:
    def test_nothing_has_changed_unless_it_has(self) -> None:
        vae = small_kl(4)
        structure = Structure(vae)
        vae.train().eval()
        assert structure.is_as_it_was()
        vae.decoder.conv_in.weight = nn.Parameter(vae.decoder.conv_in.weight[:4].clone())
        assert not structure.is_as_it_was()

    def test_what_diffusers_makes_is_untouched(self) -> None:
        for vae in (small_kl(4), small_tiny(4)):
            assert why_touched(vae, "decode") is None
            assert why_touched(vae, "encode") is None

    def test_it_keeps_no_weights(self) -> None:
        import weakref

        vae = small_kl(4)
        structure, weight = Structure(vae), weakref.ref(vae.decoder.conv_in.weight)
        vae.decoder.conv_in.weight = nn.Parameter(vae.decoder.conv_in.weight.detach().clone())
        assert weight() is None
        assert structure.is_as_it_was()
