"""Compiles the engine's kernels into the package; without a compiler, the package works without them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
import zlib
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_KERNELS = "src/hybridge/engine/kernels"


class KernelsHook(BuildHookInterface):
    """Runs ``$CC``, or ``cc``, before a wheel is made or the package is installed from its folder."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds the library to what is installed, and the platform to the wheel's name."""
        if self.target_name != "wheel" or sys.platform != "linux":
            return
        folder = Path(self.root, _KERNELS)
        made = folder / "_compiled.so"
        compiler = shlex.split(os.environ.get("CC", "cc"))
        # library.py asks for the same sum.
        sources = b"".join(path.read_bytes() for path in sorted(folder.glob("*.[ch]")))
        options = ["-std=gnu11", "-O3", "-fPIC", "-shared", f"-DMADE_FROM={zlib.crc32(sources)}u", "-o", str(made)]
        command = [*compiler, *options, *map(str, sorted(folder.glob("*.c")))]
        made.unlink(missing_ok=True)
        try:
            subprocess.run(command, check=True)  # noqa: S603 - the compiler of whoever builds
        except (OSError, subprocess.CalledProcessError) as error:
            self.app.display_warning(f"convolutions will be slower, because they could not be compiled: {error}")
            return
        build_data["artifacts"].append(f"{_KERNELS}/{made.name}")
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
