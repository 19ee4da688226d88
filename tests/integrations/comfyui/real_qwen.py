"""Compares ControlNets of Qwen-Image, which encode their picture, with the server's VAE and with ComfyUI's own.

Started by test_real_comfyui.py as ``real_vaes.py`` is, which makes ComfyUI's own VAE.  The denoiser and the
ControlNets are small and have random weights.
"""

# ruff: noqa: I001 - ComfyUI is prepared before it is imported

from __future__ import annotations

import json
from typing import Any

from real_vaes import local_vae
from real_host import compare, pack_module

import comfy.controlnet
import comfy.latent_formats
import comfy.ops
import comfy.supported_models
import nodes
import torch
from comfy.ldm.qwen_image.controlnet import QwenImageControlNetModel
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_model_patch import QwenImageBlockWiseControlNet, QwenImageDiffsynthControlnet

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    **{"in_channels": 64, "out_channels": 16, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2},
    **{"joint_attention_dim": 32, "axes_dims_rope": (4, 6, 6), "dtype": torch.float32},
}


def random(module: Any) -> Any:
    for weight in module.parameters():
        weight.data.normal_(std=0.05)
    return module


def patcher(module: Any) -> ModelPatcher:
    return ModelPatcher(random(module), load_device=CPU, offload_device=CPU)


def sampled(model: Any, positive: Any, negative: Any) -> torch.Tensor:
    start = {"samples": torch.zeros(1, 16, 1, 8, 12)}
    return nodes.KSampler().sample(model, 1, 3, 4.0, "euler", "simple", positive, negative, start)[0]["samples"]


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    servers, vaes = map(pack_module, ("servers", "vae"))
    server = servers.server_of("desktop")
    remote = vaes.RemoteVAE(server, server.model("qwen-image", "decode"), "float")
    both, told = (local_vae("qwen-image"), remote), {}
    config = comfy.supported_models.QwenImage({"image_model": "qwen_image", **SIZES})
    model = patcher(config.get_model({}, "", "cpu"))
    texts = [[[torch.randn(1, 8, 32), {"pooled_output": None}]] for _ in range(2)]
    picture, mask = torch.rand(1, 60, 100, 3), torch.zeros(1, 60, 100)
    mask[:, 20:40, 30:60] = 1
    without = sampled(model, *texts)

    inner = random(QwenImageControlNetModel(operations=comfy.ops.manual_cast, device=CPU, **SIZES))
    space = comfy.latent_formats.Wan21()
    control = comfy.controlnet.ControlNet(inner, compression_ratio=1, latent_format=space, load_device=CPU)
    apply = nodes.ControlNetApplyAdvanced().apply_controlnet
    guided = [sampled(model, *apply(*texts, control, picture, 1.0, 0.0, 1.0, vae=vae)) for vae in both]
    compare(told, "ControlNet", guided[1], guided[0], 1e-3)
    assert (guided[0] - without).abs().max() > 0.1

    for more in (0, 4):  # the second is told a mask
        width = {"num_layers": 2, "in_dim": 64, "additional_in_dim": more, "dim": 32}
        patch = patcher(QwenImageBlockWiseControlNet(operations=comfy.ops.manual_cast, **width))
        patched = QwenImageDiffsynthControlnet().diffsynth_controlnet
        models = [patched(model, patch, vae, picture, 1.0, mask if more else None)[0] for vae in both]
        guided = [sampled(one, *texts) for one in models]
        compare(told, f"DiffSynth, {more} channels of a mask", guided[1], guided[0], 1e-3)
        assert (guided[0] - without).abs().max() > 0.1
    servers.close()
    print(json.dumps(told))  # noqa: T201 - for the test


if __name__ == "__main__":
    main()
