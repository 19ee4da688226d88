"""A spool with files that are no jobs, damaged ones, a full disk, and kill -9 between any two steps."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from async_jobs import ANSWER, Scene, asked, found_in, good, play

from hybridge.errors import HybridgeError, Overloaded
from hybridge.server.async_jobs import spool as spool_module
from hybridge.server.async_jobs.spool import SpoolStore
from hybridge.server.async_jobs.spool_file import write

QUERY = {"shape": [1, 4, 8, 8], "dtype": "float32"}
LATER = {"content-type": "tensor/binary", "prefer": "respond-async"}
WAIT_S = 60


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


def test_a_system_without_posix_locks_serves_without_a_spool(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; sys.modules['fcntl'] = None\n"
        "import hybridge.server.app, hybridge.server.async_jobs.spool\n"
        "from hybridge.errors import HybridgeError\n"
        "try:\n"
        "    hybridge.server.async_jobs.spool.SpoolStore(pathlib.Path(sys.argv[1]) / 'spool')\n"
        "except HybridgeError as error:\n"
        "    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("a spool needs a system with POSIX's file locks: saw ")
    assert not list(tmp_path.iterdir())


class TestSpool:
    def test_what_was_accepted_is_done_by_the_next_process(self, tmp_path: Path) -> None:
        jobs: list[str] = []

        async def before(scene: Scene) -> None:
            jobs.extend([await scene.accept(f"q{number}") for number in range(3)])
            scene.let_go("q0")
            assert await scene.over(jobs[0]) == "done"

        async def after(scene: Scene) -> None:
            assert scene.async_jobs.status(jobs[0], "address:1")["state"] == "done"
            assert await scene.fetch(jobs[0]) == (200, b"BODY")
            for number in (1, 2):
                scene.let_go(f"q{number}")
                assert await scene.over(jobs[number]) == "done"
            assert "q0" not in scene.asked
            asked, body = await scene.async_jobs.request(jobs[2], "address:1")
            assert (asked.query, body) == ("q2", b"body")
            for job in jobs:
                await scene.async_jobs.cancel(job, "address:1")

        play(before, store=SpoolStore(tmp_path))
        (tmp_path / "half.request.new").write_bytes(b"{")
        (tmp_path / "orphan.result").write_bytes(b'{"status": 200, "headers": {}}\n')
        play(after, store=SpoolStore(tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]

    def test_one_process_at_a_time(self, tmp_path: Path) -> None:
        spool = SpoolStore(tmp_path)
        with pytest.raises(HybridgeError, match="another server uses"):
            SpoolStore(tmp_path)
        spool.close()
        SpoolStore(tmp_path).close()

    def test_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(HybridgeError, match="cannot be used"):
            SpoolStore(tmp_path / "file" / "spool")

    def test_files_are_for_their_owner_alone(self, tmp_path: Path) -> None:
        async def act(scene: Scene) -> None:
            await scene.accept()

        play(act, store=SpoolStore(tmp_path / "spool"))
        for path in (tmp_path / "spool").glob("*.request"):
            assert path.stat().st_mode & 0o077 == 0
        assert (tmp_path / "spool").stat().st_mode & 0o077 == 0


def test_a_result_that_cannot_be_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def act(scene: Scene) -> None:
        job = await scene.accept("a")
        await scene.begun.wait()
        (tmp_path / f"{job}.result.new").mkdir()  # where the result is to be written
        scene.let_go("a")
        assert await scene.over(job) == "failed"
        assert scene.ended == [("a", 503)]
        status, body = await scene.fetch(job)
        assert (status, json.loads(body)["saw"]) == (503, "Is a directory")
        assert job not in caplog.text
        (tmp_path / f"{job}.result.new").rmdir()

    play(act, store=SpoolStore(tmp_path))
    spool = SpoolStore(tmp_path)
    assert [found.done_at for found in spool.recover()] == [None]  # it will be done again
    spool.close()
