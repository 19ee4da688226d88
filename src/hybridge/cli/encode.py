"""``hybridge encode``"""

from __future__ import annotations

from pathlib import Path

import typer

from .options import CA, DEVICE, DTYPE, KEY, MODEL, SERVER


def encode(
    picture: Path = typer.Argument(
        help="A PNG, JPEG or WebP file; for models of videos also an MP4, WebM or GIF.", exists=True, dir_okay=False
    ),
    output: Path = typer.Option(None, "-o", "--output", show_default="beside the picture, as .safetensors"),
    model: str = MODEL,
    scaled: bool = typer.Option(False, help="Latents as the model's pipelines use them, not in VAE space."),
    server: str = SERVER,
    key: str = KEY,
    ca: str = CA,
    device: str = DEVICE,
    dtype: str = DTYPE,
) -> None:
    """Turn a picture or a video into latents, in a safetensors file."""

    from ..protocol import EncodeRequest, PictureFile, Scaling, TensorAnswer, VideoFile, sniff_video
    from .console import screen
    from .latents_file import write_latents
    from .single_request import answer

    data = picture.read_bytes()
    image = PictureFile(data) if sniff_video(data) is None else VideoFile(data)
    request = EncodeRequest(image, Scaling("model") if scaled else Scaling())
    encoded = answer(request, model=model, server=server, key=key, ca=ca, device=device, dtype=dtype)
    assert isinstance(encoded, TensorAnswer)  # noqa: S101 - what encode requests are answered with
    target = output or picture.with_suffix(".safetensors")
    write_latents(target, encoded.tensor, model=model, is_scaled=scaled)
    screen().print(f"{target}: {encoded.tensor.dtype} {list(encoded.tensor.shape)}")
