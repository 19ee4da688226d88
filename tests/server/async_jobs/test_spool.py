"""A spool with files that are no jobs, damaged ones, a full disk, and kill -9 between any two steps."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from async_jobs import Scene, play

from hybridge.errors import HybridgeError, Overloaded, StorageFailure, StorageFull, UnknownJob
from hybridge.protocol import HttpResponse, WireTensor
from hybridge.server.app import create_app
from hybridge.server.async_jobs import spool as spool_module
from hybridge.server.async_jobs.spool import SpoolStore
from hybridge.server.async_jobs.spool_file import write
from hybridge.server.async_jobs.store import StoredRequest
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running
from hybridge.server.scheduling.vae_job import VaeJob, VaeResult
from hybridge.server.settings import Settings

QUERY = {"shape": [1, 4, 8, 8], "dtype": "float32"}
LATER = {"content-type": "tensor/binary", "prefer": "respond-async"}
ANSWER = HttpResponse(200, {"content-type": "text/plain"}, b"answer" * 1000)
WAIT_S = 60


def asked(job: str) -> StoredRequest:
    return StoredRequest(job, "address:1", "q", {}, "decode", None)


def good(folder: Path, job: str = "good", *, is_done: bool = False) -> None:
    with closing(SpoolStore(folder)) as spool:
        spool.keep(asked(job), b"body" * 1000)
        if is_done:
            spool.finish(asked(job), ANSWER)


def found_in(folder: Path) -> dict[str, bool]:
    """The jobs that the next server finds, and whether they are done."""
    with closing(SpoolStore(folder)) as spool:
        return {found.stored.id: found.done_at is not None for found in spool.recover()}


def edit(path: Path, **about: Any) -> None:
    line, _, body = path.read_bytes().partition(b"\n")
    path.write_bytes(json.dumps({**json.loads(line), **about}).encode() + b"\n" + body)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


#: What may lie in the folder under a request's name, and what makes it.
ODD: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.touch(),
    "cut short": lambda path: path.write_bytes((path.parent / "good.request").read_bytes()[:-1]),
    "cut short in the line": lambda path: path.write_bytes((path.parent / "good.request").read_bytes()[:40]),
    "no JSON": lambda path: path.write_bytes(b"\xff\xfe\n"),
    "no object": lambda path: path.write_bytes(b"[]\n"),
    "very deep": lambda path: path.write_bytes(b"[" * 100_000 + b"\n"),
    "without a field": lambda path: path.write_bytes(b'{"id": "odd"}\n'),
    "of another job": lambda path: path.write_bytes((path.parent / "good.request").read_bytes()),
    "huge": lambda path: (path.touch(), os.truncate(path, 2**40)),
    "a folder": lambda path: path.mkdir(),
    "a dangling link": lambda path: path.symlink_to("nothing"),
    "a link": lambda path: path.symlink_to("good.request"),
    "a named pipe": os.mkfifo,
    "a socket": a_socket,
}


class TestOddFiles:
    @pytest.mark.parametrize("kind", ODD)
    def test_one_is_set_aside_and_the_others_go_on(self, tmp_path, caplog, kind) -> None:
        good(tmp_path, is_done=True)
        ODD[kind](tmp_path / "odd.request")
        before = os.lstat(tmp_path / "odd.request")
        assert found_in(tmp_path) == {"good": True}
        after = os.lstat(tmp_path / "set-aside" / "odd.request")
        assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
        (line,) = caplog.records
        assert "odd.request" in line.getMessage()
        assert "set-aside" in line.getMessage()
        caplog.clear()
        assert found_in(tmp_path) == {"good": True}
        assert not caplog.records

    @pytest.mark.parametrize("name", ["notes.request", "ü\n.request", "a.b.request", "\udcff.request", ".request"])
    def test_names(self, tmp_path, caplog, name) -> None:
        good(tmp_path)
        (tmp_path / name).write_bytes((tmp_path / "good.request").read_bytes())
        assert found_in(tmp_path) == {"good": False}
        assert (tmp_path / "set-aside" / name).exists()
        assert "\n" not in caplog.records[0].getMessage()

    @pytest.mark.parametrize("kind", ["empty", "no JSON", "a folder", "a dangling link", "a named pipe"])
    def test_an_odd_result_is_made_again(self, tmp_path, kind) -> None:
        good(tmp_path)
        ODD[kind](tmp_path / "good.result")
        ODD[kind](tmp_path / "x.request.new")
        assert found_in(tmp_path) == {"good": False}
        assert os.path.lexists(tmp_path / "set-aside" / "good.result")

    def test_nothing_is_overwritten_or_deleted(self, tmp_path) -> None:
        for text in ("one", "two"):
            (tmp_path / "odd.request").write_text(text)
            (tmp_path / "odd.result").write_text(text)
            assert found_in(tmp_path) == {}
        kept = sorted(path.read_text() for path in (tmp_path / "set-aside").iterdir())
        assert kept == ["one", "one", "two", "two"]
        (tmp_path / "README").write_text("not ours")
        (tmp_path / "lost+found").mkdir()
        found_in(tmp_path)
        assert {"README", "lost+found"} <= {path.name for path in tmp_path.iterdir()}

    def test_a_newer_version_s_fields_are_kept(self, tmp_path) -> None:
        good(tmp_path, is_done=True)
        edit(tmp_path / "good.request", priority=3)
        edit(tmp_path / "good.result", made_by="a newer version")
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert found_in(tmp_path) == {"good": True}
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_an_older_version_s_files_are_read(self, tmp_path) -> None:
        good(tmp_path, is_done=True)
        for path in tmp_path.glob("good.*"):
            line, _, body = path.read_bytes().partition(b"\n")
            old = {name: value for name, value in json.loads(line).items() if not name.startswith("body_")}
            path.write_bytes(json.dumps(old).encode() + b"\n" + body)
        assert found_in(tmp_path) == {"good": True}

    def test_no_id_is_logged(self, tmp_path, caplog) -> None:
        job = "AbcdefghijklmnopqrstuV"  # as long as the server's own
        (tmp_path / f"{job}.request").touch()
        assert found_in(tmp_path) == {}
        assert "Abcd….request" in caplog.text
        assert job not in caplog.text

    def test_a_clock_that_went_back_does_not_keep_a_result_for_longer(self, tmp_path) -> None:
        good(tmp_path, is_done=True)
        os.utime(tmp_path / "good.result", (4e9, 4e9))

        async def act(scene: Scene) -> None:
            status = scene.async_jobs.status("good", "address:1")
            assert status["expires_at"] < 4e9

        play(act, store=SpoolStore(tmp_path))


class TestFolder:
    def test_a_lock_that_is_a_link_is_not_followed(self, tmp_path) -> None:
        (tmp_path / "precious").write_text("text")
        (tmp_path / "spool").mkdir(mode=0o700)
        (tmp_path / "spool" / "lock").symlink_to(tmp_path / "precious")
        with pytest.raises(HybridgeError, match="its lock is a symbolic link"):
            SpoolStore(tmp_path / "spool")
        assert (tmp_path / "precious").read_text() == "text"

    def test_the_lock_is_not_emptied(self, tmp_path) -> None:
        (tmp_path / "lock").write_text("text")
        SpoolStore(tmp_path).close()
        assert (tmp_path / "lock").read_text() == "text"

    @pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
    def test_others_may_not_write_there(self, tmp_path, mode) -> None:
        tmp_path.chmod(mode)
        with pytest.raises(HybridgeError, match="chmod 700"):
            SpoolStore(tmp_path)
        SpoolStore(tmp_path / "inside").close()  # as the error suggests
        tmp_path.chmod(0o700)

    def test_others_that_may_list_it_are_warned_of(self, tmp_path, caplog) -> None:
        tmp_path.chmod(0o755)
        SpoolStore(tmp_path).close()
        assert "chmod 700" in caplog.text

    @pytest.mark.parametrize("umask", [0o000, 0o277, 0o777])
    def test_no_umask_opens_or_closes_it(self, tmp_path, umask) -> None:
        before = os.umask(umask)
        try:
            good(tmp_path / "spool", is_done=True)
        finally:
            os.umask(before)
        assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / "spool").glob("good.*")} == {0o600}

    def test_what_is_removed_while_it_is_written_stays_away(self, tmp_path, monkeypatch) -> None:
        good(tmp_path)
        with closing(SpoolStore(tmp_path)) as spool:

            def slowly(*arguments: Any) -> None:
                write(*arguments)
                spool.remove(asked("good"))

            monkeypatch.setattr(spool_module, "write", slowly)
            spool.finish(asked("good"), ANSWER)
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]

    def test_results_that_are_fetched_at_once_are_bounded(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(spool_module, "_MOST_OPEN", 2)
        good(tmp_path, is_done=True)
        with closing(SpoolStore(tmp_path)) as spool:
            opened = [spool.result(asked("good")) for _ in range(2)]
            with pytest.raises(Overloaded, match="2 results"):
                spool.result(asked("good"))
            for kept in opened:
                kept.close()
            with closing(spool.result(asked("good"))) as kept:
                assert kept.stream.read() == ANSWER.body


#: Kills itself before each line of the spool's code in turn, which no thread of this process could survive.
KILLED = """
import os, signal, sys
from pathlib import Path
from hybridge.protocol import HttpResponse
from hybridge.server.async_jobs import spool, spool_file
from hybridge.server.async_jobs.store import StoredRequest

stored = StoredRequest("job", "c", "q", {}, "decode", None)
files = (spool.__file__, spool_file.__file__)

def steps(folder):
    store = spool.SpoolStore(folder)
    store.keep(stored, b"body")
    store.finish(stored, HttpResponse(200, {}, b"result"))
    store.remove(stored)
    store.close()

def lives_through(folder, lines):
    left = lines

    def trace(frame, event, about):
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        left -= event == "line"
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    if (child := os.fork()) == 0:
        sys.settrace(trace)
        steps(folder)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0

lines, seen = 0, set()
while True:
    lines += 1
    folder = Path(sys.argv[1], str(lines))
    is_over = lives_through(folder, lines)
    store = spool.SpoolStore(folder)
    found = store.recover()
    for one in found:
        assert store.body(one.stored) == b"body"
        if one.done_at is not None:
            assert store.result(one.stored).stream.read() == b"result"
    names = {path.name for path in folder.iterdir()}
    store.close()
    assert not any(name.endswith(".new") for name in names), names
    assert "set-aside" not in names
    assert ("job.result" in names) <= bool(found)
    seen.add(tuple(one.done_at is not None for one in found))
    if is_over:
        break
assert seen == {(), (False,), (True,)}, seen
print(lines)
"""


def test_kill_9_between_any_two_steps(tmp_path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


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
