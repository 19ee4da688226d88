"""Requests that were recorded from clients, each read as exactly one request, and back."""

from __future__ import annotations

import base64
import math
from importlib.metadata import version
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from hybridge.errors import RequestError
from hybridge.protocol import (
    DecodeRequest,
    EncodeRequest,
    PictureFile,
    Request,
    Scaling,
    Task,
    WireTensor,
    read_request,
    write_request,
)

PNG = b"\x89PNG\r\n\x1a\n and so on"


def ramp(dtype: str, *shape: int) -> WireTensor:
    """The golden tensors, without torch: element i is (37·i mod 101 - 50) / 16."""
    steps = np.arange(math.prod(shape)) * 37 % 101
    values = ((steps - 50) / 16).astype("<f4")
    data = {
        "float32": values,
        "float16": values.astype("<f2"),
        "bfloat16": (values.view("<u4") >> 16).astype("<u2"),
        "uint8": steps.astype("u1"),
    }[dtype]
    return WireTensor(dtype, shape, data.tobytes())


SD = ramp("float16", 1, 4, 2, 3)
FLUX = ramp("bfloat16", 1, 16, 2, 4)
VIDEO = ramp("float16", 1, 16, 2, 2, 2)
SD_SCALING = Scaling("given", 0.18215, None)
FLUX_SCALING = Scaling("given", 0.3611, 0.1159)
VIDEO_SCALING = Scaling("given", 0.476986, None)
MODEL = Scaling("model", None, None)
NONE = Scaling("none", None, None)
PIXELS = (1, 3, 8, 8)

#: Golden case → what it says.  Pictures stand as None here: the file is the body.
SAID: dict[str, Request | None] = {
    "decode-scaling": DecodeRequest(SD, SD_SCALING, "picture", "jpeg", 95, "binary", None, None),
    "decode-scaling-shift": DecodeRequest(FLUX, FLUX_SCALING, "picture"),
    "decode-no-factor": DecodeRequest(SD, MODEL, "picture"),
    "decode-no-factor-pt": DecodeRequest(VIDEO, MODEL, "signed"),
    "decode-do-scaling-false": DecodeRequest(SD, NONE, "picture"),
    "decode-do-scaling-false-factors": DecodeRequest(ramp("float16", 1, 16, 2, 4), NONE, "picture"),
    "decode-do-scaling-none": DecodeRequest(SD, NONE, "picture"),
    "decode-shift-only": DecodeRequest(SD, Scaling("model", None, 0.1159), "picture"),
    "decode-pil-jpg": DecodeRequest(SD, SD_SCALING, "picture", "jpeg"),
    "decode-pil-png": DecodeRequest(SD, SD_SCALING, "picture", "png"),
    "decode-pil-processor": DecodeRequest(SD, SD_SCALING, "unit"),
    "decode-pil-processor-png": DecodeRequest(SD, SD_SCALING, "unit", "png"),
    "decode-pil-video-processor": DecodeRequest(VIDEO, VIDEO_SCALING, "unit"),
    "decode-pil-return-pt": DecodeRequest(SD, SD_SCALING, "picture"),
    "decode-pt": DecodeRequest(SD, SD_SCALING, "signed"),
    "decode-pt-processor": DecodeRequest(SD, SD_SCALING, "signed"),
    "decode-pt-partial": DecodeRequest(SD, SD_SCALING, "pixels"),
    "decode-pt-partial-return-pt": DecodeRequest(SD, SD_SCALING, "pixels"),
    "decode-pil-partial": DecodeRequest(SD, SD_SCALING, "picture"),
    "decode-mp4": DecodeRequest(VIDEO, VIDEO_SCALING, "video"),
    "decode-mp4-return-pil": DecodeRequest(VIDEO, VIDEO_SCALING, "video"),
    "decode-packed": DecodeRequest(ramp("bfloat16", 1, 2, 64), FLUX_SCALING, "picture", height=16, width=32),
    "decode-unpacked-height-width": DecodeRequest(FLUX, FLUX_SCALING, "picture", height=16, width=32),
    "decode-height-only": DecodeRequest(SD, SD_SCALING, "picture"),
    "decode-float32": DecodeRequest(ramp("float32", 1, 4, 2, 3), SD_SCALING, "picture"),
    "decode-bfloat16": DecodeRequest(ramp("bfloat16", 1, 4, 2, 3), SD_SCALING, "picture"),
    "decode-batch": DecodeRequest(ramp("float16", 2, 4, 1, 1), SD_SCALING, "signed"),
    "decode-key-in-address": DecodeRequest(SD, SD_SCALING, "picture"),
    "encode-pil-rgb": None,
    "encode-pil-rgba": None,
    "encode-pil-l": None,
    "encode-pil-p": None,
    "encode-pil-scaling": None,
    "encode-pil-scaling-shift": None,
    "encode-tensor": EncodeRequest(ramp("float16", *PIXELS), NONE, "auto", False, None, "binary"),
    "encode-tensor-scaling": EncodeRequest(ramp("float32", *PIXELS), Scaling("given", 0.13025)),
    "encode-tensor-scaling-shift": EncodeRequest(ramp("bfloat16", *PIXELS), FLUX_SCALING),
    "encode-tensor-uint8": EncodeRequest(ramp("uint8", *PIXELS)),
    "comfyui-binary": DecodeRequest(ramp("float32", 1, 4, 2, 3), NONE, "signed", height=16, width=24),
    "comfyui-base64": DecodeRequest(
        ramp("float32", 1, 4, 2, 3), NONE, "signed", envelope="base64", height=16, width=24
    ),
    "comfyui-video": DecodeRequest(ramp("float32", 1, 16, 3, 2, 1), NONE, "signed", height=24, width=16),
    "sdnext-raw": DecodeRequest(ramp("bfloat16", 1, 4, 2, 3), Scaling("given", 0.13025), "signed"),
    "sdnext-jpg": DecodeRequest(ramp("bfloat16", 1, 4, 2, 3), Scaling("given", 0.13025), "picture", "jpeg"),
    "sdnext-png": DecodeRequest(ramp("bfloat16", 1, 4, 2, 3), Scaling("given", 0.13025), "picture", "png"),
    "sdnext-no-factor": DecodeRequest(ramp("bfloat16", 1, 4, 2, 3), NONE, "signed"),
    "sdnext-flux-unbatched": DecodeRequest(ramp("bfloat16", 16, 2, 4), FLUX_SCALING, "signed", height=16, width=32),
    "sdnext-flux-packed": DecodeRequest(ramp("bfloat16", 3, 2, 64), FLUX_SCALING, "signed", height=16, width=32),
    "sdnext-zimage": DecodeRequest(FLUX, FLUX_SCALING, "signed", height=16, width=32),
    "v0-json": DecodeRequest(SD, MODEL, "picture", height=16, width=24),
    "v0-json-do-scaling-false": DecodeRequest(SD, NONE, "picture", height=16, width=24),
    "v0-json-packed": DecodeRequest(ramp("float16", 1, 2, 64), MODEL, "picture", height=16, width=32),
    "hybridge-inpainting": DecodeRequest(
        SD, SD_SCALING, "picture", "png", image=ramp("uint8", 1, 3, 16, 24), mask=ramp("uint8", 1, 16, 24)
    ),
}
SAID_SCALING = {"encode-pil-scaling": SD_SCALING, "encode-pil-scaling-shift": FLUX_SCALING}
REFUSED = {"encode-tensor-shift-only"}

Golden = dict[str, tuple[str, dict[str, str], bytes]]


def test_every_golden_case_is_read_here(golden: Golden) -> None:
    assert set(golden) == set(SAID) | REFUSED


@pytest.mark.parametrize("told", [True, False], ids=["task-in-url", "task-inferred"])
@pytest.mark.parametrize("case", SAID)
def test_golden(golden: Golden, case: str, told: bool) -> None:
    query, headers, body = golden[case]
    said = SAID[case]
    if said is None:
        said = EncodeRequest(PictureFile(body), SAID_SCALING.get(case, NONE))
    task: Task = "decode" if isinstance(said, DecodeRequest) else "encode"
    assert read_request(query, headers, body, task if told else None) == said


def test_golden_shift_without_scale_has_no_meaning_on_encode(golden: Golden) -> None:
    with pytest.raises(RequestError, match="shift_factor without scaling_factor"):
        read_request(*golden["encode-tensor-shift-only"], "encode")


@pytest.mark.parametrize("case", ["encode-pil-rgb", "encode-pil-rgba", "encode-pil-l", "encode-pil-p"])
def test_golden_pictures_arrive_in_their_own_mode(golden: Golden, recorder: ModuleType, case: str) -> None:
    import io

    from PIL import Image

    mode = case.rpartition("-")[2].upper()
    with Image.open(io.BytesIO(golden[case][2])) as sent:
        assert sent.format == "PNG"
        assert sent.mode == mode
        assert sent.convert("RGBA").tobytes() == recorder.picture(mode).convert("RGBA").tobytes()


def test_golden_file_is_what_the_installed_diffusers_sends(
    recorder: ModuleType, recorded_lines: list[dict[str, Any]]
) -> None:
    recorded = (recorder.HERE / "diffusers.jsonl").read_text().splitlines()[0]
    if f"diffusers {version('diffusers')}," not in recorded:
        pytest.skip(f"recorded from another version: {recorded}")

    def without_picture(line: dict[str, Any]) -> dict[str, Any]:
        # How a PNG is deflated is Pillow's business, and changes with it.
        is_picture = base64.b64decode(line["body"]).startswith(PNG[:8])
        return line | {"body": "PNG"} if is_picture else line

    assert [*map(without_picture, recorder.record())] == [*map(without_picture, recorded_lines)]


@pytest.mark.parametrize("case", [name for name in SAID if name != "v0-json"])
def test_golden_requests_read_back(golden: Golden, case: str) -> None:
    request = read_request(*golden[case])
    written = write_request(request)
    assert read_request(written.query, written.headers, written.body) == request
