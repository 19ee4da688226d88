"""Loads the library of compiled kernels, and tells ctypes what its functions take."""

from __future__ import annotations

import ctypes
import logging
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import arguments

_log = logging.getLogger(__name__)

#: Beside this file; hatch_build.py compiles the library from the sources.
_LIBRARY = Path(__file__).with_name("_compiled.so")
_SOURCES = sorted(Path(__file__).parent.glob("*.[ch]"))


@dataclass(frozen=True, slots=True)
class Library:
    """The library, and the functions of torch's libraries that it calls.

    Attributes:
        functions: The compiled kernels.
        parallel: Address of ``GOMP_parallel`` of the OpenMP that torch runs on.  With another OpenMP there would be
            two teams of threads on the same processors, and each would wait for the other.
        sgemm: Address of BLAS's ``sgemm``, from the library that torch multiplies with; None where it exports none.
    """

    functions: ctypes.CDLL
    parallel: int
    sgemm: int | None


def load() -> Library | None:
    """Load the library; None, and a line in the log, where there is none that can be used."""
    try:
        functions = ctypes.CDLL(str(_LIBRARY))
        # A library built from other sources might take other structs.
        sources = b"".join(source.read_bytes() for source in _SOURCES)
        if ctypes.c_uint32.in_dll(functions, "made_from").value != zlib.crc32(sources):
            raise OSError("they were made from another source: install hybridge again")
        for name, struct in arguments.OF_FUNCTIONS.items():
            function = getattr(functions, name)
            function.argtypes, function.restype = (ctypes.POINTER(struct),), None
        functions.has_gemm.argtypes = (ctypes.c_int,)
        # Looked up among torch's own libraries, so it is the OpenMP that they run on, and their BLAS.
        torchs = ctypes.CDLL(torch._C.__file__)
        parallel = _address(torchs.GOMP_parallel)
        if parallel is None:
            raise OSError("GOMP_parallel has no address")
        return Library(functions, parallel, _sgemm(torchs))
    except (OSError, AttributeError, ValueError) as error:  # no library, an older one, another OpenMP
        _log.info("there are no compiled loops; torch's operators take their place, and more time: %s", error)
        return None


def _sgemm(torchs: ctypes.CDLL) -> int | None:
    """MKL's, which within a parallel region runs in the thread that calls it; other BLAS libraries may not."""
    has_mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call] # torch's
    return _address(torchs.sgemm_) if has_mkl and hasattr(torchs, "sgemm_") else None


def _address(function: Any) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value
