"""Compares VAEs of a server with ComfyUI's own modules, which have the same weights: decoded and encoded by each.

Started by test_real_comfyui.py; the profile ``desktop`` has the VAEs of the folder that the argument names, each in
a folder of its own with its name.  ComfyUI makes its modules as it does for files, but narrower.
"""

# ruff: noqa: I001 - ComfyUI is prepared before it is imported

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from real_host import FOLDERS, compare, pack_module

import comfy.ldm.cosmos.vae
import comfy.ldm.genmo.vae.model as genmo
import comfy.ldm.lightricks.vae.causal_video_autoencoder as lightricks
import comfy.ldm.wan.vae2_2
import comfy.sd
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file

Weights = dict[str, torch.Tensor]

#: Names of diffusers in those of latent diffusion, in this order.
_LDM = {
    r"mid_block\.resnets\.0\.": "mid.block_1.",
    r"mid_block\.resnets\.1\.": "mid.block_2.",
    r"mid_block\.attentions\.0\.": "mid.attn_1.",
    r"attn_1\.(group_norm|norm)\.": "attn_1.norm.",
    r"\.to_(q|k|v)\.": r".\1.",
    r"\.to_out\.0\.": ".proj_out.",
    r"attn_1\.proj\.": "attn_1.proj_out.",
    r"down_blocks\.(\d+)\.resnets\.": r"down.\1.block.",
    r"down_blocks\.(\d+)\.downsamplers\.0\.": r"down.\1.downsample.",
    r"up_blocks\.(\d+)\.resnets\.": r"up.\1.block.",
    r"up_blocks\.(\d+)\.upsamplers\.0\.": r"up.\1.upsample.",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
}


def _renamed(name: str, rules: dict[str, str]) -> str:
    for pattern, to in rules.items():
        name = re.sub(pattern, to, name)
    return name


def _counted_down(name: str, levels: int) -> str:
    """Latent diffusion counts the decoder's levels from the picture."""
    return re.sub(r"decoder\.up\.(\d+)", lambda found: f"decoder.up.{levels - 1 - int(found[1])}", name)


def hunyuan_video(weights: Weights) -> Weights:
    return {_counted_down(_renamed(name, _LDM), 4): weight for name, weight in weights.items()}


def hunyuan_video_15(weights: Weights) -> Weights:
    return {_renamed(name, _LDM): weight for name, weight in weights.items()}


def hunyuan_image(weights: Weights) -> Weights:
    """Whose blocks diffusers counts through all levels."""

    def level(found: re.Match[str]) -> str:
        way, blocks = (found[1], 2) if found[1] == "down" else (found[1], 3)
        index, block = divmod(int(found[2]), blocks + 1)
        return f"{way}.{index}." + (f"{way}sample." if block == blocks else f"block.{block}.")

    named = {re.sub(r"(down|up)_blocks\.(\d+)\.", level, name): weight for name, weight in weights.items()}
    return {_renamed(name, _LDM): weight for name, weight in named.items()}


def cosmos(weights: Weights) -> Weights:
    first = {r"mid_block\.attentions\.0\.": "mid.attn_1.0.", r"mid_block\.temp_attentions\.0\.": "mid.attn_1.1."}
    last = {r"\.conv_s\.": ".0.", r"\.conv_t\.": ".1.", r"(?<!norm)\.(weight|bias)$": r".conv3d.\1"}
    rules = {**_LDM, **first, **last}
    return {_counted_down(_renamed(name, rules), 3): weight for name, weight in weights.items()}


def mochi(weights: Weights) -> Weights:
    stacked = {
        r"^(decoder)\.conv_in": r"\1.blocks.0.0",
        r"^(decoder)\.block_out\.": r"\1.blocks.4.",
        r"^(encoder)\.proj_in": r"\1.layers.0",
        "norm_out.norm_layer": "output_norm",
        r"^(\w+)\.proj_out": r"\1.output_proj",
        r"norm1\.norm_layer": "stack.0",
        r"conv1\.conv": "stack.2",
        r"norm2\.norm_layer": "stack.3",
        r"conv2\.conv": "stack.5",
        r"norms\.(\d+)\.norm_layer": r"resnets.\1.attn_block.norm",
        r"attentions\.(\d+)\.to_out\.0": r"resnets.\1.attn_block.attn.out",
        r"attentions\.(\d+)\.": r"resnets.\1.attn_block.attn.",
        r"conv_in\.conv": "layers.0",
    }
    made: Weights = {}
    for name, weight in weights.items():
        name = _renamed(name, stacked)
        name = re.sub(r"^decoder\.up_blocks\.(\d+)", lambda n: f"decoder.blocks.{int(n[1]) + 1}", name)
        name = re.sub(r"^decoder\.blocks\.4\.resnets\.", "decoder.blocks.4.", name)
        name = re.sub(r"^decoder\.block_in\.resnets\.(\d)", lambda n: f"decoder.blocks.0.{int(n[1]) + 1}", name)
        name = re.sub(r"^(decoder\.blocks\.\d)\.resnets\.", r"\1.blocks.", name)
        name = re.sub(r"^encoder\.down_blocks\.(\d)", lambda n: f"encoder.layers.{int(n[1]) + 4}", name)
        name = re.sub(r"^encoder\.block_in\.resnets\.(\d)", lambda n: f"encoder.layers.{int(n[1]) + 1}", name)
        name = re.sub(r"^encoder\.block_out\.resnets\.(\d)", lambda n: f"encoder.layers.{int(n[1]) + 7}", name)
        name = re.sub(r"(encoder\.layers\.\d)\.resnets\.(\d)", lambda n: f"{n[1]}.layers.{int(n[2]) + 1}", name)
        made[name] = weight
    for name in [name for name in made if ".to_q." in name]:
        parts = [made.pop(name.replace(".to_q.", f".to_{part}.")) for part in "qkv"]
        made[name.replace(".to_q.", ".qkv.")] = torch.cat(parts)
    return made


def by_converter(convert: Callable[..., Weights], own: Weights, prefix: str = "") -> Callable[[Weights], Weights]:
    """The way back of one of diffusers' converters, which is given a number in the place of each weight."""
    names = list(own)
    numbers = {prefix + name: torch.full(own[name].shape, float(index)) for index, name in enumerate(names)}
    found = {name: names[int(number.flatten()[0])] for name, number in convert(numbers).items()}
    return lambda weights: {found[name]: weight for name, weight in weights.items()}


def resized(kind: Any, **sizes: Any) -> Any:
    """A class of ComfyUI's with other sizes than it has for files."""
    return lambda **given: kind(**{**given, **sizes})


def resized_inside(kind: Any, **sizes: Any) -> Any:
    """The same of a class whose sizes are in its configs."""

    def make(**given: Any) -> Any:
        for name, config in given.items():
            if name == "ddconfig":
                given[name] = {**config, **sizes}
            elif isinstance(config, dict) and "params" in config:
                given[name] = {**config, "params": {**config["params"], **sizes}}
        return kind(**given)

    return make


def as_convolutions(weights: Weights) -> Weights:
    """The projections of attention, which diffusers has as matrices."""
    found = (weight.ndim for name, weight in weights.items() if "conv_in" in name and weight.ndim > 2)
    ones = (1,) * (next(found, 2) - 2)
    return {
        name: weight.reshape(*weight.shape, *ones) if "attn_1" in name and weight.ndim == 2 else weight
        for name, weight in weights.items()
    }


KL, ENGINE = comfy.sd.AutoencoderKL, comfy.sd.AutoencodingEngine
WAN_22, COSMOS = comfy.ldm.wan.vae2_2.WanVAE, comfy.ldm.cosmos.vae.CausalContinuousVideoTokenizer
GENMO = {name: getattr(genmo, name) for name in ("Encoder", "Decoder")}
LIGHTRICKS = {name: getattr(lightricks, name) for name in ("Encoder", "Decoder")}


def make_narrow(name: str) -> None:
    """Has ComfyUI make narrower modules than those of files, where it does not read the width from a file."""
    comfy.sd.AutoencoderKL = resized_inside(KL, ch=32)
    widths = {"hunyuan-image": [32, 64, 64, 64, 128, 128], "hunyuan-video-1.5": [32, 64, 64, 128, 128]}
    comfy.sd.AutoencodingEngine = resized_inside(ENGINE, block_out_channels=widths.get(name))
    comfy.ldm.wan.vae2_2.WanVAE = resized(WAN_22, dim=16, dec_dim=16)
    comfy.ldm.cosmos.vae.CausalContinuousVideoTokenizer = resized(COSMOS, channels=8)
    for part, kind in GENMO.items():
        setattr(genmo, part, resized(kind, base_channels=32, channel_multipliers=[1, 2, 3, 4]))
    for part, kind in LIGHTRICKS.items():
        width = 128 if (name, part) == ("ltx-2", "Encoder") else 16  # diffusers takes that of the latents
        setattr(lightricks, part, partial(kind, base_channels=width))


def wan(weights: Weights) -> Weights:
    shape = {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True]}
    own = comfy.ldm.wan.vae.WanVAE(dim=8, z_dim=16, **shape).state_dict()
    return by_converter(single_file_utils.convert_wan_vae_to_diffusers, own)(weights)


def wan_22(weights: Weights) -> Weights:
    shape = {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True]}
    own = comfy.ldm.wan.vae2_2.WanVAE(z_dim=48, **shape).state_dict()

    def convert(numbers: Weights) -> Weights:
        """diffusers' converter, which knows the decoder's blocks of Wan 2.1 alone."""
        upsamples = {name: number for name, number in numbers.items() if name.startswith("decoder.upsamples.")}
        others = {name: number for name, number in numbers.items() if name not in upsamples}
        found = {**single_file_utils.convert_wan_vae_to_diffusers(others), **upsamples}
        rules = {
            r"decoder\.upsamples\.": "decoder.up_blocks.",
            r"(downsamples|upsamples)\.(\d)\.(conv|norm|residual|shortcut)": r"resnets.\2.\3",
            r"resnets\.(\d)\.residual\.0": r"resnets.\1.norm1",
            r"resnets\.(\d)\.residual\.2": r"resnets.\1.conv1",
            r"resnets\.(\d)\.residual\.3": r"resnets.\1.norm2",
            r"resnets\.(\d)\.residual\.6": r"resnets.\1.conv2",
            r"resnets\.(\d)\.shortcut": r"resnets.\1.conv_shortcut",
            r"downsamples\.\d\.": "downsampler.",
            r"upsamples\.\d\.": "upsampler.",
        }
        return {_renamed(name, rules): number for name, number in found.items()}

    return by_converter(convert, own)(weights)


def ltx_config(name: str) -> dict[str, Any] | None:
    """What a file of LTX's has in its metadata; the first one has nothing there."""
    versions = {"ltx-video-0.9.1": 1, "ltx-video-0.9.5": 2, "ltx-2": 2}
    if name not in versions:
        return None
    config = lightricks.VideoVAE.guess_config(None, versions[name])
    for block in config["decoder_blocks"]:
        block[1].pop("inject_noise", None)  # drawn anew each time
    if name == "ltx-2":
        for block in config["encoder_blocks"]:
            block[1] |= {"multiplier": 1} if "multiplier" in block[1] else {}
    return {**config, "timestep_conditioning": name != "ltx-2"}


def ltx(name: str, weights: Weights) -> Weights:
    own = lightricks.VideoVAE(config=ltx_config(name)).state_dict()
    if name == "ltx-2":
        return by_converter(single_file_utils.convert_ltx2_vae_to_diffusers, own)(weights)
    if name == "ltx-video-0.9.5":  # which its converter tells by this width
        own["encoder.conv_out.conv.weight"] = torch.empty(1, 2048)
    return by_converter(single_file_utils.convert_ltx_vae_checkpoint_to_diffusers, own, "vae.")(weights)


CONVERTED: dict[str, Callable[[Weights], Weights]] = {
    "wan-2.1": wan,
    "wan-2.2-5b": wan_22,
    "qwen-image": wan,
    "hunyuan-video": hunyuan_video,
    "hunyuan-video-1.5": hunyuan_video_15,
    "hunyuan-image": hunyuan_image,
    "flux2": hunyuan_video,
    "cosmos": cosmos,
    "mochi": mochi,
    **{name: partial(ltx, name) for name in ("ltx-video", "ltx-video-0.9.1", "ltx-video-0.9.5", "ltx-2")},
}


def local_vae(name: str) -> Any:
    """ComfyUI's own VAE with the weights of a model of the server."""
    folder = FOLDERS[0] / name
    make_narrow(name)
    weights = as_convolutions(CONVERTED[name](load_file(folder / "diffusion_pytorch_model.safetensors")))
    config = json.loads((folder / "config.json").read_text())
    if name == "cosmos":
        weights["decoder.unpatcher3d.wavelets"] = torch.zeros(1)  # by which ComfyUI knows the file
        weights |= {f"latent_{part}": torch.tensor(config[f"latents_{part}"]) for part in ("mean", "std")}
    metadata = {"config": json.dumps({"vae": ltx_config(name)})} if ltx_config(name) else None
    vae = comfy.sd.VAE(sd=weights, metadata=metadata, dtype=torch.float32)
    own, given = set(vae.first_stage_model.state_dict()), set(weights)
    lacking = {key for key in own - given if "per_channel_statistics" not in key and "num_batches" not in key}
    assert not lacking, sorted(lacking)[:5]
    return vae


def of_earlier_frames(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention of (B, C, T, H, W) in which a frame sees itself and earlier ones."""
    frames = torch.arange(q.shape[2]).repeat_interleave(q.shape[3] * q.shape[4])
    flat = (tensor.flatten(2).transpose(1, 2)[:, None] for tensor in (q, k, v))
    found = torch.nn.functional.scaled_dot_product_attention(*flat, attn_mask=frames[:, None] >= frames)
    return found[:, 0].transpose(1, 2).reshape(v.shape)


def compute_as_diffusers(name: str, vae: Any) -> None:
    """Has ComfyUI's module compute as diffusers' where it is known to differ, so that nothing else may."""
    module = vae.first_stage_model
    if name.startswith("hunyuan-video"):
        for part in (module.encoder, module.decoder):
            part.mid.attn_1.optimized_attention = of_earlier_frames
    elif name.startswith("ltx-video"):
        for conv in module.decoder.modules():
            if isinstance(conv, torch.nn.Conv3d):
                conv.padding_mode = "zeros"
    elif name == "mochi":
        genmo.optimized_attention = lambda q, k, v, heads, **_: (
            torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        )
        for block in module.decoder.blocks[1:4]:
            block.d2st.drops = False


def depth_to_space(self: Any, x: torch.Tensor) -> torch.Tensor:
    """ComfyUI's upsampling of Mochi, which may keep the frames before the first one."""
    times, side = self.temporal_expansion, self.spatial_expansion
    batch, _, frames, height, width = x.shape
    x = x.view(batch, -1, times, side, side, frames, height, width).permute(0, 1, 5, 2, 6, 3, 7, 4)
    x = x.reshape(batch, -1, frames * times, height * side, width * side)
    return x[:, :, times - 1 :] if getattr(self, "drops", True) else x


def latents_for(vae: Any, frames: int) -> torch.Tensor:
    return torch.randn(1, vae.latent_channels, *([frames] if vae.latent_dim == 3 else []), 3, 4)


def decoded(told: dict[str, Any], title: str, remote: Any, own: Any, most: float) -> None:
    for frames in (1, 2, 3) if own.latent_dim == 3 and remote.temporal_compression_decode() else (1,):
        latents = latents_for(own, frames)
        pixels = own.decode(latents)
        if title == "mochi as diffusers":
            pixels = pixels[:, 5:]
        compare(told, f"{title}: decode {frames}", remote.decode(latents), pixels, most)


def encoded(told: dict[str, Any], title: str, remote: Any, own: Any, most: float) -> None:
    factor = own.spacial_compression_encode()
    step = remote.temporal_compression_decode()
    pixels = torch.rand(1 + 2 * (step or 0), 3 * factor + 5, 4 * factor, 3)
    for frames in (1, step + 1, 2 * step + 1) if step else (1,):
        film = pixels[:frames]
        compare(told, f"{title}: encode {frames}", remote.encode(film), own.encode(film), most)
    if title.partition(" ")[0] in LEAVE_OUT:
        longer = torch.cat([pixels, pixels[:2]])
        try:
            here = own.encode(longer)
        except ValueError as error:
            told[f"{title}: encode {len(longer)}"] = str(error)  # newer releases leave frames out
        else:
            compare(told, f"{title}: encode {len(longer)}", remote.encode(longer), here, most)


def asked(told: dict[str, Any], name: str, remote: Any, own: Any) -> None:
    """What nodes ask a VAE."""
    if name == "qwen-image":  # ComfyUI takes it for Wan's
        return
    for what in ("latent_channels", "latent_dim", "output_channels", "not_video", "crop_input",
                 "downscale_index_formula", "upscale_index_formula"):  # fmt: skip
        assert getattr(remote, what) == getattr(own, what), (name, what, getattr(remote, what), getattr(own, what))
    for what in ("spacial_compression_decode", "spacial_compression_encode", "temporal_compression_decode"):
        assert getattr(remote, what)() == getattr(own, what)(), (name, what)
    for what in ("downscale_ratio", "upscale_ratio"):
        both = getattr(remote, what), getattr(own, what)
        if isinstance(both[1], int):
            assert both[0] == both[1], (name, what, both)
        else:
            assert both[0][1:] == both[1][1:], (name, what, both)
            counts = [[ratio[0](frames) for frames in range(1, 40)] for ratio in both]
            assert counts[0] == counts[1], (name, what, counts)


#: Models that leave out the last frames of a film that they cannot encode whole.
LEAVE_OUT = ("wan-2.1", "wan-2.2-5b", "hunyuan-video-1.5", *(name for name in CONVERTED if name.startswith("ltx")))

#: Models whose numbers ComfyUI's own code computes otherwise than diffusers'.
OTHERWISE = ("hunyuan-video", "hunyuan-video-1.5", "ltx-video", "ltx-video-0.9.1", "ltx-video-0.9.5", "mochi")


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    # Noise that is drawn anew each time would be another in each of two.
    torch.randn_like = lambda like, **_: torch.zeros_like(like)
    genmo.DepthToSpaceTime.forward = depth_to_space
    servers, vaes = map(pack_module, ("servers", "vae"))
    server = servers.server_of("desktop")
    told: dict[str, Any] = {}
    for name in CONVERTED:
        remote = vaes.RemoteVAE(server, server.model(name, "decode"), "float")
        own = local_vae(name)
        asked(told, name, remote, own)
        title = name
        if name in OTHERWISE:
            decoded(told, f"{name} as it is", remote, own, 1.0)
            compute_as_diffusers(name, own)
            title = f"{name} as diffusers"
        decoded(told, title, remote, own, 1e-4)
        encoded(told, title, remote, own, 1e-4)
    servers.close()
    print(json.dumps(told))  # noqa: T201 - for the test


if __name__ == "__main__":
    main()
