"""``hybridge decode``"""

from __future__ import annotations

from pathlib import Path

import typer

from ..protocol import LatentsFile, Scaling
from .options import CA, DEVICE, DTYPE, KEY, SERVER


def decode(
    latents: Path = typer.Argument(
        help="What `encode` writes, ComfyUI's .latent, a trainer's .npz or .safetensors, .npy or .pt.",
        exists=True,
        dir_okay=False,
    ),
    output: Path = typer.Option(
        None,
        "-o",
        "--output",
        help=".png, .jpg or .webp; for a batch -0, -1 … are added to the name.",
        show_default="beside the latents, .png",
    ),
    tensor: str = typer.Option(None, help="Which tensor of the file.", show_default="the latents"),
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

    from dataclasses import replace

    from ..client.conversion import pictures_of
    from ..errors import RequestError
    from ..protocol import DecodeRequest, FileAnswer, PictureFormat, read_latents
    from .console import screen
    from .single_request import answers

    formats: dict[str, PictureFormat] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
    target = output or latents.with_suffix(".png")
    if target.suffix.lower() not in formats:
        raise RequestError("unknown picture format", saw=target.suffix, expected=", ".join(formats))
    file = read_latents(latents, tensor)
    scaling, notes = _space(latents, file, scaled)
    for note in notes:
        screen(stderr=True).print(f"{latents}: {note}")
    batch = DecodeRequest(
        file.tensor, scaling, picture_format=formats[target.suffix.lower()], height=height, width=width
    )
    requests = [replace(batch, latents=one) for one in pictures_of(batch)]
    name = model or file.model or "starter"
    decoded = answers(requests, model=name, server=server, key=key, ca=ca, device=device, dtype=dtype)
    for index, picture in enumerate(decoded):
        assert isinstance(picture, FileAnswer)  # noqa: S101 - what picture requests are answered with
        path = target if len(requests) == 1 else target.with_stem(f"{target.stem}-{index}")
        path.write_bytes(picture.data)
        screen().print(f"{path}: {len(picture.data)} bytes")


def _space(path: Path, file: LatentsFile, scaled: bool | None) -> tuple[Scaling, list[str]]:
    """Return the space of the latents, and messages about it for the user."""
    from ..errors import RequestError

    notes = list(file.notes)
    if scaled is not None:
        return Scaling("model") if scaled else Scaling(), notes
    if file.scaling is not None:
        return file.scaling, notes
    if file.is_known:
        raise RequestError(
            f"{path} does not say whether its latents are scaled",
            saw="a trainer's cache, which keeps them scaled for some models and not for others",
            expected="--no-scaled for the VAE's own space, --scaled for latents as pipelines use them",
        )
    notes.append("taken for latents as pipelines use them; --no-scaled, if they are in the VAE's own space")
    return Scaling("model"), notes
