"""What numbers depend on: the processor, the libraries, the threads.  Records of unlike environments never mix."""

from __future__ import annotations

import os
import platform
import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ... import __version__

#: Instruction sets that convolutions can be made of.
_INSTRUCTIONS = re.compile(r"\b(?:avx\w*|amx_\w+|f16c|fma|asimd\w*|bf16|i8mm|sve\w*)\b")


def environment(device: torch.device) -> dict[str, Any]:
    """The machine and the libraries, for a run on this device."""
    processor = _processor()
    return {
        "hybridge": __version__,
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "openvino": version("openvino"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": processor.get("model name", platform.processor() or platform.machine()),
        "instructions": sorted({*_INSTRUCTIONS.findall(processor.get("flags", processor.get("Features", "")))}),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory_bytes(),
        "device": str(device),
        **(_gpu(device) if device.type == "cuda" else {}),
    }


def memory_bytes() -> int:
    """Of the machine, whoever uses it."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpu(device: torch.device) -> dict[str, Any]:
    about = torch.cuda.get_device_properties(device)
    return {
        "gpu": about.name,
        "gpu_memory_bytes": about.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


def _processor() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def version(distribution: str) -> str | None:
    """Of an installed distribution, or None."""
    try:
        return str(metadata.version(distribution))
    except metadata.PackageNotFoundError:
        return None


def no_cpp_compiler() -> str | None:
    """What torch.compile would miss on a CPU, for which it writes C++; None where one is installed."""
    compilers = [os.environ.get("CXX"), "g++", "clang++", "c++"]
    return None if any(name and shutil.which(name) for name in compilers) else "no C++ compiler is installed"
