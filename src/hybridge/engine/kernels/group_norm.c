/* Group norm in two halves: the statistics of channels, and scale, shift and SiLU once these are known. */

#include "moments.h"

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

struct channel_moments {
    const struct channel_moments_args *args;
    ptrdiff_t next; /* task that no thread has taken: a block of rows and a few channels of it */
};

MULTIVERSIONED static void channel_moments_worker(void *state) {
    struct channel_moments *w = state;
    const struct channel_moments_args a = *w->args;
    const ptrdiff_t task_channels = MOMENTS_VECTORS * LANES;
    const ptrdiff_t tasks_across = (a.channels + task_channels - 1) / task_channels;
    const ptrdiff_t row_blocks = (a.rows + a.row_block - 1) / a.row_block;
    ptrdiff_t task;
    while ((task = take_next(&w->next, 1)) < row_blocks * tasks_across)
        moments_of_channels(&a, task / tasks_across, task % tasks_across * task_channels);
}

void channel_moments(const struct channel_moments_args *args) {
    struct channel_moments w = {.args = args};
    run_parallel(channel_moments_worker, &w, args->parallel, args->threads);
}
