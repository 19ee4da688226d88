"""Writes what ComfyUI's own classes make, with random weights, into a folder ``models``: its only argument.

A small denoiser of Wan's, and a checkpoint of Stable Diffusion 3 with a small denoiser and with CLIP.
"""

# ruff: noqa: I001 - ComfyUI is prepared before it is imported

from __future__ import annotations

from typing import Any

from real_host import FOLDERS

import comfy.ops
import torch
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from comfy.ldm.wan.model import WanModel
from comfy.sd1_clip import SDClipModel
from safetensors.torch import save_file


def random_weights(module: Any) -> dict[str, torch.Tensor]:
    weights = {}
    for name, weight in module.state_dict().items():
        is_scale = weight.ndim == 1 and name.endswith(("norm.weight", "norm1.weight", "norm2.weight"))
        weights[name] = torch.randn(weight.shape) * 0.03 + (1.0 if is_scale else 0.0)
    return weights


if __name__ == "__main__":
    torch.manual_seed(0)
    wan = WanModel(dim=128, ffn_dim=64, num_heads=1, num_layers=1, operations=comfy.ops.manual_cast)
    (FOLDERS[0] / "checkpoints").mkdir(parents=True, exist_ok=True)
    (FOLDERS[0] / "diffusion_models").mkdir(exist_ok=True)
    save_file(random_weights(wan), FOLDERS[0] / "diffusion_models" / "wan2.1_t2v_1.3B_bf16.safetensors")
    denoiser = OpenAISignatureMMDITWrapper(
        depth=2, input_size=None, pos_embed_max_size=64, num_patches=64 * 64, adm_in_channels=2048,
        context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}},
        in_channels=16, operations=comfy.ops.manual_cast,
    )  # fmt: skip
    clip = SDClipModel(dtype=torch.float16)
    parts = {"model.diffusion_model.": denoiser, "text_encoders.clip_l.transformer.": clip.transformer}
    checkpoint = {
        start + name: weight.half()
        for start, part in parts.items()
        for name, weight in random_weights(part).items()
    }
    save_file(checkpoint, FOLDERS[0] / "checkpoints" / "sd_xl_base_1.0.safetensors")
