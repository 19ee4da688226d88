/* Group norm in two halves: the statistics of channels, and scale, shift and SiLU once these are known. */

#include "simd.h"

/* --- scale, shift and SiLU --- */

struct scale_shift_silu {
    const struct scale_shift_silu_args *args;
    ptrdiff_t next; /* row that no thread has taken */
};

/* x / (1 + e^-x). */
INLINE void silu(f32x8 *x) {
    f32x8 y = *x;
    clamp_max(&y, 87.0f);
    y = -y;
    clamp_max(&y, 88.0f);
    exp_f32x8(&y);
    *x = *x / (1.0f + y);
}

MULTIVERSIONED static void scale_shift_silu_worker(void *state) {
    struct scale_shift_silu *w = state;
    const struct scale_shift_silu_args a = *w->args;
    ptrdiff_t row;
    while ((row = take_next(&w->next, 1)) < a.rows)
        for (ptrdiff_t column = 0; column < a.columns; column++) {
            const ptrdiff_t from = row * a.input_row_stride + column * a.channels;
            const ptrdiff_t to = row * a.output_row_stride + column * a.channels;
            for (ptrdiff_t c = 0; c < a.channels; c += LANES) {
                f32x8 x;
                load(&x, a.input, from + c, a.input_is_bfloat16);
                x = x * *(const f32x8 *)(a.scale + c) + *(const f32x8 *)(a.shift + c);
                silu(&x);
                store(a.output, to + c, x, a.output_is_bfloat16);
            }
        }
}

void scale_shift_silu(const struct scale_shift_silu_args *args) {
    struct scale_shift_silu w = {.args = args};
    run_parallel(scale_shift_silu_worker, &w, args->parallel, args->threads);
}

/* --- mean and variance of every channel --- */

enum { MAX_VECTORS = 4, POSITION_BLOCK = 64 };

struct channel_moments {
    const struct channel_moments_args *args;
    ptrdiff_t next; /* task that no thread has taken: a block of rows and a few channels of it */
};

/* Channels from FIRST_CHANNEL on, so many VECTORS of them.  What is squared is the distance from the first position, so
   that little is lost of a variance of values far from zero.  Sums are made of POSITION_BLOCK positions at a time. */
INLINE void moments_of_vectors(const struct channel_moments_args *a, ptrdiff_t row_block, ptrdiff_t first_channel,
                               const int vectors) {
    const ptrdiff_t first_row = row_block * a->row_block, end_row = min(first_row + a->row_block, a->rows);
    const ptrdiff_t count = (end_row - first_row) * a->columns;
    f32x8 origin[MAX_VECTORS], sum[MAX_VECTORS], sum_of_squares[MAX_VECTORS];
    for (int i = 0; i < vectors; i++) {
        load(&origin[i], a->input, first_row * a->input_row_stride + first_channel + i * LANES, a->input_is_bfloat16);
        sum[i] = sum_of_squares[i] = (f32x8){0};
    }
    for (ptrdiff_t row = first_row; row < end_row; row++)
        for (ptrdiff_t column = 0, end; column < a->columns; column = end) {
            f32x8 block_sum[MAX_VECTORS] = {{0}}, block_squares[MAX_VECTORS] = {{0}};
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

MULTIVERSIONED static void channel_moments_worker(void *state) {
    struct channel_moments *w = state;
    const struct channel_moments_args a = *w->args;
    const ptrdiff_t task_channels = MAX_VECTORS * LANES;
    const ptrdiff_t tasks_across = (a.channels + task_channels - 1) / task_channels;
    const ptrdiff_t row_blocks = (a.rows + a.row_block - 1) / a.row_block;
    ptrdiff_t task;
    while ((task = take_next(&w->next, 1)) < row_blocks * tasks_across) {
        const ptrdiff_t first = task % tasks_across * task_channels, vectors = (a.channels - first) / LANES;
        if (vectors >= MAX_VECTORS)
            moments_of_vectors(&a, task / tasks_across, first, MAX_VECTORS);
        else
            for (ptrdiff_t n = 0; n < vectors; n++) moments_of_vectors(&a, task / tasks_across, first + n * LANES, 1);
    }
}

void channel_moments(const struct channel_moments_args *args) {
    struct channel_moments w = {.args = args};
    run_parallel(channel_moments_worker, &w, args->parallel, args->threads);
}
