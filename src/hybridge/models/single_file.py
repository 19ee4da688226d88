"""Find the contents of a single weight file, which has no config.json, from its tensors' names and shapes.

Five layouts are supported: that of latent diffusion, which A1111 and ComfyUI use in ``models/VAE`` and in whole
checkpoints; diffusers' own; Wan's, which :mod:`.wan_files` reads; TAESD's, whose encoder and decoder are separate
files, as in ComfyUI's ``models/vae_approx``; and TAEHV's.  :mod:`.tiny_files` reads the last two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import ModelUnavailable
from . import tiny_files, wan_files
from .catalogue import CATALOGUE
from .spec import ModelSpec, spec_from_config
from .tiny_files import Shapes, side
from .vae_classes import VAE_CLASSES

LayoutName = Literal["latent diffusion", "diffusers", "Wan", "TAESD"]

#: Prefixes of the VAE's tensor names in whole checkpoints.
_PREFIXES = ("first_stage_model.", "vae.", "")

_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "bn.")

#: FLUX.2's VAE keeps the statistics of its latents as those of a BatchNorm.
_FLUX2 = "AutoencoderKLFlux2"

#: The number of GroupNorm's groups is not visible in the weights.  Every VAE of latent diffusion has 32.
_NORM_GROUPS = 32

#: Classes by whose layers a model is known, where only one row has such.
_TOLD_BY_LAYERS = (_FLUX2, *wan_files.CLASSES)

#: Tensor names outside the VAE that only whole checkpoints of one family have.
_FAMILIES = {
    "conditioner.embedders.": "sdxl",
    "cond_stage_model.": "sd-v1",
    "model.diffusion_model.joint_blocks.": "sd3",
    "model.diffusion_model.double_blocks.": "flux",
}

_BLOCKS = {
    "latent diffusion": re.compile(r"encoder\.down\.(\d+)\.block\.(\d+)\.conv1\.weight"),
    "diffusers": re.compile(r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.conv1\.weight"),
}


@dataclass(frozen=True, slots=True)
class SingleFile:
    """A VAE in one file, or a tiny autoencoder in one or two files of TAESD or TAEHV.

    Attributes:
        prefix: The prefix of the names of its tensors.
        layout: The naming convention of its tensors; TAEHV's is TAESD's.
        config: The module's part of its ``config.json``, without scaling.
        family: The catalogue row found from the rest of the checkpoint, or from the name of a TAESD's or Wan's
            file; None if neither identifies one.
        has_encoder: Whether it has an encoder; a TAESD may consist of a decoder only.
    """

    prefix: str
    layout: LayoutName
    config: Mapping[str, Any]
    family: str | None
    has_encoder: bool = True

    def own_name(self, key: str) -> str | None:
        """Return a tensor's name in the module; None for tensors outside the VAE."""
        if self.layout == "TAESD":
            return tiny_files.own_name(key, is_of_diffusers=self.config["_class_name"] == "AutoencoderTiny")
        name = key.removeprefix(self.prefix)
        if self.layout == "Wan":
            return wan_files.own_name(name) if key.startswith(self.prefix) else None
        return name if key.startswith(self.prefix) and name.startswith(_PARTS) else None


def describe(name: str, where: object, shapes: Shapes) -> SingleFile:
    """Describe the VAE in a file.

    Args:
        name: Name of the model.
        where: The file.
        shapes: The shapes of all its tensors, by name.

    Raises:
        ModelUnavailable: when the file contains no VAE.
    """
    tiny = tiny_files.read_config(shapes)
    if tiny is not None:
        path = Path(str(where))
        stem = tiny_files.stem_of(path) or path.stem
        row = CATALOGUE.get(tiny_files.PARENTS.get(stem, stem))
        family = row.name if row and _fits(row, tiny) else None
        has_encoder = any(key.removeprefix("taesd_").startswith("encoder.") for key in shapes)
        return SingleFile("", "TAESD", tiny, family, has_encoder)
    for prefix in _PREFIXES:
        own = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
        if "decoder.conv_in.weight" in own and "encoder.conv_in.weight" in own:
            break
        if "decoder.layers.0.weight" in own and "encoder.layers.0.weight" in own:
            family = _family(shapes) if prefix else None
            return SingleFile(prefix, "diffusers", _tiny(own), family)
        if wan_files.MARK in own:
            config = wan_files.read_config(own)
            named = CATALOGUE.get(wan_files.row_of(Path(str(where))) or "")
            return SingleFile(prefix, "Wan", config, named.name if named and _fits(named, config) else None)
    else:
        raise ModelUnavailable(
            f"no VAE for {name}",
            saw=f"{len(shapes)} tensors, among them {', '.join(sorted(shapes)[:3])}"[:300],
            expected="an encoder and a decoder, named as in latent diffusion, diffusers, Wan or TAESD",
            hint=f"{name}=FOLDER_OR_REPOSITORY:vae of a pipeline with this VAE, in diffusers' layout",
            where=where,
        )
    config, layout = _full(own)
    return SingleFile(prefix, layout, config, _family(shapes) if prefix else None)


def spec_from_file(name: str, source: str, asked: str | None, found: SingleFile) -> ModelSpec:
    """Return the catalogue facts of a VAE in a single file.

    Its scaling is taken from a row of the catalogue: the requested row, else the row found from the checkpoint,
    else the row with the model's name.  ``title`` says which row and why.

    Raises:
        ModelUnavailable: when the row is of another kind, when several fit and none is named, and for channels
            that are not multiples of GroupNorm's 32 groups.
    """
    if "block_out_channels" in found.config and not found.config["norm_num_groups"]:
        raise ModelUnavailable(
            f"{name} is not a VAE whose shapes say all of it",
            saw=f"blocks of {', '.join(map(str, found.config['block_out_channels'])) or 'no'} channels",
            expected=f"multiples of {_NORM_GROUPS}, as in latent diffusion's VAEs",
            hint="a folder with its config.json",
            where=source,
        )
    fitting = [row for row in CATALOGUE.values() if _fits(row, found.config)]
    told_by = "file" if found.layout in ("TAESD", "Wan") or not found.prefix else "checkpoint"
    reasons = {name: "told by its name", found.family: f"told by its {told_by}", asked: "as asked for"}
    row_name = asked or found.family or (name if name in {row.name for row in fitting} else None)
    if row_name is None and len(fitting) == 1 and found.config["_class_name"] in _TOLD_BY_LAYERS:
        row_name = fitting[0].name
        reasons[row_name] = f"told by its {told_by}"
    row = next((row for row in fitting if row.name == row_name), None)
    if row is None:
        channels = found.config["latent_channels"]
        raise ModelUnavailable(
            f"the scaling of {name} is not known" if row_name is None else f"this VAE is not {row_name}'s",
            saw=f"a single file with {channels} latent channels, which are the same for several models",
            expected="one of " + (", ".join(row.name for row in fitting) or "no model that is known"),
            hint=f"{name}={source}:{fitting[0].name}, or :{fitting[-1].name}"
            if fitting
            else f"{name}=FOLDER_OR_REPOSITORY:vae of a pipeline with this VAE, in diffusers' layout",
            where=source,
        )
    what = "Single file" if found.has_encoder else "Decoder alone"
    title = f"{what} with the scaling of {row.name}, {reasons[row_name]}"
    normalisation = row.normalisation
    config = {
        **found.config,
        "scaling_factor": normalisation.scaling_factor,
        "shift_factor": normalisation.shift_factor or None,
        # SDXL's original weights overflow float16; their shapes equal those of the weights that do not.
        "force_upcast": normalisation == CATALOGUE["sdxl"].normalisation,
    }
    parent = CATALOGUE[row.parent] if row.parent else None
    if row.kind == "tiny":
        config = dict(found.config)
    elif found.config["_class_name"] in tiny_files.CLASSES:
        config, parent = {**found.config, **_as_in(row, found.config)}, row
    elif found.config["_class_name"] == _FLUX2:
        config = {**(row.architecture or {}), **found.config}
    elif found.layout == "Wan":
        config = wan_files.config_as_in(row.class_name, row.architecture or {}, found.config)
    spec = spec_from_config(name, source, None, config, parent=parent)
    reason = "weights of SDXL may overflow float16" if config.get("force_upcast") else spec.half_reason
    return replace(spec, title=title, architecture=config, half_reason=reason, has_encoder=found.has_encoder)


def _fits(row: ModelSpec, config: Mapping[str, Any]) -> bool:
    """Return whether the row is of this config's class or, for classes that have no rows, could be its parent."""
    if row.name == "starter" or row.latent_channels != config["latent_channels"]:
        return False
    if config["_class_name"] in wan_files.CLASSES:
        return row.class_name in wan_files.CLASSES
    if config["_class_name"] not in tiny_files.CLASSES:
        return row.class_name == str(config["_class_name"])
    own = VAE_CLASSES[config["_class_name"]]
    is_timed = not row.frames.is_video or row.frames.factor == own.frames(config).factor
    # LTX-2's pipelines return latents that they have denormalised, which its tiny autoencoder does not take.
    is_known = row.kind == "kl" and row.class_name != "AutoencoderKLLTX2Video"
    return (
        is_known
        and is_timed
        and row.frames.has_axis == own.frames(config).has_axis
        and (row.spatial_factor == own.spatial(config))
    )


def _as_in(row: ModelSpec, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a tiny autoencoder's config owes to its parent."""
    is_of_pairs = config["_class_name"] == "AutoencoderTAEHV" and row.frames.kind == "pairs"
    return {"keeps_even": True} if is_of_pairs else {}


def _family(shapes: Shapes) -> str | None:
    families = {family for start, family in _FAMILIES.items() if any(key.startswith(start) for key in shapes)}
    return families.pop() if len(families) == 1 else None


def _tiny(own: Shapes) -> dict[str, Any]:
    width = side(own, "decoder.layers.0.weight", 0)
    return {
        "_class_name": "AutoencoderTiny",
        "latent_channels": side(own, "decoder.layers.0.weight", 1),
        "encoder_block_out_channels": (side(own, "encoder.layers.0.weight", 0) or width,) * 4,
        "decoder_block_out_channels": (width,) * 4,
    }


def _full(own: Shapes) -> tuple[dict[str, Any], LayoutName]:
    is_diffusers = any(_BLOCKS["diffusers"].fullmatch(key) for key in own)
    layout: LayoutName = "diffusers" if is_diffusers else "latent diffusion"
    channels: dict[int, int] = {}
    layers = 0
    for key, shape in own.items():
        if match := _BLOCKS[layout].fullmatch(key):
            channels[int(match[1])] = shape[0] if shape else 0
            layers = max(layers, int(match[2]) + 1)
    blocks = [channels.get(block, 0) for block in range(len(channels))]
    attention = "mid.attn_1." if layout == "latent diffusion" else "mid_block.attentions."
    config = {
        "_class_name": _FLUX2 if "bn.running_mean" in own else "AutoencoderKL",
        "in_channels": side(own, "encoder.conv_in.weight", 1),
        "out_channels": side(own, "decoder.conv_out.weight", 0),
        "down_block_types": ("DownEncoderBlock2D",) * len(blocks),
        "up_block_types": ("UpDecoderBlock2D",) * len(blocks),
        "block_out_channels": tuple(blocks),
        "layers_per_block": layers,
        "latent_channels": side(own, "decoder.conv_in.weight", 1),
        "norm_num_groups": _NORM_GROUPS if all(side and side % _NORM_GROUPS == 0 for side in blocks) else None,
        "use_quant_conv": "quant_conv.weight" in own,
        "use_post_quant_conv": "post_quant_conv.weight" in own,
        "mid_block_add_attention": any(attention in key for key in own),
    }
    return config, layout
