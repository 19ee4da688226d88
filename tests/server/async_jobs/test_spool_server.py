"""A server with a spool: damaged results, clients that do not read, a full disk, and files that vanish."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from async_jobs import Scene, asked, found_in, good, play

from hybridge.errors import StorageFailure, StorageFull, UnknownJob
from hybridge.protocol import WireTensor
from hybridge.server.app import create_app
from hybridge.server.async_jobs import spool as spool_module
from hybridge.server.async_jobs.spool import SpoolStore
from hybridge.server.async_jobs.spool_file import write
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running
from hybridge.server.scheduling.vae_job import VaeJob, VaeResult
from hybridge.server.settings import Settings

QUERY = {"shape": [1, 4, 8, 8], "dtype": "float32"}
LATER = {"content-type": "tensor/binary", "prefer": "respond-async"}
WAIT_S = 60


class Large(LocalBackend):
    """A backend whose results have 12 MiB."""

    async def run(self, job: VaeJob, on_progress: Any = None) -> VaeResult:
        return VaeResult(WireTensor("float32", (1, 3, 1024, 1024), bytes(range(256)) * (12 * 2**12)))


@pytest.fixture
def backend(engines) -> LocalBackend:
    return LocalBackend({"sd-v1": engines["sd-v1"]})


def post(address: str, **more: str) -> httpx.Response:
    url = f"{address}/v1/sd-v1/decode"
    return httpx.post(url, params=QUERY, content=bytes(1024), headers={**LATER, **more}, timeout=WAIT_S)


def end_of(address: str, job: str) -> str:
    text = httpx.get(f"{address}{job}/events", timeout=WAIT_S).text
    return str(json.loads(text.strip().rsplit("data: ", 1)[1])["state"])


class TestResults:
    @pytest.mark.parametrize("damage", [lambda body: body[:-1], lambda body: body[:-1] + b"~", None])
    def test_a_damaged_one_is_made_again(self, backend, tmp_path, damage) -> None:
        with running(create_app(backend, Settings(spool=tmp_path))) as address:
            job = post(address).headers["location"]
            assert end_of(address, job) == "done"
            whole = httpx.get(f"{address}{job}/result")
            (path,) = tmp_path.glob("*.result")
            path.unlink() if damage is None else path.write_bytes(damage(path.read_bytes()))
            refused = httpx.get(f"{address}{job}/result")
            assert (refused.status_code, refused.json()["code"]) == (409, "NotDone")
            assert end_of(address, job) == "done"
            again = httpx.get(f"{address}{job}/result")
            assert (again.status_code, again.content) == (200, whole.content)

    def test_one_that_was_cut_short_is_made_again_by_the_next_server(self, tmp_path) -> None:
        good(tmp_path, is_done=True)
        os.truncate(tmp_path / "good.result", 100)
        assert found_in(tmp_path) == {"good": False}

    @pytest.mark.parametrize("is_durable", [False, True])
    def test_clients_that_do_not_read_take_no_memory(self, engines, tmp_path, is_durable) -> None:
        clients = 40
        settings = Settings(spool=tmp_path) if is_durable else Settings()
        with running(create_app(Large({"sd-v1": engines["sd-v1"]}), settings)) as address, ExitStack() as stack:
            job = post(address, accept="tensor/binary").headers["location"]
            assert end_of(address, job) == "done"
            host, port = address.removeprefix("http://").split(":")
            before = resident_bytes()
            for _ in range(clients):
                connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=WAIT_S))
                connection.sendall(f"GET {job}/result HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                assert connection.recv(1)
            assert resident_bytes() - before < clients * 12 * 2**20 / 4
            fetched = httpx.get(f"{address}{job}/result")
            assert int(fetched.headers["content-length"]) == len(fetched.content) == 12 * 2**20
            assert fetched.content == bytes(range(256)) * (12 * 2**12)

    def test_a_client_that_stops_reading_leaves_no_file_open(self, engines, tmp_path, caplog) -> None:
        settings = Settings(spool=tmp_path, body_pause_s=0.2)
        app = create_app(Large({"sd-v1": engines["sd-v1"]}), settings)
        with running(app, listening=settings.listening) as address, socket.socket() as connection:
            job = post(address, accept="tensor/binary").headers["location"]
            assert end_of(address, job) == "done"
            host, port = address.removeprefix("http://").split(":")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((host, int(port)))
            connection.sendall(f"GET {job}/result HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert connection.recv(1)
            given_up = time.monotonic() + WAIT_S
            while open_results() and time.monotonic() < given_up:
                time.sleep(0.05)
            assert not open_results()
        assert not [record for record in caplog.records if record.exc_info]


def open_results() -> list[str]:
    """Files of results that this process has open."""
    names = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            names.append(os.readlink(link))
    return [name for name in names if name.endswith(".result")]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(params=["size=256k", "size=1m,nr_inodes=12"])
def disk(request, tmp_path) -> Iterator[Path]:
    """A disk that is soon full, in bytes or in files."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"mode=0700,{request.param}", "tmpfs", folder]
    try:
        subprocess.run(mounting, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root may mount a disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


class TestFullDisk:
    def test_the_server_goes_on_and_works_again_when_there_is_room(self, backend, disk) -> None:
        spool = disk / "spool"
        with running(create_app(backend, Settings(spool=spool))) as address:
            fillers = fill(disk)
            refused = [post(address) for _ in range(3)]
            assert {one.status_code for one in refused} == {507}
            assert {one.json()["code"] for one in refused} == {"StorageFull"}
            assert [path.name for path in spool.iterdir()] == ["lock"]
            now = httpx.post(f"{address}/v1/sd-v1/decode", params=QUERY, content=bytes(1024))
            assert now.status_code == 200  # what is not for later needs no disk
            for filler in fillers:
                filler.unlink()
            job = post(address).headers["location"]
            assert end_of(address, job) == "done"
            assert httpx.get(f"{address}{job}/result").status_code == 200

    def test_a_result_that_has_no_room(self, disk) -> None:
        spool = disk / "spool"

        async def act(scene: Scene) -> None:
            job = await scene.accept("a")
            await scene.begun.wait()
            fillers = fill(disk)
            scene.let_go("a")
            assert await scene.over(job) == "failed"
            status, body = await scene.fetch(job)
            assert (status, json.loads(body)["code"]) == (507, "StorageFull")
            assert not list(spool.glob("*.new"))
            for filler in fillers:
                filler.unlink()

        play(act, store=SpoolStore(spool))
        assert list(found_in(spool).values()) == [False]  # the next server makes it again


def fill(disk: Path) -> list[Path]:
    """Leaves no room for another byte, or file."""
    fillers = []
    for number in range(100):
        path = disk / f"filler{number}"
        try:
            with path.open("wb", buffering=0) as file:
                fillers.append(path)
                while number == 0:
                    file.write(bytes(4096))
        except OSError:
            if number:
                break
    return fillers


def test_a_disk_that_fails(tmp_path, monkeypatch, caplog) -> None:
    """ENOSPC and EIO where nothing can be mounted, and a half-written file that cannot be deleted either."""
    caplog.set_level(logging.INFO)
    with closing(SpoolStore(tmp_path)) as spool:
        for number, kind in ((28, StorageFull), (27, StorageFull), (5, StorageFailure)):

            def failing(*arguments: Any, number: int = number) -> None:
                write(*arguments)
                raise OSError(number, os.strerror(number))

            def stuck(path: Path, *, missing_ok: bool = False, number: int = number) -> None:
                if path.exists():
                    raise OSError(number, os.strerror(number))

            with monkeypatch.context() as broken:
                broken.setattr(spool_module, "write", failing)
                with pytest.raises(kind) as failed:
                    spool.keep(asked("job"), b"body")
                assert type(failed.value) is kind
                assert not list(tmp_path.glob("job*"))
                broken.setattr(Path, "unlink", stuck)
                with pytest.raises(kind):
                    spool.keep(asked("job"), b"body")
                assert spool.stray_bytes > len(b"body")
        spool.keep(asked("other"), b"body")
        assert spool.stray_bytes == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "other.request"]


def test_what_nobody_was_told_of_is_not_kept(tmp_path) -> None:
    """A request that is cancelled while it is written, as when the server ends, leaves no job behind."""

    async def act(scene: Scene) -> None:
        accepting = asyncio.create_task(scene.accept())
        await asyncio.sleep(0)
        accepting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await accepting

    play(act, store=SpoolStore(tmp_path))
    assert found_in(tmp_path) == {}


def test_a_folder_that_is_gone_when_a_job_expires(tmp_path, caplog) -> None:
    async def act(scene: Scene) -> None:
        job = await scene.accept()
        scene.let_go()
        assert await scene.over(job) == "done"
        (tmp_path / "spool").rename(tmp_path / "gone")
        failed = asyncio.Event()
        asyncio.get_running_loop().call_later(1, failed.set)
        await failed.wait()
        with pytest.raises(UnknownJob):
            scene.async_jobs.status(job, "address:1")
        assert "the spool cannot be written" in caplog.text

    play(act, store=SpoolStore(tmp_path / "spool"), ttl_s=0.1)
    assert not [record for record in caplog.records if record.exc_info]
