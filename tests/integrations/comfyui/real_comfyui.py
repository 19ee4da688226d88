"""Runs the pack's objects in a real ComfyUI's own nodes, and compares with its own VAE and text encoder.

Started by test_real_comfyui.py; the profile ``desktop`` has a server with ``vae``, the weights of which are in the
folder of the first argument, and ``text``, a pipeline's text encoders in that of the second.
"""

# ruff: noqa: I001 - ComfyUI is prepared before it is imported

from __future__ import annotations

import json
import threading
import time
from typing import Any

from real_host import FOLDERS, LEVEL, STUBS, CLIPTextModel, CLIPTokenizer, compare, pack_module

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import nodes
import torch
from comfy import clip_model, sd1_clip
from safetensors.torch import load_file

VAE_FOLDER, TEXT_FOLDER = FOLDERS


def local_vae() -> Any:
    """ComfyUI's own VAE with the same weights."""
    shape = {
        **{"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3},
        **{"ch": 32, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0},
    }
    config = {"params": {"ddconfig": shape, "embed_dim": 4}}
    vae = comfy.sd.VAE(sd=load_file(VAE_FOLDER / "diffusion_pytorch_model.safetensors"), config=config)
    vae.first_stage_model.regularization.sample = False  # as newer releases: the mode, not a draw
    return vae


def local_clip() -> tuple[Any, Any]:
    """ComfyUI's own text encoder with the same weights, and its tokenizer."""
    model = CLIPTextModel.from_pretrained(TEXT_FOLDER / "text_encoder")
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "hidden_act")
    config: dict[str, Any] = {name: getattr(model.config, name) for name in names}
    config |= {"vocab_size": model.config.vocab_size, "max_position_embeddings": 77}
    # The size of the vocabulary is a default alone, and the first one.
    made_by = clip_model.CLIPEmbeddings.__init__
    made_by.__defaults__ = (model.config.vocab_size, *made_by.__defaults__[1:])
    tokenizer = sd1_clip.SDTokenizer(str(TEXT_FOLDER / "tokenizer"), tokenizer_class=CLIPTokenizer)
    config["eos_token_id"] = tokenizer.end_token
    file = STUBS / "config.json"
    file.write_text(json.dumps(config))
    special = {"start": tokenizer.start_token, "end": tokenizer.end_token, "pad": tokenizer.end_token}
    # Files of Stable Diffusion 1 have no projection.
    how = {"special_tokens": special, "dtype": torch.float32, "return_projected_pooled": False}
    made = sd1_clip.SDClipModel(textmodel_json_config=str(file), **how)
    made.load_sd(
        {f"text_model.{name.removeprefix('text_model.')}": one for name, one in model.state_dict().items()}
    )
    return made, tokenizer


def denoiser() -> Any:
    """A small UNet of Stable Diffusion 1 with random weights, as a MODEL."""
    torch.manual_seed(0)
    unet = {
        **{"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_heads": 4},
        **{"num_res_blocks": [1, 1], "channel_mult": [1, 2], "transformer_depth": [1, 1]},
        **{"transformer_depth_middle": 1, "transformer_depth_output": [1, 1, 1, 1], "context_dim": 32},
        **{"use_spatial_transformer": True, "legacy": False, "adm_in_channels": None},
        **{"use_linear_in_transformer": False, "use_temporal_attention": False, "dtype": torch.float32},
    }
    config = comfy.supported_models.SD15(unet)
    model = config.get_model({}, "", "cpu")
    for weight in model.parameters():
        weight.data.normal_(std=0.05)
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)


def decode_and_encode(told: dict[str, Any], remote: Any, rounded: Any, own: Any) -> None:
    """The stock nodes with VAE sockets."""
    latents = {"samples": torch.randn(2, 4, 16, 24)}
    (here,) = nodes.VAEDecode().decode(own, latents)
    compare(told, "VAEDecode", nodes.VAEDecode().decode(remote, latents)[0], here, 1e-4)
    compare(told, "VAEDecode, 8-bit", nodes.VAEDecode().decode(rounded, latents)[0], here, LEVEL)
    compare(told, "VAEDecodeTiled", nodes.VAEDecodeTiled().decode(remote, latents, 512)[0], here, 1e-4)
    pixels = torch.randint(0, 256, (1, 128, 96, 3)).float() / 255
    (here,) = nodes.VAEEncode().encode(own, pixels)
    compare(told, "VAEEncode", nodes.VAEEncode().encode(remote, pixels)[0]["samples"], here["samples"], 1e-3)
    compare(told, "VAEEncodeTiled", nodes.VAEEncodeTiled().encode(remote, pixels, 512, 64)[0]["samples"],
            here["samples"], 1e-3)  # fmt: skip
    mask = torch.zeros(1, 131, 101)
    mask[:, 40:80, 30:70] = 1
    odd = torch.rand(1, 131, 101, 3)
    (here,) = nodes.VAEEncodeForInpaint().encode(own, odd, mask)
    (there,) = nodes.VAEEncodeForInpaint().encode(remote, odd, mask)
    compare(told, "VAEEncodeForInpaint", there["samples"], here["samples"], 1e-3)
    compare(told, "its mask", there["noise_mask"], here["noise_mask"], 0)
    args = ([], [], pixels, own, mask[:, :128, :96])
    here = nodes.InpaintModelConditioning().encode(*args)[2]
    there = nodes.InpaintModelConditioning().encode(*args[:3], remote, args[4])[2]
    compare(told, "InpaintModelConditioning", there["samples"], here["samples"], 1e-3)


def sample(told: dict[str, Any], text: Any, server: Any) -> None:
    """A sampler with conditionings of the server, and the same with ComfyUI's own."""
    clip, tokenizer = local_clip()
    facts = server.model("text", "prompt")
    prompts = ("a (cat:1.3) in rain", "")
    there = [text.encode_text(server, facts, {"prompt": prompt}) for prompt in prompts]
    here = []
    for prompt in prompts:
        cond, pooled = clip.encode_token_weights(tokenizer.tokenize_with_weights(prompt))[:2]
        here.append([[cond, {"pooled_output": pooled}]])
    for own, other in zip(here, there, strict=True):
        compare(told, "conditioning", other[0][0], own[0][0], 1e-4)
        compare(told, "pooled_output", other[0][1]["pooled_output"], own[0][1]["pooled_output"], 1e-4)
    model = denoiser()
    common = (1, 3, 7.0, "euler", "normal")
    start = {"samples": torch.zeros(1, 4, 8, 8)}
    results = [nodes.KSampler().sample(model, *common, *pair, start)[0]["samples"] for pair in (here, there)]
    assert results[0].abs().max() > 0
    compare(told, "KSampler", results[1], results[0], 1e-3)


def interrupt(told: dict[str, Any], remote: Any) -> None:
    """An interruption in the middle of a decode."""
    times = []

    def press() -> None:
        time.sleep(0.3)
        times.append(time.perf_counter())
        comfy.model_management.interrupt_current_processing()

    threading.Thread(target=press).start()
    try:
        remote.decode(torch.randn(1, 4, 256, 256))
    except comfy.model_management.InterruptProcessingException:
        told["seconds to the interruption"] = time.perf_counter() - times[0]
    assert told["seconds to the interruption"] < 0.2


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    servers, vae, text = map(pack_module, ("servers", "vae", "text"))
    server = servers.server_of("desktop")
    told: dict[str, Any] = {}

    def loader(profile: str, model: str, precision: str = "float") -> Any:
        chosen = servers.server_of(profile)
        return vae.RemoteVAE(chosen, chosen.model(model, "decode"), precision)

    remote = loader("desktop", "vae")
    decode_and_encode(told, remote, loader("desktop", "vae", "8-bit"), local_vae())
    sample(told, text, server)
    interrupt(told, remote)
    servers.close()
    print(json.dumps(told))  # noqa: T201 - for the test


if __name__ == "__main__":
    main()
