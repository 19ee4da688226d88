"""``hybridge decode``"""

from __future__ import annotations

from pathlib import Path

import typer

from .options import CA, DEVICE, DTYPE, KEY, SERVER


def decode(
    latents: Path = typer.Argument(
        help="A safetensors file, such as `encode` writes.", exists=True, dir_okay=False
    ),
    output: Path = typer.Option(
        None, "-o", "--output", help=".png, .jpg or .webp.", show_default="beside the latents, .png"
    ),
    model: str = typer.Option(None, show_default="what the file says, else starter"),
    scaled: bool = typer.Option(
        None,
        help="Whether the latents are as the model's pipelines use them.",
        show_default="what the file says, else yes",
    ),
    height: int = typer.Option(None, help="Of the picture, for packed latents."),
    width: int = typer.Option(None, help="Of the picture, for packed latents."),
    server: str = SERVER,
    key: str = KEY,
    ca: str = CA,
    device: str = DEVICE,
    dtype: str = DTYPE,
) -> None:
    """Turn latents into a picture."""

    from ..errors import RequestError
    from ..protocol import DecodeRequest, FileAnswer, PictureFormat, Scaling
    from .answering import answer
    from .latents_file import read_latents
    from .screen import screen

    formats: dict[str, PictureFormat] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
    target = output or latents.with_suffix(".png")
    if target.suffix.lower() not in formats:
        raise RequestError("unknown picture format", saw=target.suffix, expected=", ".join(formats))
    file = read_latents(latents)
    is_scaled = scaled if scaled is not None else file.is_scaled is not False
    request = DecodeRequest(
        file.tensor,
        Scaling("model") if is_scaled else Scaling(),
        picture_format=formats[target.suffix.lower()],
        height=height,
        width=width,
    )
    name = model or file.model or "starter"
    decoded = answer(request, model=name, server=server, key=key, ca=ca, device=device, dtype=dtype)
    assert isinstance(decoded, FileAnswer)  # noqa: S101 - what picture requests are answered with
    target.write_bytes(decoded.data)
    screen().print(f"{target}: {len(decoded.data)} bytes")
