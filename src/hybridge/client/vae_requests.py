"""The requests of the protocol for the arguments of :meth:`Calls.decode` and :meth:`Calls.encode`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

from ..errors import RequestError
from ..protocol import DecodeRequest, EncodeRequest, LatentsFile, Output, Scaling, ValueRange, VideoOptions
from ..protocol.messages import DEFAULT_QUALITY
from ..protocol.video_formats import DEFAULT_VIDEO
from .conversion import Kind, image_to_wire, latents_of_file, picture_format_from, shown_to_wire, to_wire
from .precision import Precision, lowered


def decode_request(
    latents: Any,
    *,
    model: str | None = None,
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
    do_scaling: bool | None = None,
    height: int | None = None,
    width: int | None = None,
    output: Output = "picture",
    image_format: str = "png",
    quality: int | None = None,
    video: VideoOptions = DEFAULT_VIDEO,
    quantize: Precision | None = None,
    preview: bool = False,
    metadata: bool = False,
    image: Any = None,
    mask: Any = None,
    **decoder: Any,
) -> tuple[DecodeRequest, Kind, str | None]:
    """Return the request for :meth:`Calls.decode`'s arguments, the kind of the latents, and the model to ask.

    ``decoder`` are the parameters of decoders that are conditioned on a timestep, and the chunk size.

    Raises:
        RequestError: for invalid arguments.
    """
    scaling = Scaling.of(do_scaling, scaling_factor, shift_factor)
    if isinstance(latents, (str, Path)):
        file, kind = latents_of_file(latents)
        tensor, said, model = file.tensor, file.scaling, model or _served_name(file)
        if (do_scaling, scaling_factor, shift_factor) == (None, None, None):
            if said is None:
                raise RequestError(
                    f"{latents} does not say in which space its latents are",
                    saw="no do_scaling and no scaling_factor",
                    expected="do_scaling=False for the VAE's own space, do_scaling=True for latents of pipelines",
                )
            scaling = said
    else:
        tensor, kind = to_wire(latents)
    if output not in get_args(Output):
        raise RequestError("unknown output", saw=repr(output), expected="one of " + ", ".join(get_args(Output)))
    if (height is None) != (width is None):
        raise RequestError("half a size", saw=f"height={height}, width={width}", expected="both, or neither")
    request = DecodeRequest(
        tensor if quantize is None else lowered(tensor, quantize),
        scaling=scaling,
        output=output,
        picture_format=picture_format_from(image_format),
        quality=DEFAULT_QUALITY if quality is None else quality,
        height=height,
        width=width,
        preview=preview,
        video=video,
        metadata=metadata,
        image=shown_to_wire(image, "RGB"),
        mask=shown_to_wire(mask, "L"),
        **decoder,
    )
    return request, kind, model


def encode_request(
    image: Any,
    *,
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
    do_scaling: bool | None = None,
    value_range: ValueRange = "auto",
    sample: bool = False,
    seed: int | None = None,
    drop_frames: bool = True,
    is_video: bool = False,
) -> tuple[EncodeRequest, Kind]:
    """Return the request for :meth:`Calls.encode`'s arguments, and the kind of the resulting latents.

    Raises:
        RequestError: for invalid arguments.
    """
    if seed is not None and not sample:
        raise RequestError("a seed without sampling", saw=f"seed={seed}", expected="sample=True as well")
    content, kind = image_to_wire(image, is_video=is_video)
    request = EncodeRequest(
        content,
        scaling=Scaling.of(do_scaling, scaling_factor, shift_factor),
        value_range=value_range,
        sample=sample,
        seed=seed,
        drop_frames=drop_frames,
    )
    return request, kind


def _served_name(file: LatentsFile) -> str | None:
    """Return the name of the model that a file names, which may be ``NAME=FOLDER:PART`` from a command line."""
    return None if file.model is None else re.split("[=:]", file.model)[0] or None
