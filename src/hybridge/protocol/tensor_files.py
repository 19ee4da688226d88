"""Read tensors from files: safetensors, NumPy's .npy and .npz, and PyTorch's .pt, recognised by their first bytes.

A file's declared sizes are checked before memory is taken, and only tensors are unpickled.
"""

from __future__ import annotations

import array
import json
import math
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import HybridgeError, RequestError, TooLarge
from .tensor import WireTensor

#: Most bytes of one tensor: a hundred pictures of 4096×4096 with 4 latent channels in float32 have as many.
MOST_TENSOR_BYTES = 2**30

#: Most bytes of a safetensors header; ComfyUI writes its whole workflow there.
MOST_HEADER_BYTES = 16 * 2**20

#: The supported formats, for errors.
READABLE = "safetensors (also ComfyUI's .latent), .npz, .npy, or .pt where torch is installed"

#: Bytes per number of safetensors' dtypes.
_ITEM_BYTES = {
    **{"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2},
    **{"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1},
}

_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}

_NUMPY_START, _ZIP_START = b"\x93NUMPY", b"PK"

#: The first bytes of the pointer that Git LFS leaves in place of a file.
LFS_START = b"version https://git-lfs"

#: First byte of a pickle of protocol 2 and later.
_PICKLE_START = b"\x80"


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file, not yet read.

    Attributes:
        dtype: ``float16``, ``bfloat16``, ``float32`` or ``float64``, or the file's own name for any other dtype.
        shape: The tensor's shape.
        load: Function that reads the tensor; float64 is rounded to float32.
    """

    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], WireTensor] = field(repr=False)

    def read(self, name: str) -> WireTensor:
        """Read the tensor.

        Raises:
            RequestError: when its numbers are not floats.
            TooLarge: above 1 GiB, before memory is taken.
        """
        if self.dtype not in _FLOATS.values():
            raise RequestError(
                f"the tensor `{name}` holds no floats", saw=self.dtype, expected=", ".join(_FLOATS.values())
            )
        nbytes = math.prod(self.shape) * (2 if self.dtype.endswith("16") else 8 if self.dtype == "float64" else 4)
        if nbytes > MOST_TENSOR_BYTES:
            raise TooLarge(
                f"the tensor `{name}` is too large",
                saw=f"{nbytes} bytes, {self.dtype} {list(self.shape)}",
                expected=f"at most {MOST_TENSOR_BYTES}",
            )
        return self.load()


@dataclass(frozen=True, slots=True)
class TensorFile:
    """An open file: ``form`` is ``safetensors``, ``npy``, ``npz`` or ``pt``; ``about`` is safetensors' metadata."""

    form: str
    tensors: Mapping[str, Stored]
    about: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Open a file; its tensors have to be read before the context ends.

    Raises:
        RequestError: for a damaged file, or another format.
        OSError: for a file that cannot be opened.
    """
    with path.open("rb") as file:
        start = file.read(len(LFS_START))
        try:
            if start == LFS_START:
                raise _Damaged("a pointer of Git LFS instead of the file; `git lfs pull` fetches it")
            if start.startswith(_NUMPY_START):
                yield _open_npy(path)
            elif start.startswith(_ZIP_START):
                with zipfile.ZipFile(path) as archive:
                    is_torch = any(name.endswith("data.pkl") for name in archive.namelist())
                    yield _open_pt(path, archive) if is_torch else _open_npz(archive)
            elif start.startswith(_PICKLE_START) and not _is_header(start) and path.suffix.lower() != ".npy":
                yield _open_pt(path, None)
            else:
                yield _open_safetensors(file)
        except (HybridgeError, MemoryError):
            raise
        except Exception as error:  # zipfile and NumPy raise many types for damaged files
            raise RequestError(f"{path} cannot be read as tensors", saw=str(error), expected=READABLE) from None


def _is_header(start: bytes) -> bool:
    """Return whether a file begins as safetensors; its header's length may begin with the byte of a pickle."""
    return start[4:9] == b"\0\0\0\0{"


class _Damaged(Exception):
    """The reason why a file is damaged."""


def _open_safetensors(file: BinaryIO) -> TensorFile:
    nbytes = file.seek(0, 2)
    file.seek(0)
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= nbytes - 8:
        raise _Damaged(f"{nbytes} bytes beginning with {start!r}")
    if length > MOST_HEADER_BYTES:
        raise _Damaged(f"a header of {length} bytes, more than {MOST_HEADER_BYTES}")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError):
        raise _Damaged(f"{nbytes} bytes beginning with {start!r}, and no JSON header of safetensors") from None
    if not isinstance(header, dict):
        raise _Damaged("a header that is no object")
    about = header.pop("__metadata__", None) or {}
    if not isinstance(about, dict):
        raise _Damaged("metadata that is no object")
    tensors = {name: _described(file, 8 + length, nbytes, name, entry) for name, entry in header.items()}
    return TensorFile("safetensors", tensors, about)


def _described(file: BinaryIO, start: int, nbytes: int, name: str, entry: Any) -> Stored:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        is_right = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
        # Tensors of unknown dtypes are not latents; their size is not checked.
        is_right = is_right and end - begin == _ITEM_BYTES.get(dtype, end - begin) * math.prod(shape)
    except (KeyError, TypeError, ValueError):
        is_right = False
    if not is_right:
        raise _Damaged(f"a tensor `{name[:80]}` whose dtype, shape and place do not belong together")
    if start + end > nbytes:
        raise _Damaged(f"{nbytes} bytes, cut short in the tensor `{name[:80]}`, which ends at {start + end}")

    def load() -> WireTensor:
        file.seek(start + begin)
        data = file.read(end - begin)
        if dtype != "F64":
            return WireTensor(_FLOATS[dtype], shape, data)
        doubles = array.array("d", data)
        if sys.byteorder == "big":
            doubles.byteswap()
        floats = array.array("f", doubles)
        if sys.byteorder == "big":
            floats.byteswap()
        return WireTensor("float32", shape, floats.tobytes())

    return Stored(_FLOATS.get(dtype, str(dtype)), shape, load)


def _open_npy(path: Path) -> TensorFile:
    np = numpy_or_refuse()
    try:
        # Mapped, so that a header with a wrong size takes no memory.
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise _Damaged(f"a .npy file that NumPy refuses: {error}") from None
    stored = Stored(mapped.dtype.name, mapped.shape, lambda: WireTensor.from_numpy(mapped))
    return TensorFile("npy", {"": stored})


def _open_npz(archive: zipfile.ZipFile) -> TensorFile:
    np = numpy_or_refuse()
    tensors = {}
    for member in archive.infolist():
        if not member.filename.endswith(".npy"):
            continue
        name = member.filename.removesuffix(".npy")
        if member.flag_bits & 1:
            raise _Damaged("an encrypted archive")
        with archive.open(member) as file:
            try:
                version = np.lib.format.read_magic(file)
                headers = {(1, 0): "read_array_header_1_0", (2, 0): "read_array_header_2_0"}
                if version not in headers:
                    raise ValueError(f"version {version}")
                shape, _, dtype = getattr(np.lib.format, headers[version])(file)
            except ValueError as error:
                raise _Damaged(f"an array `{name[:80]}` that NumPy refuses: {error}") from None
            # zipfile returns no more bytes than the archive declares, however many it contains.
            declared = member.file_size - file.tell()
        if not dtype.hasobject and declared != math.prod(shape) * dtype.itemsize:
            raise _Damaged(f"an array `{name[:80]}` of {declared} bytes, described as {dtype.name} {list(shape)}")
        # A pickle's dtype is `object`, which no reader of floats accepts.
        tensors[name] = Stored(dtype.name, shape, lambda member=member: _load_npy(archive, member))  # type: ignore[misc]
    return TensorFile("npz", tensors)


def _load_npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> WireTensor:
    with archive.open(member) as file:
        return WireTensor.from_numpy(numpy_or_refuse().lib.format.read_array(file, allow_pickle=False))


def _open_pt(path: Path, archive: zipfile.ZipFile | None) -> TensorFile:
    held = path.stat().st_size if archive is None else sum(member.file_size for member in archive.infolist())
    if held > 2 * MOST_TENSOR_BYTES:
        raise _Damaged(f"{held} bytes, more than the {2 * MOST_TENSOR_BYTES} that are read of a .pt file")
    try:
        from .torch import from_torch, load_tensors
    except ImportError:
        raise RequestError(
            f"{path} is a file of PyTorch's, which needs torch", hint="pip install 'hybridge[engine]'"
        ) from None
    return TensorFile(
        "pt",
        {
            name: Stored(
                str(tensor.dtype).removeprefix("torch."),
                tuple(tensor.shape),
                lambda tensor=tensor: from_torch(tensor.contiguous()),  # type: ignore[misc]
            )
            for name, tensor in load_tensors(path).items()
        },
    )


def numpy_or_refuse() -> Any:
    """Return the module NumPy, or raise RequestError if it is not installed."""
    try:
        import numpy
    except ImportError:
        raise RequestError(
            "this file needs NumPy", saw="none installed", hint="pip install 'hybridge[image]'"
        ) from None
    return numpy
