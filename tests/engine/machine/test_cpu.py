"""How many threads a process takes that was granted less than the machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hybridge.engine.machine.cpu import granted_processors, limit_threads, shared_cache_bytes


def _machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_shared_cache_is_what_linux_says(tmp_path) -> None:
    assert shared_cache_bytes(tmp_path) == 0
    root = _machine(tmp_path / "machine", "", {"sys/devices/system/cpu/cpu0/cache/index3/size": "32768K\n"})
    assert shared_cache_bytes(root) == 32 * 2**20


_V2 = "sys/fs/cgroup"
_V1 = "sys/fs/cgroup/cpu"


@pytest.mark.parametrize(
    ("groups", "files", "granted"),
    [
        pytest.param("0::/\n", {f"{_V2}/cpu.max": "150000 100000\n"}, 1.5, id="a container"),
        pytest.param("0::/\n", {f"{_V2}/cpu.max": "max 100000\n"}, None, id="a container without a bound"),
        pytest.param("0::/\n", {}, None, id="the root of a host, which has no file"),
        pytest.param(
            "0::/a.slice/b.service\n",
            {f"{_V2}/a.slice/cpu.max": "200000 100000\n", f"{_V2}/a.slice/b.service/cpu.max": "max 100000\n"},
            2.0,
            id="a service in a slice that is bound",
        ),
        pytest.param(
            "0::/a.slice/b.service\n",
            {f"{_V2}/a.slice/cpu.max": "200000 100000\n", f"{_V2}/a.slice/b.service/cpu.max": "50000 100000\n"},
            0.5,
            id="the least holds",
        ),
        pytest.param(
            "5:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n0::/docker/1\n",
            {f"{_V1}/cpu.cfs_quota_us": "300000\n", f"{_V1}/cpu.cfs_period_us": "100000\n"},
            3.0,
            id="version 1, the host's path seen from a container",
        ),
        pytest.param(
            "1:cpu:/box\n",
            {f"{_V1}/box/cpu.cfs_quota_us": "-1\n", f"{_V1}/box/cpu.cfs_period_us": "100000\n"},
            None,
            id="version 1 without a bound",
        ),
    ],
)
def test_the_granted_time_is_read_from_the_control_groups(
    tmp_path: Path, groups: str, files: dict[str, str], granted: float | None
) -> None:
    assert granted_processors(_machine(tmp_path, groups, files)) == granted


def test_elsewhere_nothing_is_known(tmp_path: Path) -> None:
    assert granted_processors(tmp_path) is None


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("granted", "expected"),
    [("50000 100000", 1), ("100000 100000", 1), ("150000 100000", 2), ("900000 100000", 4), ("max 100000", 4)],
)
def test_threads_are_as_many_as_there_is_time_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, granted: str, expected: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    limit_threads(_machine(tmp_path, "0::/\n", {f"{_V2}/cpu.max": granted}))
    assert torch.get_num_threads() == expected


@pytest.mark.usefixtures("threads")
def test_who_has_said_how_many_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    limit_threads(_machine(tmp_path, "0::/\n", {f"{_V2}/cpu.max": "100000 100000"}))
    assert torch.get_num_threads() == 4


def _bounded_group() -> Path | None:
    """A control group of this machine's own with half a processor, where whoever runs the tests may make one."""
    for top, name, quota in (
        (Path("/sys/fs/cgroup/cpu"), "cpu.cfs_quota_us", "50000"),
        (Path("/sys/fs/cgroup"), "cpu.max", "50000 100000"),
    ):
        folder = top / f"hybridge-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / name).write_text(quota)
        except OSError:
            folder.rmdir()
            continue
        return folder
    return None


def test_a_real_group_is_noticed() -> None:
    group = _bounded_group()
    if group is None:
        pytest.skip("no control group can be made here")
    code = (
        "import os, pathlib, sys; pathlib.Path(sys.argv[1], 'cgroup.procs').write_text(str(os.getpid()));"
        "from hybridge.engine.machine.cpu import granted_processors; print(granted_processors())"
    )
    try:
        told = subprocess.run(
            [sys.executable, "-c", code, str(group)], capture_output=True, text=True, check=True, timeout=120
        )
    finally:
        group.rmdir()
    assert float(told.stdout) == 0.5
