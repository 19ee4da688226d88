/* A Winograd convolution in one pass: a thread takes a few tiles through the input transform, the products and the
   output transform, in a workspace that stays in its core's cache. */

#include "gemm.h"
#include "winograd_tiles.h"

struct conv_winograd {
    struct winograd_tiles input_tiles, output_tiles;
    struct gemm gemm;
    char *workspace;
    ptrdiff_t workspace_bytes; /* for a thread */
    ptrdiff_t threads;         /* that have theirs */
};

#define KERNELS_FILE "conv_winograd_kernels.h"
#include "for_each_isa.h"

void conv_winograd(const struct conv_winograd_args *args) {
    const int is_bfloat16 = args->filters_are_bfloat16;
    struct conv_winograd w = {
        .input_tiles = {.input = args->input, .image_row_stride = args->input_row_stride, .rows = args->tile_rows,
                        .columns = args->tile_columns, .channels = args->in_channels, .block = args->tile_block,
                        .tile_height = args->tile_height, .tile_width = args->tile_width,
                        .output_is_bfloat16 = is_bfloat16},
        .output_tiles = {.bias = args->bias, .residual = args->residual, .output = args->output,
                         .image_row_stride = args->output_row_stride, .residual_row_stride = args->residual_row_stride,
                         .rows = args->tile_rows, .columns = args->tile_columns, .image_rows = args->output_rows,
                         .image_columns = args->output_columns, .channels = args->out_channels,
                         .tile_height = args->tile_height, .tile_width = args->tile_width,
                         .output_is_bfloat16 = args->output_is_bfloat16,
                         .residual_is_bfloat16 = args->residual_is_bfloat16,
                         .moments = OUTPUT_MOMENTS(args, args->out_channels)},
        .gemm = {.filters = args->filters, .batch = args->products,
                 .depth = is_bfloat16 ? args->in_channels / 2 : args->in_channels, .out_channels = args->out_channels,
                 .k_block = args->k_block},
        .workspace = args->workspace, .workspace_bytes = args->workspace_bytes,
    };
    run_for_isa(is_bfloat16, &w, args->parallel, args->threads);
}
