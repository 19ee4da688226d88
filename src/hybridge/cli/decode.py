"""``hybridge decode``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..protocol import LatentsFile, Scaling
from .options import CA, DEVICE, DTYPE, KEY, SERVER

if TYPE_CHECKING:
    from ..protocol import VideoOptions


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
        help=".png, .jpg or .webp, with -0, -1 … in the name for a batch; .mp4, .webm or .gif for a video.",
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
    fps: float = typer.Option(None, help="Of a video: frames per second.", show_default="15"),
    codec: str = typer.Option(None, help="Of a video: h264, hevc, av1 or vp9.", show_default="h264; vp9 in .webm"),
    pixel_format: str = typer.Option(None, help="Of a video: yuv420p or yuv444p.", show_default="yuv420p"),
    quality: int = typer.Option(None, help="Of a JPEG or a video, 1 to 100.", show_default="95"),
    metadata: bool = typer.Option(False, help="Write what made a picture or a video into its file."),
    server: str = SERVER,
    key: str = KEY,
    ca: str = CA,
    device: str = DEVICE,
    dtype: str = DTYPE,
) -> None:
    """Turn latents into a picture or a video."""

    from dataclasses import replace

    from ..client.conversion import pictures_of
    from ..errors import RequestError
    from ..protocol import DecodeRequest, FileAnswer, PictureFormat, read_latents
    from ..protocol.messages import DEFAULT_QUALITY
    from .console import screen
    from .single_request import answers, write_film

    formats: dict[str, PictureFormat] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
    target = output or latents.with_suffix(".png")
    suffix = target.suffix.lower()
    video = _video(suffix, fps, codec, pixel_format)
    if suffix not in formats and video is None:
        raise RequestError(
            "unknown picture format", saw=target.suffix, expected=", ".join([*formats, ".mp4", ".webm", ".gif"])
        )
    if quality is not None and not 1 <= quality <= 100:
        raise RequestError("--quality is out of range", saw=quality, expected="1 to 100")
    file = read_latents(latents, tensor)
    scaling, notes = _space(latents, file, scaled)
    name = model or file.model or "starter"
    if model is None and file.model is None:
        notes.append("decoded with starter, because it names no model; --model NAME, if another one made it")
    elif model is not None and file.model is not None and model.split("=")[0] != file.model.split("=")[0]:
        notes.append(f"latents of {file.model} by its own account, decoded with {model}, which was asked for")
    for note in notes:
        screen(stderr=True).print(f"{latents}: {note}")
    batch = DecodeRequest(
        file.tensor,
        scaling,
        quality=quality or DEFAULT_QUALITY,
        metadata=metadata,
        height=height,
        width=width,
    )
    if video is not None:
        request = replace(batch, output="video", video=video)
        frames = write_film(request, target, model=name, server=server, key=key, ca=ca, device=device, dtype=dtype)
        screen().print(f"{target}: {target.stat().st_size} bytes" + (f", {frames} frames" if frames else ""))
        return
    batch = replace(batch, picture_format=formats[suffix])
    requests = pictures_of(batch)
    decoded = answers(requests, model=name, server=server, key=key, ca=ca, device=device, dtype=dtype)
    for index, picture in enumerate(decoded):
        assert isinstance(picture, FileAnswer)  # noqa: S101 - what picture requests are answered with
        path = target if len(requests) == 1 else target.with_stem(f"{target.stem}-{index}")
        path.write_bytes(picture.data)
        screen().print(f"{path}: {len(picture.data)} bytes")


def _video(suffix: str, fps: float | None, codec: str | None, pixel_format: str | None) -> VideoOptions | None:
    """Return the kind of video that is asked for; None for a picture.

    Raises:
        RequestError: for options of a video and the name of a picture, and for values that do not fit.
    """
    from ..errors import RequestError
    from ..protocol.video_formats import DEFAULT_FPS, VideoOptions

    if suffix in (".mp4", ".webm", ".gif"):
        kind: Any = suffix[1:]
        return VideoOptions(kind, DEFAULT_FPS if fps is None else fps, codec, pixel_format)  # type: ignore[arg-type]
    for name, value in (("--fps", fps), ("--codec", codec), ("--pixel-format", pixel_format)):
        if value is not None:
            raise RequestError(f"{name} is about a video", saw=f"a picture, {suffix}", expected="-o FILE.mp4")
    return None


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
