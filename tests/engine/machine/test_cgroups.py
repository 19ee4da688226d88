"""How much memory a process may take that was granted less than the machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hybridge.engine import options
from hybridge.engine.machine.cgroups import available_bytes, granted_bytes
from hybridge.engine.memory import device_memory
from hybridge.engine.options import granted_memory

GIB = 2**30
_V2, _V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"
_NONE = "9223372036854771712\n"  # what version 1 writes for no bound


def _machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "granted"),
    [
        pytest.param("0::/\n", {f"{_V2}/memory.max": f"{GIB}\n"}, GIB, id="a container"),
        pytest.param("0::/\n", {f"{_V2}/memory.max": "max\n"}, None, id="a container without a bound"),
        pytest.param("0::/\n", {}, None, id="the root of a host, which has no file"),
        pytest.param(
            "0::/\n",
            {
                f"{_V2}/memory.max": f"{GIB}\n",
                f"{_V2}/memory.current": "900000000\n",
                f"{_V2}/memory.stat": "anon 100000000\ninactive_file 500000000\nactive_file 100000000\n",
            },
            GIB - 300_000_000,
            id="what it uses but for files that can be given back",
        ),
        pytest.param(
            "0::/a.slice/b.service\n",
            {
                f"{_V2}/a.slice/memory.max": f"{GIB}\n",
                f"{_V2}/a.slice/memory.current": "800000000\n",
                f"{_V2}/a.slice/b.service/memory.max": f"{2 * GIB}\n",
                f"{_V2}/a.slice/b.service/memory.current": "1000\n",
            },
            GIB - 800_000_000,
            id="the slice, with what others in it use",
        ),
        pytest.param(
            "0::/\n",
            {f"{_V2}/memory.max": "5\n", f"{_V2}/memory.current": "9\n"},
            0,
            id="nothing left",
        ),
        pytest.param("0::/\n", {f"{_V2}/memory.max": "nonsense\n"}, None, id="nonsense"),
        pytest.param(
            "5:memory:/docker/1\n4:cpu:/docker/1\n0::/docker/1\n",
            {
                f"{_V1}/memory.limit_in_bytes": f"{GIB}\n",
                f"{_V1}/memory.usage_in_bytes": "500000000\n",
                f"{_V1}/memory.stat": "total_inactive_file 100000000\ntotal_active_file 0\n",
            },
            GIB - 400_000_000,
            id="version 1, the host's path seen from a container",
        ),
        pytest.param(
            "1:memory:/box/inner\n",
            {
                f"{_V1}/box/inner/memory.limit_in_bytes": _NONE,
                f"{_V1}/box/memory.limit_in_bytes": f"{GIB}\n",
            },
            GIB,
            id="version 1, the outer group",
        ),
        pytest.param(
            "1:memory:/box\n", {f"{_V1}/box/memory.limit_in_bytes": _NONE}, None, id="version 1, no bound"
        ),
    ],
)
def test_granted_memory_is_read_from_the_control_groups(
    tmp_path: Path, groups: str, files: dict[str, str], granted: int | None
) -> None:
    assert granted_bytes(_machine(tmp_path, groups, files)) == granted


def test_available_is_the_least_of_machine_and_groups(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) is None
    files = {
        "proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    2097152 kB\n",
        f"{_V2}/memory.max": f"{GIB}\n",
    }
    assert available_bytes(_machine(tmp_path, "0::/\n", files)) == GIB
    (tmp_path / _V2 / "memory.max").write_text("max\n")
    assert available_bytes(tmp_path) == 2 * GIB


def test_a_servers_budget_is_a_part_of_what_is_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "granted_bytes", lambda: 1000)
    assert granted_memory("cpu") == 750
    assert granted_memory("meta") is None
    monkeypatch.setattr(options, "granted_bytes", lambda: 0)
    assert granted_memory("cpu") == 1
    monkeypatch.setattr(options, "granted_bytes", lambda: None)
    assert granted_memory("cpu") is None


def test_an_exact_vae_without_a_budget_plans_within_what_is_granted(
    engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hybridge.engine import exact

    vae = exact.exact(engines["sd-v1"].module)
    monkeypatch.setattr(device_memory, "granted_bytes", lambda: None)
    free = vae.plan("decode", 1, 256, 256)
    monkeypatch.setattr(device_memory, "granted_bytes", lambda: 128 * 2**20)
    assert free.peak_bytes > 128 * 2**20
    assert vae.plan("decode", 1, 256, 256).peak_bytes <= 128 * 2**20
    assert device_memory.free_bytes(torch.device("cpu")) == 128 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's limits")
@pytest.mark.parametrize(("limit", "held"), [("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")])
def test_a_real_limit_of_the_process_is_noticed(limit: str, held: str) -> None:
    """In a process of its own, because the limit cannot be raised again."""
    code = """
import importlib.util, re, resource, sys
spec = importlib.util.spec_from_file_location("groups", sys.argv[1])  # alone: torch takes seconds
groups = importlib.util.module_from_spec(spec)
spec.loader.exec_module(groups)
resource.setrlimit(getattr(resource, sys.argv[2]), (2**32, 2**32))
held = re.search(sys.argv[3] + r":\\s+(\\d+)", open("/proc/self/status").read())[1]
print(abs(groups.granted_bytes() - (2**32 - 1024 * int(held))))
"""
    source = Path(device_memory.__file__).parent.with_name("machine") / "cgroups.py"
    told = subprocess.run(
        [sys.executable, "-c", code, str(source), limit, held], capture_output=True, text=True, check=True
    )
    assert int(told.stdout) < 2**24


def _bounded_group() -> Path | None:
    """A control group of this machine's own with 1 GiB, where whoever runs the tests may make one."""
    for top, name in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        folder = top / f"hybridge-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / name).write_text(str(GIB))
        except OSError:
            folder.rmdir()
            continue
        return folder
    return None


def test_a_real_group_is_noticed() -> None:
    """In a process of its own, because it cannot leave the group again."""
    group = _bounded_group()
    if group is None:
        pytest.skip("no control group can be made here")
    code = """
import importlib.util, os, pathlib, sys
spec = importlib.util.spec_from_file_location("groups", sys.argv[1])
groups = importlib.util.module_from_spec(spec)
spec.loader.exec_module(groups)
pathlib.Path(sys.argv[2], "cgroup.procs").write_text(str(os.getpid()))
print(groups.granted_bytes())
kept = bytearray(b"1" * 2**28)
print(groups.granted_bytes())
"""
    source = Path(device_memory.__file__).parent.with_name("machine") / "cgroups.py"
    command = [sys.executable, "-c", code, str(source), str(group)]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    finally:
        group.rmdir()
    before, after = map(int, told.stdout.split())
    assert GIB // 2 < before <= GIB
    assert before - after > 2**27
