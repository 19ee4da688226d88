"""Both ends of a process that measures: what it says, and every way in which it can end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hybridge.lab.harness.worker_process import ForkServer, ask

#: Of this tree, whatever is installed.
SOURCE = str(Path(__file__).parents[3] / "src")

WORKER = """
import os, signal, sys
from hybridge.errors import TooLarge
from hybridge.lab.harness.worker_process import answer

def hang(job, say):
    say("hanging")
    with open(job["path"], "w") as file:
        print(os.getpid(), file=file, flush=True)
        signal.pause()

def crash(job, say):
    say("crashing")
    print("oh no", file=sys.stderr)
    os._exit(3)

def kill(job, say):
    os.kill(os.getpid(), signal.SIGKILL)

def chat(job, say):
    print("what libraries print")
    return {"heard": job["said"], "variable": os.environ["MINE"]}

def leave(job, say):
    found = getattr(sys, "left", None)
    sys.left = "something"
    return {"found": found}

def orphan(job, say):
    say("being left alone")
    os.kill(os.getppid(), signal.SIGKILL)
    signal.pause()

def parent(job, say):
    return {"number": os.getppid()}

def refuse(job, say):
    raise TooLarge("too large", saw=5, expected=4, hint="less")

def fail(job, say):
    raise ValueError("first line\\nsecond line")

answer(dict(hang=hang, crash=crash, kill=kill, chat=chat, refuse=refuse, fail=fail, leave=leave, orphan=orphan,
            parent=parent))
"""


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("worker")
    (folder / "small_worker.py").write_text(WORKER)
    return {"PYTHONPATH": f"{folder}{os.pathsep}{SOURCE}", "MINE": "yes"}


@pytest.fixture(scope="module")
def fork_server(variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with contextlib.closing(ForkServer("small_worker", tmp_path_factory.mktemp("fork_server"), variables)) as one:
        yield one


answers = pytest.mark.parametrize(
    ("what", "answer"),
    [
        ("chat", {"heard": "hello", "variable": "yes"}),
        ("refuse", {"missing": "too large: saw 5, expected 4"}),
        ("fail", {"missing": "ValueError: first line"}),
        ("crash", {"missing": "ended with status 3 (oh no) while crashing"}),
        ("kill", {"missing": "killed, most likely for want of memory, while starting"}),
    ],
)


@answers
def test_what_comes_back(what: str, answer: dict[str, Any], variables: dict[str, str]) -> None:
    assert ask("small_worker", {"what": what, "said": "hello"}, variables=variables) == answer


@answers
def test_a_fork_answers_as_a_process_of_its_own_does(
    what: str, answer: dict[str, Any], fork_server: ForkServer
) -> None:
    assert fork_server.ask({"what": what, "said": "hello"}, variables={"MINE": "yes"}) == answer


def test_forks_are_fresh_and_a_slow_one_is_ended(fork_server: ForkServer, tmp_path: Path) -> None:
    assert fork_server.ask({"what": "leave"}) == {"found": None}
    job = {"what": "hang", "path": str(tmp_path / "pid")}
    assert fork_server.ask(job, limit_s=1) == {"missing": "took longer than 1 s: ended while hanging"}
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert fork_server.ask({"what": "leave"}) == {"found": None}


def test_a_fork_server_that_is_killed_costs_one_job(fork_server: ForkServer) -> None:
    killed = "the process that had loaded the libraries has ended: killed, most likely for want of memory"
    assert fork_server.ask({"what": "orphan"}) == {"missing": killed}
    assert fork_server.ask({"what": "leave"}) == {"found": None}


def test_a_fork_server_that_ended_between_two_jobs_costs_none(fork_server: ForkServer) -> None:
    number = fork_server.ask({"what": "parent"})["number"]
    os.kill(number, signal.SIGKILL)
    os.waitid(os.P_PID, number, os.WEXITED | os.WNOWAIT)
    assert fork_server.ask({"what": "parent"})["number"] != number


def test_one_that_takes_too_long_is_ended(variables: dict[str, str], tmp_path: Path) -> None:
    job = {"what": "hang", "path": str(tmp_path / "pid")}
    answer = ask("small_worker", job, limit_s=3, variables=variables)
    assert answer == {"missing": "took longer than 3 s: ended while hanging"}
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_one_whose_asker_is_gone_measures_nothing(variables: dict[str, str]) -> None:
    command = [sys.executable, "-m", "small_worker"]
    for asker, count in ((os.getpid(), 1), (2**22 + 1, 0)):
        job = json.dumps({"what": "chat", "said": "hello", "asker": asker})
        done = subprocess.run(command, input=job, text=True, capture_output=True, env={**os.environ, **variables})
        assert len(done.stdout.splitlines()) == count


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_it_ends_with_the_asker(variables: dict[str, str], tmp_path: Path, how: signal.Signals) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    job = json.dumps({"what": "hang", "path": str(pipe)})
    # What runs in the background of a shell ignores Ctrl-C, and so would this one's children.
    hears = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{hears}; from hybridge.lab.harness.worker_process import ask; ask('small_worker', {job})"
    asker = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, **variables}, stderr=subprocess.DEVNULL
    )
    with pipe.open() as hanging:
        assert int(hanging.readline()) > 0
        asker.send_signal(how)
        asker.wait()
        assert hanging.read() == ""  # whoever had the other end open is gone
