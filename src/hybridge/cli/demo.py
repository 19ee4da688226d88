"""``hybridge demo``: a picture of a prompt and the round trip of a photograph, with the model that is shipped."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape

from .demo_server import DemoServer, Traffic

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from .demo_picture import Stage

_MODEL = "starter"
_PROMPT = "a red circle above a blue square at night"

#: Longest side of the photograph in pixels; larger ones take a processor minutes.
_LONGEST_SIDE = 1024


def demo(
    prompt: str = typer.Argument(_PROMPT, help="What the picture shows: coloured shapes, in English or Chinese."),
    output: Path = typer.Option(Path("hybridge-demo"), "-o", "--output", help="Folder for the pictures."),
    photograph: Path = typer.Option(
        None,
        help="A picture of your own, which is scaled down to 1024 pixels a side.",
        exists=True,
        dir_okay=False,
        show_default="the one that is shipped",
    ),
    port: int = typer.Option(0, help="Port of the server; 0 takes a free one."),
    keep: bool = typer.Option(False, "--keep", help="Leave the server up, and show how to call it."),
) -> None:
    """Make a picture of a prompt, and send a photograph there and back, with a real server."""

    from ..engine import Engine, EngineOptions, limit_threads
    from ..models import look_up
    from .console import screen, show_table
    from .demo_picture import picture_of, understood
    from .demo_server import demo_server

    console = screen()
    scene = understood(prompt)
    picture = _open(photograph or _shipped_photograph())
    limit_threads()  # as the server does: with another number of them sums have other last bits
    output.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with console.status("starting a server"):
            server = stack.enter_context(demo_server(_MODEL, port))
        console.print(f"{_MODEL} is served on [bold]{server.address}[/]: a text encoder and a VAE")

        console.print(f"\n[bold]{escape(prompt)}[/]")
        image, stages = picture_of(prompt, scene, server, console)
        image.save(output / "picture.png")
        numbers = ("bytes up", "bytes down", "ms")
        columns = ("step", "computed by", *numbers, "result")
        show_table(console, columns, map(_stage_cells, stages), numbers=numbers)

        console.print("\n[bold]a photograph to latents and back[/]")
        picture.save(output / "photograph.png")
        with console.status(f"loading {_MODEL}"):
            engine = Engine.load(look_up(_MODEL), EngineOptions())
        rows = _round_trip(picture, server, engine, output)
        show_table(console, ("step", "client", *numbers, "result"), map(_cells, rows), numbers=numbers)
        console.print(f"pictures: [bold]{output.resolve()}[/]  (look at picture.png and side-by-side.png)")
        if keep:
            console.print(
                _how_to_call(server.address, output, picture, str(engine.dtype.value).removeprefix("torch.")),
                highlight=False,
            )
            _wait_for_interrupt()


@dataclass(frozen=True, slots=True)
class _Row:
    step: str
    caller: str
    bytes_up: int
    bytes_down: int
    milliseconds: float
    result: str


def _round_trip(picture: Image, server: DemoServer, engine: Any, output: Path) -> list[_Row]:
    """Convert a photograph to latents and back in three ways, whose results must agree."""
    import numpy as np
    from diffusers.utils.remote_utils import remote_decode, remote_encode

    from ..client import Client
    from .demo_picture import how_far_apart

    address = server.address
    encode_url, decode_url = f"{address}/v1/{_MODEL}/encode", f"{address}/v1/{_MODEL}/decode"
    photograph = np.asarray(picture)
    rows: list[_Row] = []

    def step(name: str, caller: str, call: Callable[[], Any], judge: Callable[[Any], str]) -> Any:
        begun = time.perf_counter()
        value = call()
        milliseconds = 1e3 * (time.perf_counter() - begun)
        traffic = Traffic() if caller == "no server" else server.traffic(name.split()[0])
        rows.append(_Row(name, caller, traffic.up, traffic.down, milliseconds, judge(value)))
        return value

    def quality(other: Image) -> str:
        return f"PSNR {_psnr(photograph, np.asarray(other)):.1f} dB"

    _in_process(engine, photograph)  # a warm-up, not measured: torch's first forward of a shape takes longer
    with Client(address) as client:
        latents = step(
            "encode",
            "hybridge",
            lambda: client.encode(picture, model=_MODEL),
            lambda z: f"{z.numel()} latents",
        )
        decoded = step(
            "decode to PNG",
            "hybridge",
            lambda: client.decode(latents, model=_MODEL, image_format="png"),
            quality,
        )
    theirs = step(
        "encode",
        "diffusers",
        lambda: remote_encode(encode_url, picture),
        lambda z: _same(bool((z == latents).all())),
    )
    step(
        "decode to PNG",
        "diffusers",
        lambda: remote_decode(decode_url, theirs, do_scaling=False, image_format="png"),
        lambda image: _same(np.array_equal(image, decoded)),
    )
    step(
        "decode to JPEG",
        "diffusers",
        lambda: remote_decode(decode_url, theirs, do_scaling=False),
        quality,
    )
    step(
        "encode, decode",
        "no server",
        lambda: _in_process(engine, photograph),
        lambda pixels: how_far_apart(pixels, decoded),
    )

    decoded.save(output / "decoded.png")
    _side_by_side(picture, decoded).save(output / "side-by-side.png")
    return rows


def _in_process(engine: Any, photograph: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import torch

    from ..engine import to_pixels

    image = torch.from_numpy(photograph.copy())[None]
    pixels: np.ndarray[Any, Any] = to_pixels(engine.decode(engine.encode(image)))[0].cpu().numpy()
    return pixels


def _shipped_photograph() -> Path:
    return Path(__file__).parent.parent / "assets" / "photograph.jpg"


def _open(path: Path) -> Image:
    from PIL import Image

    from ..protocol.media import read_picture

    picture = Image.fromarray(read_picture(path.read_bytes(), max_pixels=1 << 26).to_numpy()[0])
    scale = _LONGEST_SIDE / max(picture.size)
    if scale < 1:
        width, height = (max(8, int(side * scale) // 8 * 8) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return picture


def _psnr(reference: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    import numpy as np

    error = np.mean((reference.astype(np.float64) - other.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def _same(is_same: bool) -> str:
    return "identical" if is_same else "[red]different[/]"


def _side_by_side(left: Image, right: Image) -> Image:
    from PIL import Image

    gap = 8
    both = Image.new("RGB", (left.width + gap + right.width, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width + gap, 0))
    return both


def _cells(row: _Row) -> tuple[str, ...]:
    return (
        row.step,
        row.caller,
        f"{row.bytes_up:,}" if row.bytes_up else "–",
        f"{row.bytes_down:,}" if row.bytes_down else "–",
        f"{row.milliseconds:.0f}",
        row.result,
    )


def _stage_cells(stage: Stage) -> tuple[str, ...]:
    up, down = (f"{stage.traffic.up:,}", f"{stage.traffic.down:,}") if stage.traffic else ("–", "–")
    return stage.what, stage.where, up, down, f"{stage.milliseconds:.0f}", stage.result


def _how_to_call(address: str, output: Path, picture: Image, dtype: str) -> str:
    height, width = picture.height // 8, picture.width // 8
    return f"""
The server stays up; Ctrl-C ends it.  From another terminal:

  curl --data-binary @{output / "photograph.png"} {address}/v1/{_MODEL}/encode -o latents.bin
  curl --data-binary @latents.bin -o picture.jpg \\
    '{address}/v1/{_MODEL}/decode?shape=1&shape=4&shape={height}&shape={width}&dtype={dtype}'

From Python:

  from hybridge import Client
  from PIL import Image

  with Client("{address}") as client:
      latents = client.encode(Image.open("{output / "photograph.png"}"), model="{_MODEL}")
      client.decode(latents, model="{_MODEL}").show()
"""


def _wait_for_interrupt() -> None:
    import threading

    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        typer.echo("ended")
