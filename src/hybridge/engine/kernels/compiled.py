"""Loops for which torch has no operator of its own, compiled when hybridge was installed.

The C files beside this one have them.  Each does in one pass what torch's operators do in several: transform a
convolution's tiles, multiply them and transform them back; compute attention; normalise and activate a strip.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F

from ..machine.cpu import shared_cache_bytes
from ..planning.conv_algorithms import ADDED_AT_ONCE, CHANNELS_TOGETHER
from . import library, tensor_pointers
from .attention_kernels import AttentionLoops
from .tensor_pointers import EITHER, FLOAT32, LANES

#: What C writes to must not depend on torch's default dtype and device, which others may set at any time.
_CPU = torch.device("cpu")

#: Tiles that a thread takes through a whole convolution at a time.  Measured, see benchmarks/LOG.md.
_TILES = 12

#: Of the cache that cores share, what they read again and again may take this part, to be still there.
_KEPT_PART = 0.3


class Compiled(AttentionLoops):
    """The library's functions, for tensors, which are checked before a loop hears where they lie."""

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
        channels = window.shape[1]
        shape = tile[0] * tile[1], high * wide, channels
        self._library.to_spectrum(
            tensor_pointers.of_window(window, high, wide, tile),
            tensor_pointers.of_numbers("the spectrum", spectrum, EITHER, *shape),
            window.stride(2), high, wide, channels, *tile, spectrum.dtype == torch.bfloat16,
            self._parallel, torch.get_num_threads(),
        )  # fmt: skip

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
        count, positions, into = spectrum.shape
        out = products.shape[2]
        if filters.ndim == 3 and self._sgemm is None:
            torch.bmm(spectrum, filters, out=products)
            return
        made = tensor_pointers.of_numbers("the products", products, FLOAT32, count, positions, out)
        if filters.ndim == 3:
            tensor_pointers.check_ints(positions, into, out)
            self._library.multiply_with_blas(
                tensor_pointers.of_numbers("the spectrum", spectrum, FLOAT32, count, positions, into),
                tensor_pointers.of_numbers("the filters", filters, FLOAT32, count, into, out),
                made, count, positions, into, out, self._sgemm, self._parallel, threads,
            )  # fmt: skip
            return
        tensor_pointers.check_sums(into, added_at_once)
        self._library.multiply(
            tensor_pointers.of_numbers(
                "the spectrum", spectrum, (filters.dtype,), count, positions, into, in_words=True
            ),
            self._panels("the filters", filters, count, into, out), made, count, positions, into, out,
            added_at_once, filters.dtype == torch.bfloat16, self._parallel, threads,
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
        tensor_pointers.check_made(high, wide, tile, picture)
        tensor_pointers.check_sums(into, added_at_once)
        self._library.convolve(
            tensor_pointers.of_window(window, high, wide, tile),
            self._panels("the filters", filters, tile[0] * tile[1], into, out),
            *tensor_pointers.of_ends(bias, added, picture),
            tensor_pointers.of_numbers("the memory", memory, FLOAT32, *memory.shape),
            numbers * memory.itemsize, window.stride(2), picture.stride(2), _row(added),
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
        into, out = window.shape[1], picture.shape[1]
        rows, columns = picture.shape[2:]
        kernel, panels = filters.shape[1], -(-out // CHANNELS_TOGETHER)
        read = (rows - 1) * stride + kernel, (columns - 1) * stride + kernel
        tensor_pointers.check_positive(stride=stride)
        tensor_pointers.check_sums(kernel * into, added_at_once)
        self._library.convolve_taps(
            tensor_pointers.of_picture(
                "the window", window, (filters.dtype,), into, *read, in_words=True
            ),
            self._panels("the filters", filters, panels, kernel * into, CHANNELS_TOGETHER, kernel),
            *tensor_pointers.of_ends(bias, added, picture),
            window.stride(2), picture.stride(2), _row(added), rows, columns, into, out,
            kernel, stride, added_at_once, window.dtype == torch.bfloat16,
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
        kernel, into = filters.shape[0], window.shape[1]
        batch, out, rows, columns = picture.shape
        _, to_next, to_row, to_column = picture.stride()
        read = (rows - 1) * stride + kernel, (columns - 1) * stride + kernel
        tensor_pointers.check_positive(stride=stride, batch=batch)
        self._library.convolve_dots(
            tensor_pointers.of_picture("the window", window, FLOAT32, into, *read),
            tensor_pointers.of_numbers("the filters", filters, FLOAT32, kernel, out, kernel * into),
            tensor_pointers.of_optional("the bias", bias, out),
            tensor_pointers.of_strided("the picture", picture, FLOAT32),
            window.stride(2), into, to_row, to_column, to_next, rows, columns, out, kernel, stride,
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
        tensor_pointers.check_made(high, wide, tile, picture)
        shape = tile[0] * tile[1], high * wide, picture.shape[1]
        self._library.to_picture(
            tensor_pointers.of_numbers("the products", products, FLOAT32, *shape),
            *tensor_pointers.of_ends(bias, added, picture),
            picture.stride(2), _row(added), high, wide, *picture.shape[2:], picture.shape[1], *tile,
            picture.dtype == torch.bfloat16,
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
        alike = channels, count, width
        if window.shape != rows.shape:
            raise ValueError(f"the window is {list(window.shape)}, and what it takes {list(rows.shape)}")
        self._library.to_window(
            tensor_pointers.of_picture("the rows", rows, EITHER, *alike),
            tensor_pointers.of_numbers("the scale", scale, FLOAT32, channels),
            tensor_pointers.of_numbers("the shift", shift, FLOAT32, channels),
            tensor_pointers.of_picture("the window", window, EITHER, *alike, is_written=True),
            rows.stride(2), window.stride(2), count, width, channels, rows.dtype == torch.bfloat16,
            window.dtype == torch.bfloat16, self._parallel, torch.get_num_threads(),
        )  # fmt: skip

    def measure(self, rows: torch.Tensor, at_once: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and biased variance of every channel, of ``at_once`` rows and the next ones: (parts, C), float32.

        Args:
            rows: (1, C, n, W), channels-last, float32 or bfloat16.
            at_once: Fewer in the last part.
        """
        _, channels, count, width = rows.shape
        tensor_pointers.check_positive(at_once=at_once)
        shape = -(-count // at_once), channels
        means, variances = (torch.empty(shape, dtype=torch.float32, device=_CPU) for _ in range(2))
        self._library.measure(
            tensor_pointers.of_picture("the rows", rows, EITHER, channels, count, width),
            tensor_pointers.of_numbers("the means", means, FLOAT32, *shape),
            tensor_pointers.of_numbers("the variances", variances, FLOAT32, *shape),
            rows.stride(2), count, width, channels, at_once, rows.dtype == torch.bfloat16,
            self._parallel, torch.get_num_threads(),
        )  # fmt: skip
        return means, variances

    def _panels(self, name: str, filters: torch.Tensor, count: int, into: int, out: int, *rest: int) -> int:
        """Address of filters that :meth:`pack` or, with the rows of a kernel, :meth:`pack_taps` has made."""
        dtype = filters.dtype
        if not self.multiplies(dtype, out):
            raise TypeError(f"{name}: no loops here for {dtype} and {out} channels")
        panels = () if rest else (out // CHANNELS_TOGETHER,)
        together = _side_by_side(dtype)
        shape = count, *rest, *panels, into // together, CHANNELS_TOGETHER, together
        return tensor_pointers.of_numbers(name, filters, (dtype,), *shape, in_words=True)


def takes_picture(picture: torch.Tensor) -> bool:
    """Whether compiled loops can read and write it."""
    _, to_channel, _, to_column = picture.stride()
    is_laid_out = to_channel == 1 and to_column == picture.shape[1]
    return is_laid_out and picture.is_cpu and picture.dtype in EITHER and not picture.is_neg()


def _panels(filters: torch.Tensor) -> torch.Tensor:
    """(n, C, O) → (n, panels, C, channels of a panel, 1); bfloat16 has two of C side by side, last."""
    count, into, _ = filters.shape
    together = _side_by_side(filters.dtype)
    panels = filters.reshape(count, into // together, together, -1, CHANNELS_TOGETHER)
    return panels.permute(0, 3, 1, 4, 2)


def _side_by_side(dtype: torch.dtype) -> int:
    return 2 if dtype == torch.bfloat16 else 1


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
    fits = like.is_cpu and like.dtype == torch.float32
    return _load() if fits and not any(count % LANES for count in channels) else None


@cache
def _load() -> Compiled | None:
    found = library.load()
    return None if found is None else Compiled(found)
