"""``hybridge verify``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .doctor_report import Report
from .options import CA, DEVICE, DTYPE, KEY, SERVER

if TYPE_CHECKING:
    from ..protocol import Scaling
    from ..protocol.receipt import Receipt

#: Facts of a receipt that decide about the numbers of a picture, and the code of a difference.
_DECIDING = {
    **{"weights": "other-weights", "revision": "other-weights", "dtype": "other-precision"},
    **{"exactness": "other-precision", "device": "other-precision", "threads": "other-precision"},
    **{"torch": "other-libraries", "diffusers": "other-libraries", "hybridge": "other-libraries"},
}

#: A lossy picture that was stored again with its own tables differs by less, on average, and has a higher ratio.
_LOSSY_MEAN, _LOSSY_PSNR = 1.0, 38.0


def verify(
    picture: Path = typer.Argument(help="A PNG, JPEG or WebP file.", exists=True, dir_okay=False),
    latents: Path = typer.Option(..., help="The latents that it was decoded from.", exists=True, dir_okay=False),
    tensor: str = typer.Option(None, help="Which tensor of the file.", show_default="the latents"),
    model: str = typer.Option(None, show_default="what picture or latents say, else starter"),
    scaled: bool = typer.Option(
        None,
        help="Whether the latents are as the model's pipelines use them.",
        show_default="what picture or latents say, else yes",
    ),
    height: int = typer.Option(None, help="Of the picture, for packed latents.", show_default="its own"),
    width: int = typer.Option(None, help="Of the picture, for packed latents.", show_default="its own"),
    levels: int = typer.Option(2, min=0, max=255, help="Largest difference of a colour, of 255, that is accepted."),
    server: str = SERVER,
    key: str = KEY,
    ca: str = CA,
    device: str = DEVICE,
    dtype: str = DTYPE,
    as_json: bool = typer.Option(False, "--json", help="For programs."),
) -> None:
    """Decode latents again and say whether the picture is theirs: equal, within some levels, or not (exit 1)."""
    from ..errors import RequestError
    from ..protocol import DecodeRequest, FileAnswer, Scaling, read_latents
    from .console import screen
    from .single_request import answer

    report = Report(str(picture))
    shown, info = _read(picture)
    receipt = _receipt_in(info)
    if receipt is not None and "image" in receipt.facts:
        raise RequestError(
            f"{picture} was not decoded from latents alone",
            saw="a receipt that names an image and a mask, which its decoder was shown",
            expected="a picture that was decoded without them",
        )
    file = read_latents(latents, tensor)
    said = _scaling(receipt) or file.scaling or Scaling("model")
    if scaled is not None:
        said = Scaling("model") if scaled else Scaling()
    name = model or (receipt.facts.get("model") if receipt else None) or file.model or "starter"
    sides = (height or shown.shape[0], width or shown.shape[1])
    request = DecodeRequest(file.tensor, said, picture_format="png", height=sides[0], width=sides[1], metadata=True)
    made = answer(request, model=name, server=server, key=key, ca=ca, device=device, dtype=dtype)
    assert isinstance(made, FileAnswer)  # noqa: S101 - what picture requests are answered with
    again, own = _read(made.data)
    _compare_receipts(report, receipt, _receipt_in(own))
    report.facts["decoded by"] = name + (f" on {server}" if server else "")
    _compare(report, picture, info, shown, again, levels)
    if as_json:
        typer.echo(report.to_json())
    else:
        for line in report.lines():
            screen().print(line, markup=False, highlight=False)
    if not report.is_well:
        raise typer.Exit(1)


def _read(source: Path | bytes) -> tuple[Any, dict[str, Any]]:
    """Return a picture's pixels, uint8 (H, W, 3), and Pillow's facts about the file."""
    import io

    import numpy as np
    from PIL import Image

    from ..errors import RequestError

    try:
        file = Image.open(io.BytesIO(source if isinstance(source, bytes) else source.read_bytes()))
        facts = {str(name): value for name, value in file.info.items()}
        facts |= {"format": file.format, "quantization": getattr(file, "quantization", None)}
        return np.asarray(file.convert("RGB")), facts
    except Exception as error:  # Pillow raises a dozen types for damaged files
        raise RequestError(
            f"{source if isinstance(source, Path) else 'the picture'} cannot be read as a picture",
            saw=f"{type(error).__name__}: {error}"[:200],
        ) from None


def _receipt_in(info: dict[str, Any]) -> Receipt | None:
    from ..protocol.receipt import KEYWORD, find_receipt

    return find_receipt(info.get(KEYWORD.decode()), info.get("xmp"))


def _scaling(receipt: Receipt | None) -> Scaling | None:
    from ..protocol.receipt import scaling_of

    return scaling_of(receipt) if receipt else None


def _compare_receipts(report: Report, receipt: Receipt | None, own: Receipt | None) -> None:
    """Add warnings about what differs between the making of the picture and that of its double."""
    if receipt is None:
        report.facts["receipt"] = "none in the picture"
        return
    report.facts["receipt"] = receipt.header()
    mine = own.facts if own else {}
    if receipt.facts.get("latents", mine.get("latents")) != mine.get("latents"):
        report.add("other-latents", "the picture's receipt names other latents, or the same in another dtype")
    for name, code in _DECIDING.items():
        then, now = receipt.facts.get(name), mine.get(name)
        if then is not None and now is not None and then != now:
            report.add(code, f"{name} was {then} and is {now}")


def _compare(report: Report, picture: Path, info: dict[str, Any], shown: Any, again: Any, levels: int) -> None:
    if shown.shape != again.shape:
        size = f"{shown.shape[1]}x{shown.shape[0]}"
        report.add("other-size", f"the picture has {size} pixels and the latents {again.shape[1]}x{again.shape[0]}")
        return
    is_jpeg = info["format"] == "JPEG"
    is_lossy = is_jpeg or (info["format"] == "WEBP" and b"VP8L" not in picture.read_bytes()[:64])
    if is_jpeg:
        again = _stored_as_jpeg(again, info, picture)
    largest, mean, ratio = _difference(shown, again)
    report.facts |= {"largest difference": largest, "mean difference": round(mean, 4), "PSNR": _decibels(ratio)}
    if is_lossy:
        report.add(
            "lossy-picture", f"{info['format']} loses information, so that equal means after storing it again"
        )
    if largest == 0:
        report.facts["verdict"] = "equal"
    elif largest <= levels:
        report.facts["verdict"] = f"within {largest} level{'s' if largest > 1 else ''}"
    elif is_lossy and mean <= _LOSSY_MEAN and ratio >= _LOSSY_PSNR:
        report.facts["verdict"] = "alike, within what the format loses"
    else:
        report.facts["verdict"] = "another picture"
        report.add("other-picture", f"colours differ by up to {largest} levels, {mean:.3g} on average")


def _stored_as_jpeg(pixels: Any, info: dict[str, Any], picture: Path) -> Any:
    """Return pixels after a JPEG with the tables and the subsampling of the picture."""
    import io

    from PIL import Image
    from PIL.JpegImagePlugin import get_sampling

    with Image.open(picture) as original:
        sampling = get_sampling(original)
    file = io.BytesIO()
    tables = {"qtables": info["quantization"], "subsampling": max(sampling, 0)}
    Image.fromarray(pixels).save(file, "JPEG", **tables)
    return _read(file.getvalue())[0]


def _difference(one: Any, other: Any) -> tuple[int, float, float]:
    """Return the largest and the mean difference in levels, and the peak signal-to-noise ratio in decibels."""
    import math

    import numpy as np

    apart = np.abs(one.astype(np.int16) - other.astype(np.int16))
    square = float((apart.astype(np.float64) ** 2).mean())
    return int(apart.max()), float(apart.mean()), 10 * math.log10(255**2 / square) if square else math.inf


def _decibels(ratio: float) -> str:
    return "infinite" if ratio == float("inf") else f"{ratio:.1f} dB"
