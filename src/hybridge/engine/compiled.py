"""Loops for which torch has no operator of its own, compiled when hybridge was installed.

The folder ``loops`` has them, in C: a convolution's tiles are transformed, multiplied and transformed back, queries
attend, and a strip is normalised and activated, in one pass each.  Without a C compiler there is no library, and
torch's operators do the same in several.
"""

from __future__ import annotations

import ctypes
import logging
import zlib
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F

from .processors import shared_cache_bytes
from .ways import ADDED_AT_ONCE, CHANNELS_TOGETHER

_log = logging.getLogger(__name__)

#: What C writes to must not depend on torch's default dtype and device, which others may set at any time.
_CPU = torch.device("cpu")

#: Beside this file; hatch_build.py makes the one from the others.
_LIBRARY = Path(__file__).with_name("_compiled.so")
_SOURCES = sorted(Path(__file__).with_name("loops").glob("*.[ch]"))

#: Channels that the loops take at a time; see LANES in loops/numbers.h.
_LANES = 8

#: Tiles that a thread takes through a whole convolution at a time.  Measured, see benchmarks/LOG.md.
_TILES = 12

#: Values that attention keeps side by side, as bytes of a channel; see DEEP in loops/softmax.h.
_BLOCK_BYTES = 512

#: Of the cache that cores share, what they read again and again may take this part, to be still there.
_KEPT_PART = 0.3


_WITHOUT_RESULT = (
    "to_spectrum", "multiply", "multiply_with_blas", "to_picture", "convolve", "convolve_taps", "convolve_dots",
    "put_values", "attend", "to_window", "measure",
)  # fmt: skip


class Compiled:
    """The library's functions.

    Args:
        library: The loops, compiled.
        parallel: ``GOMP_parallel`` of the OpenMP that torch runs on.  With another one there would be two teams of
            threads on the same processors, and each would wait for the other.
        sgemm: BLAS's, of the library that torch multiplies with; None where it shows none.
    """

    def __init__(
        self, library: ctypes.CDLL, parallel: ctypes.c_void_p, sgemm: ctypes.c_void_p | None = None
    ) -> None:
        pointer, size, number = (ctypes.c_void_p,), (ctypes.c_ssize_t,), (ctypes.c_int,)
        threads = (ctypes.c_void_p, ctypes.c_uint)
        self._library, self._parallel, self._sgemm = library, parallel, sgemm
        library.to_spectrum.argtypes = 2 * pointer + 4 * size + 3 * number + threads
        library.to_picture.argtypes = 4 * pointer + 7 * size + 4 * number + threads
        library.to_window.argtypes = 4 * pointer + 5 * size + 2 * number + threads
        library.measure.argtypes = 3 * pointer + 5 * size + number + threads
        library.multiply.argtypes = 3 * pointer + 5 * size + number + threads
        library.convolve.argtypes = 6 * pointer + 13 * size + 5 * number + threads
        library.convolve_taps.argtypes = 5 * pointer + 10 * size + 3 * number + threads
        library.convolve_dots.argtypes = 4 * pointer + 10 * size + threads
        library.put_values.argtypes = 2 * pointer + 4 * size + number + threads
        library.attend.argtypes = 6 * pointer + 4 * size + (ctypes.c_float, *number) + threads
        library.multiply_with_blas.argtypes = 3 * pointer + size + 3 * number + pointer + threads
        for name in _WITHOUT_RESULT:
            getattr(library, name).restype = None

    def to_spectrum(
        self, window: torch.Tensor, spectrum: torch.Tensor, high: int, wide: int, tile: tuple[int, int]
    ) -> None:
        """Window (1, C, rows, columns), channels-last → spectrum (products, high · wide, C).

        Args:
            window: What the tiles read, float32.
            spectrum: Is written, float32 or bfloat16.
            high: Tiles from the top to the bottom.
            wide: Tiles from left to right.
            tile: Rows and columns that one reads: (6, 6), (6, 4) or (4, 4) for 3×3, (3, 3) after ×2, (5, 5) with
                stride 2.
        """
        self._library.to_spectrum(
            window.data_ptr(), spectrum.data_ptr(), window.stride(2), high, wide, window.shape[1],
            *tile, spectrum.dtype == torch.bfloat16, self._parallel, torch.get_num_threads(),
        )  # fmt: skip

    def multiplies(self, dtype: torch.dtype, *channels: int) -> bool:
        """Whether :meth:`multiply` has loops of its own for this processor, such numbers and so many channels."""
        is_known = dtype in (torch.float32, torch.bfloat16)
        fits = is_known and not any(count % CHANNELS_TOGETHER for count in channels)
        return fits and bool(self._library.multiplies(dtype == torch.bfloat16))

    def pack(self, filters: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Filters (n, C, O), in the order in which :meth:`multiply` reads them.

        That is in panels of output channels, (n, panels, C, channels of a panel), and in bfloat16 with two input
        channels side by side; as they are where torch multiplies.

        Args:
            filters: Of any dtype.
            dtype: To keep them in, float32 or bfloat16.
        """
        _, into, out = filters.shape
        if not self.multiplies(dtype, into, out):
            return filters.to(dtype).contiguous()
        return _panels(filters.to(dtype)).contiguous()

    def pack_taps(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A convolution's weight (O, I, k, k), in the order in which :meth:`convolve_taps` reads it.

        That is (panels, k, k · I, channels of a panel), the last panel filled up with zeros, and in bfloat16 with
        two numbers of k · I side by side.
        """
        lines = weight.to(dtype).permute(2, 3, 1, 0).flatten(1, 2)
        return _panels(F.pad(lines, (0, -len(weight) % CHANNELS_TOGETHER))).transpose(0, 1).contiguous()

    def multiply(
        self,
        spectrum: torch.Tensor,
        filters: torch.Tensor,
        products: torch.Tensor,
        *,
        added_at_once: int = ADDED_AT_ONCE,
    ) -> None:
        """``products = spectrum · filters``: (n, positions, C) · (n, C, O) → (n, positions, O).

        All are contiguous.  Each thread takes some positions and channels, or a product where BLAS makes it, and
        whoever is done takes the next.  torch's ``bmm`` deals products out beforehand, and waits for the thread
        that somebody else's work held up.

        Args:
            spectrum: float32 or bfloat16.
            filters: Of the same dtype, from :meth:`pack`.
            products: float32; is written.
            added_at_once: Products of so many channels, or pairs of them, are added one after another, and sums of
                them two by two: fewer take longer and are rounded less.  BLAS has its own way.
        """
        threads = torch.get_num_threads()
        if filters.ndim == 3:
            if self._sgemm is None:
                torch.bmm(spectrum, filters, out=products)
            else:
                self._library.multiply_with_blas(
                    spectrum.data_ptr(), filters.data_ptr(), products.data_ptr(), *spectrum.shape, filters.shape[2],
                    self._sgemm, self._parallel, threads,
                )  # fmt: skip
            return
        self._library.multiply(
            spectrum.data_ptr(), filters.data_ptr(), products.data_ptr(), *spectrum.shape,
            products.shape[2], added_at_once, spectrum.dtype == torch.bfloat16, self._parallel, threads,
        )  # fmt: skip

    def convolve(
        self,
        window: torch.Tensor,
        filters: torch.Tensor,
        bias: torch.Tensor | None,
        added: torch.Tensor | None,
        picture: torch.Tensor,
        memory: torch.Tensor,
        high: int,
        wide: int,
        tile: tuple[int, int],
        *,
        added_at_once: int = ADDED_AT_ONCE,
    ) -> bool:
        """:meth:`to_spectrum`, :meth:`multiply` and :meth:`to_picture` for a few tiles at a time.

        Those stay in a core's own cache.  The filters are read again for every few, so they must stay in a cache,
        too: in the one that cores share.

        Args:
            window: As for :meth:`to_spectrum`.
            filters: From :meth:`pack`.
            bias: As for :meth:`to_picture`.
            added: The same.
            picture: The same.
            memory: float32; is written.
            high: Tiles from the top to the bottom.
            wide: Tiles from left to right.
            tile: As for :meth:`to_spectrum`.
            added_at_once: As for :meth:`multiply`.

        Returns:
            Whether it was done.  Filters or threads that are too many for caches and memory are left to the three.
        """
        threads = torch.get_num_threads()
        into, out = window.shape[1], picture.shape[1]
        numbers = _TILES * len(filters) * (into + out)
        are_few = filters.nbytes <= _KEPT_PART * shared_cache_bytes()
        if filters.ndim == 3 or not are_few or threads * numbers > memory.numel():
            return False
        self._library.convolve(
            window.data_ptr(), filters.data_ptr(), _pointer(bias), _pointer(added), picture.data_ptr(),
            memory.data_ptr(), numbers * memory.itemsize, window.stride(2), picture.stride(2), _row(added),
            high, wide, *picture.shape[2:], into, out, len(filters), _TILES, added_at_once, *tile,
            filters.dtype == torch.bfloat16, picture.dtype == torch.bfloat16, _is_bfloat16(added),
            self._parallel, threads,
        )  # fmt: skip
        return True

    def convolve_taps(
        self,
        window: torch.Tensor,
        filters: torch.Tensor,
        bias: torch.Tensor | None,
        added: torch.Tensor | None,
        picture: torch.Tensor,
        stride: int,
        *,
        added_at_once: int = ADDED_AT_ONCE,
    ) -> None:
        """A convolution in one step, where :meth:`multiplies` knows the numbers; its channels are multiples of 8.

        Args:
            window: (1, C, rows, columns), channels-last, float32 or bfloat16.
            filters: From :meth:`pack_taps`, of the same dtype.
            bias: As for :meth:`to_picture`.
            added: The same.
            picture: The same.
            stride: From what one output reads to what the next does.
            added_at_once: As for :meth:`multiply`.
        """
        self._library.convolve_taps(
            window.data_ptr(), filters.data_ptr(), _pointer(bias), _pointer(added), picture.data_ptr(),
            window.stride(2), picture.stride(2), _row(added), *picture.shape[2:], window.shape[1], picture.shape[1],
            filters.shape[1], stride, added_at_once, window.dtype == torch.bfloat16,
            picture.dtype == torch.bfloat16, _is_bfloat16(added), self._parallel, torch.get_num_threads(),
        )  # fmt: skip

    def convolve_dots(
        self,
        window: torch.Tensor,
        filters: torch.Tensor,
        bias: torch.Tensor | None,
        picture: torch.Tensor,
        stride: int,
    ) -> None:
        """A convolution in one step, for few outputs; what it reads are multiples of 8 channels.

        Args:
            window: (1, C, rows, columns), channels-last, float32.
            filters: (k, O, k · C), float32, contiguous.
            bias: As for :meth:`to_picture`.
            picture: (1, O, rows, columns), laid out in whatever way, float32; is written.
            stride: From what one output reads to what the next does.
        """
        kernel, out, _ = filters.shape
        _, to_next, to_row, to_column = picture.stride()
        self._library.convolve_dots(
            window.data_ptr(), filters.data_ptr(), _pointer(bias), picture.data_ptr(), window.stride(2),
            window.shape[1], to_row, to_column, to_next, *picture.shape[2:], out, kernel, stride,
            self._parallel, torch.get_num_threads(),
        )  # fmt: skip

    def to_picture(
        self,
        products: torch.Tensor,
        bias: torch.Tensor | None,
        added: torch.Tensor | None,
        picture: torch.Tensor,
        high: int,
        wide: int,
        tile: tuple[int, int],
    ) -> None:
        """Products (products, high · wide, O) + bias (O,) + added → picture (1, O, rows, columns), channels-last.

        What tiles make beyond the picture is dropped.

        Args:
            products: float32.
            bias: The same.
            added: As large as the picture, channels-last, float32 or bfloat16; may be the picture.
            picture: float32 or bfloat16; is written.
            high: As for :meth:`to_spectrum`.
            wide: The same.
            tile: The same.
        """
        self._library.to_picture(
            products.data_ptr(), _pointer(bias), _pointer(added), picture.data_ptr(), picture.stride(2),
            _row(added), high, wide, *picture.shape[2:], picture.shape[1], *tile, picture.dtype == torch.bfloat16,
            _is_bfloat16(added), self._parallel, torch.get_num_threads(),
        )  # fmt: skip

    def to_window(self, rows: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, window: torch.Tensor) -> None:
        """``window = silu(scale · rows + shift)``, silu(x) = x / (1 + exp(-x)); both (1, C, n, W), channels-last.

        Args:
            rows: float32 or bfloat16.
            scale: (C,), float32.
            shift: The same.
            window: float32 or bfloat16; is written.
        """
        _, channels, count, width = rows.shape
        self._library.to_window(
            rows.data_ptr(), scale.data_ptr(), shift.data_ptr(), window.data_ptr(), rows.stride(2),
            window.stride(2), count, width, channels, rows.dtype == torch.bfloat16,
            window.dtype == torch.bfloat16, self._parallel, torch.get_num_threads(),
        )  # fmt: skip

    def values_in_a_block(self, dtype: torch.dtype) -> int:
        """Positions whose values :meth:`attend` reads side by side."""
        return _BLOCK_BYTES // dtype.itemsize

    def put_values(self, rows: torch.Tensor, first: int, values: torch.Tensor) -> None:
        """Rows (n, C), float32, of positions from ``first`` on, to their places in ``values``.

        Args:
            rows: Contiguous.
            first: Position of the first row.
            values: (blocks, C, :meth:`values_in_a_block`), float32 or bfloat16; is written.
        """
        self._library.put_values(
            rows.data_ptr(), values.data_ptr(), first, *rows.shape, values.shape[2],
            values.dtype == torch.bfloat16, self._parallel, torch.get_num_threads(),
        )  # fmt: skip

    def attend(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        out: torch.Tensor,
        memory: tuple[torch.Tensor, torch.Tensor],
        *,
        added_at_once: int = ADDED_AT_ONCE,
    ) -> None:
        """``out = softmax(queries · keysᵀ / √C) · values``, of numbers that :meth:`multiplies` knows.

        Args:
            queries: (n, C), float32.
            keys: (positions, C), float32 or bfloat16.
            values: From :meth:`put_values`, of the same dtype; zeros where there is no position.
            out: (n, C), float32; is written.
            memory: Twice for as many float32 numbers, n rounded up by :func:`.ways.queries_padded`; is written.
            added_at_once: As for :meth:`multiply`.
        """
        count, channels = queries.shape
        panels, mixed = memory
        self._library.attend(
            queries.data_ptr(), keys.data_ptr(), values.data_ptr(), out.data_ptr(), panels.data_ptr(),
            mixed.data_ptr(), count, len(keys), channels, added_at_once, channels**-0.5,
            keys.dtype == torch.bfloat16, self._parallel, torch.get_num_threads(),
        )  # fmt: skip

    def measure(self, rows: torch.Tensor, at_once: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and biased variance of every channel, of ``at_once`` rows and the next ones: (parts, C), float32.

        Args:
            rows: (1, C, n, W), channels-last, float32 or bfloat16.
            at_once: Fewer in the last part.
        """
        _, channels, count, width = rows.shape
        shape = -(-count // at_once), channels
        means, variances = (torch.empty(shape, dtype=torch.float32, device=_CPU) for _ in range(2))
        self._library.measure(
            rows.data_ptr(), means.data_ptr(), variances.data_ptr(), rows.stride(2), count, width, channels,
            at_once, rows.dtype == torch.bfloat16, self._parallel, torch.get_num_threads(),
        )  # fmt: skip
        return means, variances


def takes_picture(picture: torch.Tensor) -> bool:
    """Whether compiled loops can read and write it."""
    is_laid_out = picture.stride(1) == 1 and picture.stride(3) == picture.shape[1]
    return is_laid_out and picture.device.type == "cpu" and picture.dtype in (torch.float32, torch.bfloat16)


def _panels(filters: torch.Tensor) -> torch.Tensor:
    """(n, C, O) → (n, panels, C, channels of a panel); bfloat16 with two of C side by side, behind those."""
    count, into, _ = filters.shape
    side_by_side = 2 if filters.dtype == torch.bfloat16 else 1
    panels = filters.reshape(count, into // side_by_side, side_by_side, -1, CHANNELS_TOGETHER)
    return panels.permute(0, 3, 1, 4, 2)


def _pointer(numbers: torch.Tensor | None) -> int | None:
    return None if numbers is None else numbers.data_ptr()


def _row(added: torch.Tensor | None) -> int:
    return 0 if added is None else added.stride(2)


def _is_bfloat16(added: torch.Tensor | None) -> bool:
    return added is not None and added.dtype == torch.bfloat16


def multiplies_float32() -> bool:
    """Whether there are loops that multiply float32 numbers on this processor."""
    compiled = _load()
    return compiled is not None and compiled.multiplies(torch.float32)


def multiplies_bfloat16() -> bool:
    """Whether there are loops that multiply bfloat16 numbers, in half the time that float32 takes here."""
    compiled = _load()
    return compiled is not None and compiled.multiplies(torch.bfloat16)


def compiled_for(like: torch.Tensor, *channels: int) -> Compiled | None:
    """The compiled loops, if they are there and work on numbers like these and so many channels."""
    fits = like.device.type == "cpu" and like.dtype == torch.float32
    return _load() if fits and not any(count % _LANES for count in channels) else None


@cache
def _load() -> Compiled | None:
    try:
        library = ctypes.CDLL(str(_LIBRARY))
        # Else they might read other arguments than they are given.
        sources = b"".join(source.read_bytes() for source in _SOURCES)
        if ctypes.c_uint32.in_dll(library, "made_from").value != zlib.crc32(sources):
            raise OSError("they were made from another source: install hybridge again")
        # Looked up among torch's own libraries, so it is the OpenMP that they run on, and their BLAS.
        torchs = ctypes.CDLL(torch._C.__file__)
        parallel = ctypes.cast(torchs.GOMP_parallel, ctypes.c_void_p)
        return Compiled(library, parallel, _sgemm(torchs))
    except (OSError, AttributeError, ValueError) as error:  # no library, an older one, another OpenMP
        _log.info("there are no compiled loops; torch's operators take their place, and more time: %s", error)
        return None


def _sgemm(torchs: ctypes.CDLL) -> ctypes.c_void_p | None:
    """MKL's, which within a parallel region runs in the thread that calls it; of others nobody knows."""
    has_mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call] # torch's
    if not has_mkl or not hasattr(torchs, "sgemm_"):
        return None
    return ctypes.cast(torchs.sgemm_, ctypes.c_void_p)
