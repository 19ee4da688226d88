"""Records what diffusers' own client puts on the wire, for the tests to compare with.

``diffusers.utils.remote_utils`` runs here unmodified against a stub on the loopback interface that answers just
well enough for the client to return.  Run by hand, when a new diffusers is out::

    python tests/golden/record.py

It rewrites ``tests/golden/diffusers.jsonl``: first a line with the versions, then one JSON object a line and case:

``name``      the case
``raises``    what the client itself raised *after* sending, or null
``method``    always POST
``query``     the query string, verbatim
``headers``   names in lower case, without those that belong to the HTTP library and not to the protocol
``body``      in base64

The tensors are a formula (see :func:`ramp`), so the same diffusers and Pillow give the same file, byte for byte.
``from_specification.jsonl`` beside it has the same form; it is written by hand, see ``README.md``.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import threading
import unittest.mock
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

#: Made by requests and urllib3 from the address, the body and their own version.
VOLATILE_HEADERS = {"host", "user-agent", "accept-encoding", "connection", "content-length"}

SD = (1, 4, 2, 3)
FLUX = (1, 16, 2, 4)
FLUX_PACKED = (1, 2, 64)  # 16×32 pixels
VIDEO = (1, 16, 2, 2, 2)


def ramp(shape: tuple[int, ...], dtype: str) -> Any:
    """A tensor of sixteenths that every wire dtype holds exactly: -3.125 to 3.125, or 0 to 100 for uint8."""
    import torch

    count = torch.Size(shape).numel()
    steps = torch.arange(count) * 37 % 101
    values = steps if dtype == "uint8" else (steps - 50) / 16
    return values.to(getattr(torch, dtype)).reshape(shape)


def picture(mode: str) -> Any:
    """A small picture of ``mode`` whose pixels are a formula too; the palette one has a transparent entry."""
    import numpy as np
    from PIL import Image

    channels = {"RGB": 3, "RGBA": 4, "L": 1, "P": 1}[mode]
    values = (np.arange(16 * 24 * channels) * 41 % 256).astype(np.uint8)
    if mode != "P":
        return Image.frombytes(mode, (24, 16), values.tobytes())
    image = Image.frombytes("P", (24, 16), (values % 8).tobytes())
    image.putpalette([(37 * i) % 256 for i in range(24)])
    image.info["transparency"] = bytes([0, 128, 255, 255, 255, 255, 255, 255])
    return image


def cases() -> dict[str, Callable[[str], object]]:
    """Name → a call of the client, given the server's address."""
    from diffusers.image_processor import VaeImageProcessor
    from diffusers.utils.remote_utils import remote_decode, remote_encode
    from diffusers.video_processor import VideoProcessor

    def decode(
        shape: tuple[int, ...], dtype: str = "float16", address: str = "", **arguments: object
    ) -> Callable[[str], object]:
        return lambda url: remote_decode(url + address, ramp(shape, dtype), **arguments)

    def encode(image: object, **arguments: object) -> Callable[[str], object]:
        return lambda url: remote_encode(url, image, **arguments)

    sd = {"scaling_factor": 0.18215}
    flux = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
    return {
        "decode-scaling": decode(SD, **sd),
        "decode-scaling-shift": decode(FLUX, "bfloat16", **flux),
        "decode-no-factor": decode(SD),
        "decode-no-factor-pt": decode(VIDEO, output_type="pt", return_type="pt"),
        "decode-do-scaling-false": decode(SD, do_scaling=False),
        "decode-do-scaling-false-factors": decode(FLUX, do_scaling=False, **flux),
        "decode-do-scaling-none": decode(SD, do_scaling=None),
        "decode-shift-only": decode(SD, shift_factor=0.1159),
        "decode-pil-jpg": decode(SD, output_type="pil", image_format="jpg", **sd),
        "decode-pil-png": decode(SD, output_type="pil", image_format="png", **sd),
        "decode-pil-processor": decode(SD, output_type="pil", processor=VaeImageProcessor(), **sd),
        "decode-pil-processor-png": decode(SD, image_format="png", processor=VaeImageProcessor(), **sd),
        "decode-pil-video-processor": decode(VIDEO, processor=VideoProcessor(), scaling_factor=0.476986),
        "decode-pil-return-pt": decode(SD, output_type="pil", return_type="pt", **sd),
        "decode-pt": decode(SD, output_type="pt", return_type="pt", **sd),
        "decode-pt-processor": decode(SD, output_type="pt", processor=VaeImageProcessor(), **sd),
        "decode-pt-partial": decode(SD, output_type="pt", partial_postprocess=True, **sd),
        "decode-pt-partial-return-pt": decode(
            SD, output_type="pt", return_type="pt", partial_postprocess=True, **sd
        ),
        "decode-pil-partial": decode(SD, partial_postprocess=True, **sd),
        "decode-mp4": decode(VIDEO, output_type="mp4", return_type="mp4", scaling_factor=0.476986),
        "decode-mp4-return-pil": decode(VIDEO, output_type="mp4", scaling_factor=0.476986),
        "decode-packed": decode(FLUX_PACKED, "bfloat16", height=16, width=32, **flux),
        "decode-unpacked-height-width": decode(FLUX, "bfloat16", height=16, width=32, **flux),
        "decode-height-only": decode(SD, height=16, **sd),
        "decode-float32": decode(SD, "float32", **sd),
        "decode-bfloat16": decode(SD, "bfloat16", **sd),
        "decode-batch": decode((2, 4, 1, 1), output_type="pt", return_type="pt", **sd),
        "decode-key-in-address": decode(SD, address="?key=a%20secret", **sd),
        "encode-pil-rgb": encode(picture("RGB")),
        "encode-pil-rgba": encode(picture("RGBA")),
        "encode-pil-l": encode(picture("L")),
        "encode-pil-p": encode(picture("P")),
        "encode-pil-scaling": encode(picture("RGB"), scaling_factor=0.18215),
        "encode-pil-scaling-shift": encode(picture("RGB"), **flux),
        "encode-tensor": encode(ramp((1, 3, 8, 8), "float16")),
        "encode-tensor-scaling": encode(ramp((1, 3, 8, 8), "float32"), scaling_factor=0.13025),
        "encode-tensor-scaling-shift": encode(ramp((1, 3, 8, 8), "bfloat16"), **flux),
        "encode-tensor-uint8": encode(ramp((1, 3, 8, 8), "uint8")),
        "encode-tensor-shift-only": encode(ramp((1, 3, 8, 8), "float16"), shift_factor=0.1159),
    }


@contextlib.contextmanager
def stub() -> Iterator[tuple[str, list[dict[str, object]]]]:
    """A server that keeps what it is sent, and answers what the client can digest."""
    from PIL import Image

    seen: list[dict[str, object]] = []
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            query = self.path.partition("?")[2]
            headers = {name.lower(): value for name, value in self.headers.items()}
            seen.append(
                {
                    "method": self.command,
                    "query": query,
                    "headers": {n: v for n, v in sorted(headers.items()) if n not in VOLATILE_HEADERS},
                    "body": base64.b64encode(body).decode("ascii"),
                }
            )
            if headers["accept"].startswith("image/"):
                answer, about = file.getvalue(), {}
            elif "partial_postprocess=True" in query:
                answer, about = bytes(8 * 8 * 3), {"shape": "[1, 8, 8, 3]", "dtype": "uint8"}
            else:
                answer, about = bytes(3 * 8 * 8 * 4), {"shape": "[1, 3, 8, 8]", "dtype": "float32"}
            self.send_response(200)
            for name, value in about.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def record() -> list[dict[str, object]]:
    """Every case, as it went over the wire."""
    records: list[dict[str, object]] = []
    # A proxy between the client and the stub would not know the way back.
    direct = unittest.mock.patch.dict(os.environ, {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"})
    with direct, stub() as (address, seen), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # do_scaling is deprecated, which is no reason not to serve it
        for name, call in cases().items():
            raises = None
            try:
                call(address)
            except Exception as error:
                raises = type(error).__name__
            (request,) = seen
            seen.clear()
            records.append({"name": name, "raises": raises, **request})
    return records


def main() -> None:
    """Rewrites the file."""
    import diffusers
    import PIL

    about = {"recorded_from": f"diffusers {diffusers.__version__}, Pillow {PIL.__version__}"}
    lines = [json.dumps(line) for line in (about, *record())]
    (HERE / "diffusers.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
