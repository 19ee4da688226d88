"""Memory for activations outside of the planned memory, so that a budget may be smaller than one activation.

On a CPU this is a mapped file without a name: strips are read and written in place, and :meth:`Offloaded.release`
removes the pages from the process again.  The system keeps them in its page cache as long as no process needs that
memory, so a machine with enough memory loses little time.  On another device it is the host's pinned memory, and
:mod:`..execution.transfer` copies strips in both directions.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO

import torch

from ...errors import OutOfMemory, RequestError


def check_folder(path: str | os.PathLike[str]) -> Path:
    """Check a folder for spilled activations, and return its path.

    Raises:
        RequestError: when it is not a folder, or cannot be written to.
    """
    folder = Path(path).expanduser()
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        saw = f"{folder}: {error.strerror}"
        raise RequestError("cannot spill there", saw=saw, expected="a folder that can be written to") from None
    return folder


class Offloaded:
    """One offloaded activation.

    Attributes:
        tensor: (1, C, H, W), channels-last.
    """

    def __init__(self, like: torch.Tensor, channels: int, height: int, width: int, folder: Path | None) -> None:
        """Allocate the memory.

        Args:
            like: A tensor of the dtype to store, on the device to run on.
            channels: C.
            height: H.
            width: W.
            folder: The folder for the file; None for the system's temporary folder.

        Raises:
            OutOfMemory: when there is no room, or the folder cannot be written to.
        """
        shape = (1, height, width, channels)
        self._mapped: mmap.mmap | None = None
        if like.device.type == "cpu":
            self._mapped = _mapped_file(math.prod(shape) * like.itemsize, folder)
            tensor = torch.frombuffer(self._mapped, dtype=like.dtype).view(shape)
        else:
            tensor = torch.empty(shape, dtype=like.dtype, device="cpu", pin_memory=like.device.type == "cuda")
        self.tensor = tensor.permute(0, 3, 1, 2)

    def release(self) -> None:
        """Remove the pages that were used from the process; their contents stay in the file."""
        if self._mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)


def _mapped_file(nbytes: int, folder: Path | None) -> mmap.mmap:
    where = folder or Path(tempfile.gettempdir())
    try:
        with tempfile.TemporaryFile(dir=where, prefix="hybridge-") as file:
            _reserve(file, nbytes, where)
            return mmap.mmap(file.fileno(), nbytes)
    except OSError as error:
        raise OutOfMemory(
            f"no room to offload {nbytes} bytes of activations",
            saw=f"{where}: {error.strerror}",
            hint="another folder to spill to, or a larger budget",
        ) from None


def _reserve(file: IO[bytes], nbytes: int, where: Path) -> None:
    """Reserve the disk space now: on a full disk, a later write through the mapping would kill the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, nbytes)
        return
    if shutil.disk_usage(where).free < nbytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    file.truncate(nbytes)
