"""The wire is a pure library: using it needs nothing that is not in the standard library."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import hybridge.protocol as wire
binary = {"content-type": "tensor/binary"}
request = wire.read_request("shape=1&shape=4&shape=1&shape=1&dtype=bfloat16", binary, bytes(8))
wire.write_request(request)
wire.read_request("", {}, b"\\x89PNG\\r\\n\\x1a\\n")
wire.read_answer(wire.write_answer(wire.TensorAnswer(request.latents)))
import hybridge.protocol.media
heavy = {"torch", "numpy", "PIL", "av", "httpx", "requests", "diffusers", "safetensors", "starlette"}
print(sorted(heavy & set(sys.modules)))
"""


def test_reading_and_writing_loads_no_framework() -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert run.stderr == ""
    assert run.stdout == "[]\n"
