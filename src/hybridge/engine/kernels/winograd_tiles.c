/* The two transforms of a Winograd convolution by themselves, for all tiles of a strip; conv_winograd.c takes a few
   tiles through both. */

#include "winograd_tiles.h"

enum { TILE_BLOCK = 16 };

MULTIVERSIONED static void input_transform_worker(void *state) {
    struct winograd_tiles *w = state;
    ptrdiff_t row, first, end;
    while (take_tiles(w, &row, &first, &end))
        transform_input_tiles(w, row, first, end, (row * w->columns + first) * w->channels);
}

MULTIVERSIONED static void output_transform_worker(void *state) {
    struct winograd_tiles *w = state;
    ptrdiff_t row, first, end;
    while (take_tiles(w, &row, &first, &end))
        transform_output_tiles(w, row, first, end, w->input + (row * w->columns + first) * w->channels);
}

void input_transform(const struct input_transform_args *args) {
    struct winograd_tiles w = {
        .input = args->input, .output = args->transformed, .image_row_stride = args->input_row_stride,
        .rows = args->tile_rows, .columns = args->tile_columns, .channels = args->channels, .block = TILE_BLOCK,
        .product_stride = args->tile_rows * args->tile_columns * args->channels, .tile_height = args->tile_height,
        .tile_width = args->tile_width, .output_is_bfloat16 = args->transformed_is_bfloat16,
    };
    run_parallel(input_transform_worker, &w, args->parallel, args->threads);
}

void output_transform(const struct output_transform_args *args) {
    struct winograd_tiles w = {
        .input = args->products, .bias = args->bias, .residual = args->residual, .output = args->output,
        .image_row_stride = args->output_row_stride, .residual_row_stride = args->residual_row_stride,
        .rows = args->tile_rows, .columns = args->tile_columns, .image_rows = args->output_rows,
        .image_columns = args->output_columns, .channels = args->channels, .block = TILE_BLOCK,
        .product_stride = args->tile_rows * args->tile_columns * args->channels, .tile_height = args->tile_height,
        .tile_width = args->tile_width, .output_is_bfloat16 = args->output_is_bfloat16,
        .residual_is_bfloat16 = args->residual_is_bfloat16, .moments = OUTPUT_MOMENTS(args, args->channels),
    };
    run_parallel(output_transform_worker, &w, args->parallel, args->threads);
}
