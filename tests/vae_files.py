"""Weights of VAEs in the layouts of single files."""

from __future__ import annotations

import re

import torch

Tensors = dict[str, torch.Tensor]

#: From diffusers' names to those of latent diffusion.
RENAMED = (
    (r"encoder\.down_blocks\.(\d)\.resnets\.(\d)", r"encoder.down.\1.block.\2"),
    (r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
)


def in_latent_diffusions_layout(tensors: Tensors, prefix: str = "") -> Tensors:
    found = {}
    for name, tensor in tensors.items():
        for pattern, new in RENAMED:
            name = re.sub(pattern, new, name)
        up = re.compile(r"decoder\.up_blocks\.(\d)\.(resnets|upsamplers)\.(\d)")
        if match := up.match(name):  # counted from the other end
            kind = f"block.{match[3]}" if match[2] == "resnets" else "upsample"
            name = f"decoder.up.{3 - int(match[1])}.{kind}{name[match.end() :]}"
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name):
            tensor = tensor[:, :, None, None]
        found[prefix + name] = tensor.contiguous()
    return found
