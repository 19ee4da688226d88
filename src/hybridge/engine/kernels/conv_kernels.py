"""Convolutions, compiled: Winograd's, alone or with the epilogue of a layer, direct ones, and dot products."""

from __future__ import annotations

import torch

from ..machine.cpu import shared_cache_bytes
from ..planning.conv_algorithms import K_BLOCK, PANEL_CHANNELS
from . import tensor_pointers
from .arguments import ConvDirectArgs, ConvDotArgs, ConvWinogradArgs, InputTransformArgs, OutputTransformArgs
from .gemm_kernels import GemmKernels, pad_to_panels, to_panels
from .tensor_pointers import EITHER, FLOAT32, OutputMoments

#: Tiles that a thread takes through a whole convolution at a time.  Measured, see benchmarks/LOG.md.
_TILE_BLOCK = 12

#: The part of the cores' shared cache that filters may take, so that they stay in it while they are read again.
_FILTERS_CACHE_PART = 0.3


class ConvKernels(GemmKernels):
    """Convolutions of one image, channels-last."""

    def input_transform(
        self,
        padded: torch.Tensor,
        transformed: torch.Tensor,
        tile_rows: int,
        tile_columns: int,
        tile: tuple[int, int],
    ) -> None:
        """Padded input (1, C, rows, columns), channels-last → transformed (products, tile_rows · tile_columns, C).

        Args:
            padded: What the tiles read, float32.
            transformed: float32 or bfloat16; is written.
            tile_rows: Tiles from the top to the bottom.
            tile_columns: Tiles from left to right.
            tile: Rows and columns that a tile reads: (6, 6), (6, 4) or (4, 4) for 3×3, (3, 3) after nearest ×2,
                (5, 5) with stride 2.
        """
        channels = padded.shape[1]
        shape = tile[0] * tile[1], tile_rows * tile_columns, channels
        self._library.input_transform(
            InputTransformArgs(
                input=tensor_pointers.tiled_input(padded, tile_rows, tile_columns, tile),
                transformed=tensor_pointers.contiguous("the transformed input", transformed, EITHER, *shape),
                parallel=self._parallel,
                input_row_stride=padded.stride(2),
                tile_rows=tile_rows,
                tile_columns=tile_columns,
                channels=channels,
                tile_height=tile[0],
                tile_width=tile[1],
                transformed_is_bfloat16=transformed.dtype == torch.bfloat16,
                threads=torch.get_num_threads(),
            )
        )

    def output_transform(
        self,
        products: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        output: torch.Tensor,
        tile_rows: int,
        tile_columns: int,
        tile: tuple[int, int],
        moments: OutputMoments | None = None,
    ) -> None:
        """Products (products, tile_rows · tile_columns, O) + bias + residual → output (1, O, rows, columns).

        What tiles compute beyond the output is dropped.

        Args:
            products: float32.
            bias: (O,), float32.
            residual: As large as the output, channels-last, float32 or bfloat16; may be the output.
            output: Channels-last, float32 or bfloat16; is written.
            tile_rows: Tiles from the top to the bottom.
            tile_columns: Tiles from left to right.
            tile: As for :meth:`input_transform`.
            moments: Where the output's moments are written, if they are wanted.
        """
        tensor_pointers.check_tiles(tile_rows, tile_columns, tile, output)
        shape = tile[0] * tile[1], tile_rows * tile_columns, output.shape[1]
        read = tensor_pointers.contiguous("the products", products, FLOAT32, *shape)
        of_bias, of_residual, of_output = tensor_pointers.epilogue(bias, residual, output)
        means, variances, written, row_block = tensor_pointers.moments(moments, output)
        self._library.output_transform(
            OutputTransformArgs(
                products=read,
                bias=of_bias,
                residual=of_residual,
                output=of_output,
                means=means,
                variances=variances,
                written=written,
                parallel=self._parallel,
                residual_row_stride=_row_stride(residual),
                output_row_stride=output.stride(2),
                tile_rows=tile_rows,
                tile_columns=tile_columns,
                output_rows=output.shape[2],
                output_columns=output.shape[3],
                channels=output.shape[1],
                row_block=row_block,
                tile_height=tile[0],
                tile_width=tile[1],
                residual_is_bfloat16=_is_bfloat16(residual),
                output_is_bfloat16=output.dtype == torch.bfloat16,
                threads=torch.get_num_threads(),
            )
        )

    def conv_winograd(
        self,
        padded: torch.Tensor,
        filters: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        output: torch.Tensor,
        workspace: torch.Tensor,
        tile_rows: int,
        tile_columns: int,
        tile: tuple[int, int],
        *,
        k_block: int = K_BLOCK,
        moments: OutputMoments | None = None,
    ) -> bool:
        """:meth:`input_transform`, :meth:`bmm` and :meth:`output_transform`, for a few tiles at a time.

        Those stay in a core's own cache.  The filters are read again for every few tiles, so they must stay in the
        cache that cores share.

        Args:
            padded: As for :meth:`input_transform`.
            filters: From :meth:`pack_filters`.
            bias: As for :meth:`output_transform`.
            residual: As for :meth:`output_transform`.
            output: As for :meth:`output_transform`.
            workspace: float32; is written.
            tile_rows: Tiles from the top to the bottom.
            tile_columns: Tiles from left to right.
            tile: As for :meth:`input_transform`.
            k_block: As for :meth:`bmm`.
            moments: As for :meth:`output_transform`.

        Returns:
            Whether it was done: not if the filters are too large for the cache, or the workspace too small for so
            many threads.  The caller then takes the three steps one by one.
        """
        threads = torch.get_num_threads()
        in_channels, out_channels = padded.shape[1], output.shape[1]
        of_a_thread = _TILE_BLOCK * len(filters) * (in_channels + out_channels)
        fits_cache = filters.nbytes <= _FILTERS_CACHE_PART * shared_cache_bytes()
        if filters.ndim == 3 or not fits_cache or threads * of_a_thread > workspace.numel():
            return False
        tensor_pointers.check_tiles(tile_rows, tile_columns, tile, output)
        tensor_pointers.check_k_block(in_channels, k_block)
        of_input = tensor_pointers.tiled_input(padded, tile_rows, tile_columns, tile)
        of_filters = self._panels(filters, tile[0] * tile[1], in_channels, out_channels)
        of_bias, of_residual, of_output = tensor_pointers.epilogue(bias, residual, output)
        means, variances, written, row_block = tensor_pointers.moments(moments, output)
        self._library.conv_winograd(
            ConvWinogradArgs(
                input=of_input,
                filters=of_filters,
                bias=of_bias,
                residual=of_residual,
                output=of_output,
                workspace=tensor_pointers.contiguous("the workspace", workspace, FLOAT32, *workspace.shape),
                means=means,
                variances=variances,
                written=written,
                parallel=self._parallel,
                workspace_bytes=of_a_thread * workspace.itemsize,
                input_row_stride=padded.stride(2),
                residual_row_stride=_row_stride(residual),
                output_row_stride=output.stride(2),
                tile_rows=tile_rows,
                tile_columns=tile_columns,
                output_rows=output.shape[2],
                output_columns=output.shape[3],
                in_channels=in_channels,
                out_channels=out_channels,
                row_block=row_block,
                products=len(filters),
                tile_block=_TILE_BLOCK,
                k_block=k_block,
                tile_height=tile[0],
                tile_width=tile[1],
                filters_are_bfloat16=filters.dtype == torch.bfloat16,
                residual_is_bfloat16=_is_bfloat16(residual),
                output_is_bfloat16=output.dtype == torch.bfloat16,
                threads=threads,
            )
        )
        return True

    def pack_direct_filters(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A convolution's weight (O, I, k, k) in the order in which :meth:`conv_direct` reads it.

        That is (panels, k, k · I, channels of a panel), the last panel padded with zeros, and in bfloat16 with two
        elements of k · I side by side.
        """
        rows = weight.to(dtype).permute(2, 3, 1, 0).flatten(1, 2)
        return to_panels(pad_to_panels(rows, len(weight))).transpose(0, 1).contiguous()

    def conv_direct(
        self,
        padded: torch.Tensor,
        filters: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        output: torch.Tensor,
        stride: int,
        *,
        k_block: int = K_BLOCK,
        moments: OutputMoments | None = None,
    ) -> None:
        """A convolution without a transform, for a dtype that :meth:`multiplies` has and multiples of 8 channels.

        Args:
            padded: (1, C, rows, columns), channels-last, float32 or bfloat16.
            filters: From :meth:`pack_direct_filters`, of the same dtype.
            bias: As for :meth:`output_transform`.
            residual: As for :meth:`output_transform`.
            output: As for :meth:`output_transform`.
            stride: Of the convolution, along rows and columns.
            k_block: As for :meth:`bmm`.
            moments: As for :meth:`output_transform`.
        """
        in_channels, out_channels = padded.shape[1], output.shape[1]
        rows, columns = output.shape[2:]
        kernel, panels = filters.shape[1], -(-out_channels // PANEL_CHANNELS)
        read = (rows - 1) * stride + kernel, (columns - 1) * stride + kernel
        tensor_pointers.check_positive(stride=stride)
        tensor_pointers.check_k_block(kernel * in_channels, k_block)
        of_input = tensor_pointers.image(
            "the padded input", padded, (filters.dtype,), in_channels, *read, in_words=True
        )
        of_filters = self._panels(filters, panels, kernel * in_channels, PANEL_CHANNELS, kernel)
        of_bias, of_residual, of_output = tensor_pointers.epilogue(bias, residual, output)
        means, variances, written, row_block = tensor_pointers.moments(moments, output)
        self._library.conv_direct(
            ConvDirectArgs(
                input=of_input,
                filters=of_filters,
                bias=of_bias,
                residual=of_residual,
                output=of_output,
                means=means,
                variances=variances,
                written=written,
                parallel=self._parallel,
                input_row_stride=padded.stride(2),
                residual_row_stride=_row_stride(residual),
                output_row_stride=output.stride(2),
                output_rows=rows,
                output_columns=columns,
                in_channels=in_channels,
                out_channels=out_channels,
                kernel=kernel,
                stride=stride,
                k_block=k_block,
                row_block=row_block,
                filters_are_bfloat16=filters.dtype == torch.bfloat16,
                residual_is_bfloat16=_is_bfloat16(residual),
                output_is_bfloat16=output.dtype == torch.bfloat16,
                threads=torch.get_num_threads(),
            )
        )

    def conv_dot(
        self,
        padded: torch.Tensor,
        filters: torch.Tensor,
        bias: torch.Tensor | None,
        output: torch.Tensor,
        stride: int,
    ) -> None:
        """A convolution with few output channels, each output a dot product; it reads multiples of 8 channels.

        Args:
            padded: (1, C, rows, columns), channels-last, float32.
            filters: (k, O, k · C), float32, contiguous.
            bias: (O,), float32.
            output: (1, O, rows, columns), with any strides, float32; is written.
            stride: Of the convolution, along rows and columns.
        """
        kernel, in_channels = filters.shape[0], padded.shape[1]
        batch, out_channels, rows, columns = output.shape
        _, channel_stride, row_stride, column_stride = output.stride()
        read = (rows - 1) * stride + kernel, (columns - 1) * stride + kernel
        tensor_pointers.check_positive(stride=stride, batch=batch)
        shape = kernel, out_channels, kernel * in_channels
        self._library.conv_dot(
            ConvDotArgs(
                input=tensor_pointers.image("the padded input", padded, FLOAT32, in_channels, *read),
                filters=tensor_pointers.contiguous("the filters", filters, FLOAT32, *shape),
                bias=tensor_pointers.optional("the bias", bias, out_channels),
                output=tensor_pointers.strided("the output", output, FLOAT32),
                parallel=self._parallel,
                input_row_stride=padded.stride(2),
                output_channel_stride=channel_stride,
                output_row_stride=row_stride,
                output_column_stride=column_stride,
                output_rows=rows,
                output_columns=columns,
                in_channels=in_channels,
                out_channels=out_channels,
                kernel=kernel,
                stride=stride,
                threads=torch.get_num_threads(),
            )
        )


def _row_stride(residual: torch.Tensor | None) -> int:
    return 0 if residual is None else residual.stride(2)


def _is_bfloat16(residual: torch.Tensor | None) -> bool:
    return residual is not None and residual.dtype == torch.bfloat16
