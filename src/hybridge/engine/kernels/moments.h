/* Mean and variance of every channel of an image, for each block of rows by itself. */

#pragma once

#include "simd.h"

enum { MOMENTS_VECTORS = 4, POSITION_BLOCK = 64 };

/* The moments of an image that a kernel writes.  Whoever writes the last position of a block computes the block's, so
   that this takes no parallel region, nor a wait at its end, of its own. */
struct output_moments {
    struct channel_moments_args of; /* without means: nothing is computed */
    ptrdiff_t *written;             /* positions of each block that are written */
};

/* Channels from FIRST_CHANNEL on, so many VECTORS of them.  What is squared is the distance from the first position, so
   that little is lost of a variance of values far from zero.  Sums are made of POSITION_BLOCK positions at a time. */
INLINE void moments_of_vectors(const struct channel_moments_args *a, ptrdiff_t row_block, ptrdiff_t first_channel,
                               const int vectors) {
    const ptrdiff_t first_row = row_block * a->row_block, end_row = min(first_row + a->row_block, a->rows);
    const ptrdiff_t count = (end_row - first_row) * a->columns;
    f32x8 origin[MOMENTS_VECTORS], sum[MOMENTS_VECTORS], sum_of_squares[MOMENTS_VECTORS];
    for (int i = 0; i < vectors; i++) {
        load(&origin[i], a->input, first_row * a->input_row_stride + first_channel + i * LANES, a->input_is_bfloat16);
        sum[i] = sum_of_squares[i] = (f32x8){0};
    }
    for (ptrdiff_t row = first_row; row < end_row; row++)
        for (ptrdiff_t column = 0, end; column < a->columns; column = end) {
            f32x8 block_sum[MOMENTS_VECTORS] = {{0}}, block_squares[MOMENTS_VECTORS] = {{0}};
            end = min(column + POSITION_BLOCK, a->columns);
            for (ptrdiff_t n = column; n < end; n++)
                for (int i = 0; i < vectors; i++) {
                    const ptrdiff_t at = row * a->input_row_stride + n * a->channels + first_channel + i * LANES;
                    f32x8 x;
                    load(&x, a->input, at, a->input_is_bfloat16);
                    x -= origin[i];
                    block_sum[i] += x;
                    block_squares[i] += x * x;
                }
            for (int i = 0; i < vectors; i++) sum[i] += block_sum[i], sum_of_squares[i] += block_squares[i];
        }
    for (int i = 0; i < vectors; i++) {
        const ptrdiff_t at = row_block * a->channels + first_channel + i * LANES;
        const f32x8 mean = sum[i] / (float)count;
        *(f32x8 *)(a->means + at) = origin[i] + mean;
        *(f32x8 *)(a->variances + at) = sum_of_squares[i] / (float)count - mean * mean;
    }
}

/* Channels from FIRST on, as many as are taken together. */
INLINE void moments_of_channels(const struct channel_moments_args *a, ptrdiff_t row_block, ptrdiff_t first) {
    const ptrdiff_t vectors = (a->channels - first) / LANES;
    if (vectors >= MOMENTS_VECTORS)
        moments_of_vectors(a, row_block, first, MOMENTS_VECTORS);
    else
        for (ptrdiff_t n = 0; n < vectors; n++) moments_of_vectors(a, row_block, first + n * LANES, 1);
}

/* Call it after COLUMNS positions of each of the rows [FIRST, END) were written. */
INLINE void count_written(const struct output_moments *m, ptrdiff_t first, ptrdiff_t end, ptrdiff_t columns) {
    const struct channel_moments_args *a = &m->of;
    if (!a->means) return;
    for (ptrdiff_t block = first / a->row_block; block * a->row_block < end; block++) {
        const ptrdiff_t from = block * a->row_block, to = min(from + a->row_block, a->rows);
        const ptrdiff_t positions = ((to < end ? to : end) - (from > first ? from : first)) * columns;
        /* Also makes visible here what the other threads of this block have written. */
        const ptrdiff_t written = __atomic_add_fetch(&m->written[block], positions, __ATOMIC_ACQ_REL);
        if (written == (to - from) * a->columns)
            for (ptrdiff_t c = 0; c < a->channels; c += MOMENTS_VECTORS * LANES) moments_of_channels(a, block, c);
    }
}

/* The moments of the output of a kernel with these arguments, whose output has so many channels. */
#define OUTPUT_MOMENTS(args, output_channels)                                                                     \
    {                                                                                                             \
        .of = {.input = (args)->output, .means = (args)->means, .variances = (args)->variances,                   \
               .input_row_stride = (args)->output_row_stride, .rows = (args)->output_rows,                        \
               .columns = (args)->output_columns, .channels = (output_channels), .row_block = (args)->row_block,  \
               .input_is_bfloat16 = (args)->output_is_bfloat16},                                                  \
        .written = (args)->written,                                                                               \
    }
