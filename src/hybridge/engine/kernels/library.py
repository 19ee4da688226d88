"""Finds the library of compiled loops, and tells ctypes what its functions take."""

from __future__ import annotations

import ctypes
import logging
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch

_log = logging.getLogger(__name__)

#: Beside this file; hatch_build.py makes the one from the others.
_LIBRARY = Path(__file__).with_name("_compiled.so")
_SOURCES = sorted(Path(__file__).parent.glob("*.[ch]"))

_POINTER, _SIZE, _NUMBER, _FACTOR = (ctypes.c_void_p,), (ctypes.c_ssize_t,), (ctypes.c_int,), (ctypes.c_float,)

#: Every loop runs in a team of threads: the function that begins it, and how many they are.
_THREADS = (ctypes.c_void_p, ctypes.c_uint)

#: What the loops take; none gives a result.
_ARGUMENTS = {
    "to_spectrum": 2 * _POINTER + 4 * _SIZE + 3 * _NUMBER,
    "to_picture": 4 * _POINTER + 7 * _SIZE + 4 * _NUMBER,
    "to_window": 4 * _POINTER + 5 * _SIZE + 2 * _NUMBER,
    "measure": 3 * _POINTER + 5 * _SIZE + _NUMBER,
    "multiply": 3 * _POINTER + 5 * _SIZE + _NUMBER,
    "multiply_with_blas": 3 * _POINTER + _SIZE + 3 * _NUMBER + _POINTER,
    "convolve": 6 * _POINTER + 13 * _SIZE + 5 * _NUMBER,
    "convolve_taps": 5 * _POINTER + 10 * _SIZE + 3 * _NUMBER,
    "convolve_dots": 4 * _POINTER + 10 * _SIZE,
    "put_values": 2 * _POINTER + 4 * _SIZE + _NUMBER,
    "attend": 6 * _POINTER + 4 * _SIZE + _FACTOR + _NUMBER,
}


@dataclass(frozen=True, slots=True)
class Library:
    """The library, and what it is given of torch's.

    Attributes:
        functions: The loops, compiled.
        parallel: ``GOMP_parallel`` of the OpenMP that torch runs on.  With another one there would be two teams of
            threads on the same processors, and each would wait for the other.
        sgemm: BLAS's, of the library that torch multiplies with; None where it shows none.
    """

    functions: ctypes.CDLL
    parallel: ctypes.c_void_p
    sgemm: ctypes.c_void_p | None


def load() -> Library | None:
    """The library; None, and a line in the log, where there is none that can be used."""
    try:
        functions = ctypes.CDLL(str(_LIBRARY))
        # Else they might read other arguments than they are given.
        sources = b"".join(source.read_bytes() for source in _SOURCES)
        if ctypes.c_uint32.in_dll(functions, "made_from").value != zlib.crc32(sources):
            raise OSError("they were made from another source: install hybridge again")
        for name, arguments in _ARGUMENTS.items():
            function = getattr(functions, name)
            function.argtypes, function.restype = arguments + _THREADS, None
        functions.multiplies.argtypes = _NUMBER
        # Looked up among torch's own libraries, so it is the OpenMP that they run on, and their BLAS.
        torchs = ctypes.CDLL(torch._C.__file__)
        return Library(functions, ctypes.cast(torchs.GOMP_parallel, ctypes.c_void_p), _sgemm(torchs))
    except (OSError, AttributeError, ValueError) as error:  # no library, an older one, another OpenMP
        _log.info("there are no compiled loops; torch's operators take their place, and more time: %s", error)
        return None


def _sgemm(torchs: ctypes.CDLL) -> ctypes.c_void_p | None:
    """MKL's, which within a parallel region runs in the thread that calls it; of others nobody knows."""
    has_mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call] # torch's
    if not has_mkl or not hasattr(torchs, "sgemm_"):
        return None
    return ctypes.cast(torchs.sgemm_, ctypes.c_void_p)
