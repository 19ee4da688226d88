"""Every parameter of the protocol, for the OpenAPI description: what it means, and its schema."""

from __future__ import annotations

from typing import Any

from ...protocol import ITEM_BYTES

Schema = dict[str, Any]

NUMBER: Schema = {"type": "number", "exclusiveMinimum": 0}
_SIDE: Schema = {"type": "integer", "minimum": 1}
_PART: Schema = {"type": "number", "minimum": 0, "maximum": 1}
BOOLEAN: Schema = {"type": "string", "enum": ["True", "False"]}

#: Every parameter of the protocol: what it means, and its schema.
PARAMETERS: dict[str, tuple[str, Schema]] = {
    "shape": (
        "The tensor's axes, repeated once for each: shape=1&shape=4&shape=64&shape=64.",
        {"type": "array", "items": _SIDE, "minItems": 1, "maxItems": 5},
    ),
    "dtype": ("The tensor's dtype.", {"type": "string", "enum": list(ITEM_BYTES)}),
    "channels_last": (
        "The tensor lay channels-last in the sender's memory. Its bytes are in C order all the same; results then"
        " agree with the sender's own to the last bit.",
        BOOLEAN,
    ),
    "do_scaling": ("True: scale as the model's own pipelines do. False: never scale.", BOOLEAN),
    "scaling_factor": ("Decoding divides latents by it, encoding multiplies.", NUMBER),
    "shift_factor": ("Decoding adds it after dividing, encoding subtracts it before.", {"type": "number"}),
    "convention": ("For whom texts are encoded.", {"type": "string", "enum": ["diffusers", "comfyui"]}),
    "drop_padding": ("Leave out rows of padding where that changes no picture.", BOOLEAN),
    "envelope": (
        "All tensors in a safetensors file; or prompt_embeds alone, as bytes or as torch.save writes it.",
        {"type": "string", "enum": ["safetensors", "binary", "torch"]},
    ),
    "height": ("Of the picture in pixels. Needed for packed latents, otherwise ignored.", _SIDE),
    "width": ("Of the picture in pixels. Needed for packed latents, otherwise ignored.", _SIDE),
    "output_type": (
        "pil: a picture file, or floats in [0, 1] if Accept asks for a tensor. pt: a tensor. The others: a"
        " video file.",
        {"type": "string", "enum": ["pil", "pt", "mp4", "webm", "gif", "webp"], "default": "pil"},
    ),
    "image_format": (
        "Of a picture, unless Accept names one.",
        {"type": "string", "enum": ["jpg", "jpeg", "png", "webp"], "default": "jpg"},
    ),
    "partial_postprocess": ("With pt: uint8 [N, H, W, 3] instead of floats [N, 3, H, W] in [-1, 1].", BOOLEAN),
    "quality": ("Of a JPEG or a video.", {"type": "integer", "minimum": 1, "maximum": 100, "default": 95}),
    "fps": (
        "Of a video: frames per second. A GIF has at most 50.",
        {"type": "number", "minimum": 1, "maximum": 240, "default": 15},
    ),
    "codec": (
        "Of a video. mp4: h264, hevc or av1; webm: vp9 or av1.",
        {"type": "string", "enum": ["h264", "hevc", "av1", "vp9"]},
    ),
    "pixel_format": (
        "Of a video: with yuv444p colours keep their full size.",
        {"type": "string", "enum": ["yuv420p", "yuv444p"], "default": "yuv420p"},
    ),
    "metadata": ("Write what made a picture into its file; see docs/protocol.md.", BOOLEAN),
    "preview": (
        "multipart/mixed: a quick approximation as a picture file first, then what would have come without.",
        BOOLEAN,
    ),
    "value_range": (
        "What the floats of an image tensor mean: unit is [0, 1], signed is [-1, 1].",
        {"type": "string", "enum": ["auto", "unit", "signed"], "default": "auto"},
    ),
    "sample": ("A draw from the posterior instead of its mode.", BOOLEAN),
    "drop_frames": (
        "Whether frames may be left out that the model cannot encode, as diffusers leaves them out.",
        {**BOOLEAN, "default": "True"},
    ),
    "seed": (
        "Makes what is drawn repeatable: a sample, or the noise of decode_noise_scale.",
        {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
    ),
    "decode_timestep": ("For decoders that are conditioned on a timestep (LTX-Video).", _PART),
    "decode_noise_scale": ("For such decoders: the part of noise; decode_timestep if missing.", _PART),
    "decode_chunk_size": ("Frames that Stable Video Diffusion's decoder takes at once; all if missing.", _SIDE),
    "moments": (
        "The posterior itself, float [N, 2·C, h, w] in VAE space: its mean, then the logarithm of its variance.",
        BOOLEAN,
    ),
}


def failures(*statuses: str) -> Schema:
    """Return the responses with errors of the given statuses."""
    return {status: {"$ref": f"#/components/responses/Error{status}"} for status in statuses}
