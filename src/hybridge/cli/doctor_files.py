"""The doctor for files: latents, pictures and videos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import HybridgeError, RequestError
from ..protocol.tensor_files import LFS_START
from .doctor_report import Report

if TYPE_CHECKING:
    from ..protocol import LatentsFile

#: Pixels of a file that are read: the user's own machine has no other clients.
_MAX_PIXELS = 2**30

_MOST_GUESSES = 4

#: Pixels per latent of most models.
_USUAL_FACTOR = 8


def look_at_file(
    report: Report, path: Path, model: str | None, tensor: str | None, height: int | None, width: int | None
) -> None:
    """Look at a file of latents, of weights, a picture or a video, as its contents say.

    Raises:
        RequestError: when there is no such file.
    """
    from ..protocol.picture_files import sniff_picture
    from ..protocol.video_formats import sniff_video

    if not path.is_file():
        raise RequestError(
            f"{path} is neither a file, a folder, an address nor a profile", hint="http://HOST:PORT for a server"
        )
    with path.open("rb") as file:
        start = file.read(4096)
    if start.startswith(LFS_START):
        report.add("git-lfs-pointer", "a pointer of Git LFS instead of the file")
    elif sniff_picture(start) is not None:
        _look_at_pixels(report, path, sniff_picture(start) or "", model)
    elif sniff_video(start) is not None:
        _look_at_pixels(report, path, sniff_video(start) or "", model)
    elif tensor is None and _has_weights(path):
        from .doctor_weights import look_at_single_file

        look_at_single_file(report, path, model)
    else:
        _look_at_latents(report, path, model, tensor, height, width)


def _has_weights(path: Path) -> bool:
    from ..engine.weights import read_headers

    try:
        return read_headers("this", path).single is not None
    except HybridgeError:
        return False


def _look_at_pixels(report: Report, path: Path, media_type: str, model: str | None) -> None:
    from ..models import look_up
    from ..protocol.media import read_picture
    from ..protocol.video_reader import is_animation, read_video

    data, spec = path.read_bytes(), look_up(model) if model else None
    report.facts["format"] = media_type
    try:
        is_film = is_animation(data)
        read = read_video if is_film else read_picture
        frames, height, width, _ = read(data, max_pixels=_MAX_PIXELS, multiple=1, note=report.add).shape
        report.facts |= {"frames": frames} if is_film else {}
        report.facts["size"] = f"{width}x{height}"
        _look_at_size(report, width, height, _USUAL_FACTOR if spec is None else spec.spatial_factor)
        if spec is not None and (dropped := spec.frames.check_frames(spec.name, frames)):
            report.add("frames-dropped", dropped.replace("were left out", "would be left out"), is_certain=False)
    except HybridgeError as error:
        report.add_error(error, "unreadable-file")


def _look_at_size(report: Report, width: int, height: int, factor: int) -> None:
    """Say what size a picture or a film has to a model with so many pixels per latent."""
    fitting = [side - side % factor for side in (width, height)]
    if 0 in fitting:
        raise RequestError("it is too small", saw=f"{width}x{height}", expected=f"at least {factor}x{factor}")
    if fitting != [width, height]:
        report.facts["encoded as"] = f"{fitting[0]}x{fitting[1]}"
        report.add("picture-resized", f"its sides are no multiples of {factor}, so that a server resizes it")


def _look_at_latents(
    report: Report, path: Path, model: str | None, tensor: str | None, height: int | None, width: int | None
) -> None:
    from ..engine.latents import check_finite
    from ..models import latent_space, look_up, row_named
    from ..models.doctor.guess import guesses
    from ..models.doctor.numbers import examine_bits
    from ..models.doctor.requests import examine_elements, examine_parameters
    from ..protocol import Scaling, read_latents
    from ..protocol.torch import to_torch

    try:
        file = read_latents(path, tensor)
    except HybridgeError as error:
        report.add_error(error, "unreadable-file")
        return
    held = file.tensor
    report.facts["tensor"] = f"{held.dtype} {list(held.shape)}"
    report.facts |= {"notes": list(file.notes)} if file.notes else {}
    found = [*examine_bits(held.data, held.dtype)]
    report.findings += found
    try:
        check_finite(to_torch(held), "latents")
    except RequestError as error:
        if not found:
            report.add_error(error, "not-finite")
        return
    likely = guesses(held.to_numpy(), height, width)
    report.facts["looks like"] = [str(guess) for guess in likely[:_MOST_GUESSES]] or "no model that hybridge knows"
    spec = look_up(model) if model else row_named(file.model or "")
    if spec is None and file.model:  # a name that a server was started with
        report.facts["model"] = f"{file.model[:60]}, which is none of the catalogue's"
    if spec is None and likely:
        spec = likely[0].spec
    if spec is None:
        spec = look_up("sd-v1")  # whose shape then says what these are
    scaling = file.scaling or Scaling("model" if not likely or likely[0].is_scaled else "none")
    report.facts["taken as"] = f"{spec.name}'s, {'scaled' if scaling.by != 'none' else 'in VAE space'}"
    if file.scaling is None:
        report.add("unknown-space", _unsaid(file))
    try:
        about = {"scaling_factor": scaling.scaling_factor, "shift_factor": scaling.shift_factor}
        report.findings += examine_parameters(held.shape, spec, height=height, width=width, **about)
        if not found:
            sent = latent_space.normalisation_of(spec, scaling.by, scaling.scaling_factor, scaling.shift_factor)
            report.findings += examine_elements(held, spec, sent, height, width)
    except RequestError as error:
        report.add_error(error, "unreadable-file")


def _unsaid(file: LatentsFile) -> str:
    return "the file does not say whether its latents are scaled" + (
        ", as a trainer's cache" if file.is_known else ""
    )
