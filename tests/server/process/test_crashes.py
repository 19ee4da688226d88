"""Promises that only a process of its own can keep or break: kill -9, and what is written to disk."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import forks
import httpx
import pytest
import torch
from commands import HYBRIDGE
from forks import Forked

from hybridge.engine import Engine, EngineOptions, to_pixels

QUERY = {"dtype": "float32", "output_type": "pt", "partial_postprocess": "True"}
LATER = {"content-type": "tensor/binary", "accept": "tensor/binary", "prefer": "respond-async"}


def latents(seed: int) -> torch.Tensor:
    # The last jobs are larger: on a busy machine the others may be done before all are posted.
    side = 16 if seed < 46 else 48
    return torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(seed))


def query(seed: int) -> dict[str, object]:
    return {"shape": list(latents(seed).shape), **QUERY}


@contextmanager
def serving(*arguments: object) -> Iterator[tuple[Forked, str]]:
    """A ``hybridge serve`` and its address; killed with SIGKILL at the end, if it still runs."""
    process = Forked(HYBRIDGE, "serve", "--port", 0, *arguments, stderr=subprocess.STDOUT)
    try:
        seen = ""
        for line in process.stdout:
            seen += line
            if found := re.search(r"serving on (http://\S+)", line):
                break
        else:
            pytest.fail(f"no address in: {seen}")
        yield process, found[1]
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def wait_for(address: str, job: str) -> str:
    """The state in which a job ends, told by its events."""
    state = ""
    with httpx.stream("GET", f"{address}{job}/events", timeout=120) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: "):
                state = json.loads(line[6:])["state"]
    return state


def test_kill_9_in_the_middle_of_fifty_spooled_jobs(specs, tmp_path) -> None:
    arguments = (f"mine={specs['sd-v1'].source}", "--device", "cpu", "--spool", tmp_path / "spool")
    with serving(*arguments) as (process, address), httpx.Client() as client:
        url = f"{address}/v1/mine/decode"
        accepted = [
            client.post(url, params=query(seed), content=latents(seed).numpy().tobytes(), headers=LATER)
            for seed in range(50)
        ]
        assert {response.status_code for response in accepted} == {202}
        jobs = [response.headers["location"] for response in accepted]
        assert wait_for(address, jobs[4]) == "done"
        process.kill()
        process.wait()
    done_before = len(list((tmp_path / "spool").glob("*.result")))
    assert 5 <= done_before < 50
    engine = Engine.load(specs["sd-v1"], EngineOptions(device="cpu"))
    with serving(*arguments) as (_, address), httpx.Client() as client:
        for seed, job in enumerate(jobs):
            assert wait_for(address, job) == "done"
            result = client.get(f"{address}{job}/result")
            assert result.status_code == 200
            found = torch.frombuffer(bytearray(result.content), dtype=torch.uint8).int()
            expected = to_pixels(engine.decode(latents(seed))).flatten().int()
            # Within one step: the other process may run with another number of threads.
            assert (found - expected).abs().max() <= 1
        again = client.post(
            f"{address}{jobs[0]}/again", params={"output_type": "pil"}, headers={"accept": "image/png"}
        )
        assert wait_for(address, again.headers["location"]) == "done"
        picture = client.get(f"{address}{again.headers['location']}/result")
        assert picture.headers["content-type"] == "image/png"


#: Serves and answers every kind of request there is, while Python tells of every file opened to be written.
WATCHED = """
import json, os, sys

written = []
CHANGES = ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate", "tempfile.mkstemp", "tempfile.mkdtemp")

def hook(event, about):
    if event == "open":
        path, mode, flags = about
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and path != os.devnull:
            written.append(f"{event} {path}")
    elif event in CHANGES:
        written.append(f"{event} {about}")

# Importing torch's compiler, as diffusers does, makes an empty folder for its cache, whatever is served.
import torch._dynamo

sys.addaudithook(hook)

import httpx
from hybridge.engine import resolve
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

source, photograph = sys.argv[1:]
spec = resolve(f"mine={source}")
query = {"shape": [1, 4, 8, 8], "dtype": "float32"}
body, binary = bytes(1024), {"content-type": "tensor/binary"}
with running(create_app(LocalBackend({}, cold=[spec]))) as address, httpx.Client(timeout=60) as client:
    url = f"{address}/v1/mine/decode"
    statuses = [
        client.post(url, params={**query, **more}, content=body, headers=binary).status_code
        for more in ({}, {"image_format": "png"}, {"image_format": "webp"}, {"output_type": "pt"})
    ]
    frames = {**query, "shape": [4, 4, 8, 8], "output_type": "mp4"}
    statuses.append(client.post(url, params=frames, content=4 * body, headers=binary).status_code)
    statuses.append(client.post(f"{address}/", content=open(photograph, "rb").read()).status_code)
    large = {"shape": [1, 3, 512, 512], "dtype": "float32", "value_range": "unit"}
    statuses.append(client.post(f"{address}/", params=large, content=bytes(12 << 18), headers=binary).status_code)
    statuses.append(client.post(url, params=query, content=b"wrong").status_code)
    later = client.post(url, params=query, content=body, headers={**binary, "prefer": "respond-async"})
    job = address + later.headers["location"]
    client.get(f"{job}/events").read()
    statuses.append(client.get(f"{job}/result").status_code)
    statuses.append(client.post(f"{job}/again", params={"image_format": "png"}).status_code)
    statuses.append(client.delete(job).status_code)
print(json.dumps({"statuses": statuses, "written": written}))
"""


def test_nothing_is_written_to_disk_without_a_spool(specs, photograph, tmp_path) -> None:
    home = tmp_path / "everything"
    home.mkdir()
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTHONPATH"] = ":".join(sys.path)
    done = forks.run(WATCHED, specs["sd-v1"].source, photograph, cwd=home, env=environment)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["statuses"] == [200] * 7 + [400, 200, 202, 204]
    assert told["written"] == []
    assert [path for path in home.rglob("*") if path.is_file()] == []
