/* A convolution with few output channels, as a model's last one is: every output is a dot product. */

#include "simd.h"

enum { MAX_OUT_CHANNELS = 8, MAX_COLUMNS = 4 };

struct conv_dot {
    const struct conv_dot_args *args;
    ptrdiff_t next; /* row that no thread has taken */
};

/* COLUMNS outputs of a row from COLUMN on, in OUT channels from FIRST on.  Both are constants: there are so many
   independent sums that none waits for another. */
INLINE void dot_block(const struct conv_dot_args *a, ptrdiff_t row, ptrdiff_t column, ptrdiff_t first,
                      const int columns, const int out) {
    const ptrdiff_t depth = a->kernel * a->in_channels; /* elements that a row of the kernel reads, side by side */
    const ptrdiff_t row_step = a->stride * a->input_row_stride, column_step = a->stride * a->in_channels;
    f32x8 sums[MAX_COLUMNS][MAX_OUT_CHANNELS] = {{{0}}};
    for (ptrdiff_t i = 0; i < a->kernel; i++) {
        const float *input = a->input + row * row_step + column * column_step + i * a->input_row_stride;
        const float *filters = a->filters + (i * a->out_channels + first) * depth;
        f32x8 row_sums[MAX_COLUMNS][MAX_OUT_CHANNELS] = {{{0}}};
        for (ptrdiff_t k = 0; k < depth; k += LANES) UNROLL for (int n = 0; n < columns; n++) {
            const f32x8 x = *(const f32x8 *)(input + n * column_step + k);
            UNROLL for (int c = 0; c < out; c++) row_sums[n][c] += x * *(const f32x8 *)(filters + c * depth + k);
        }
        UNROLL for (int n = 0; n < columns; n++) UNROLL for (int c = 0; c < out; c++) sums[n][c] += row_sums[n][c];
    }
    UNROLL for (int n = 0; n < columns; n++) UNROLL for (int c = 0; c < out; c++) {
        const f32x8 s = sums[n][c];
        const float sum = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
        const ptrdiff_t at = row * a->output_row_stride + (column + n) * a->output_column_stride +
                             (first + c) * a->output_channel_stride;
        a->output[at] = sum + (a->bias ? a->bias[first + c] : 0);
    }
}

/* A row of outputs, COLUMNS at a time. */
INLINE void dot_row(const struct conv_dot_args *a, ptrdiff_t row, ptrdiff_t first, const int columns, const int out) {
    ptrdiff_t column = 0;
    for (; column + columns <= a->output_columns; column += columns) dot_block(a, row, column, first, columns, out);
    for (; column < a->output_columns; column++) dot_block(a, row, column, first, 1, out);
}

MULTIVERSIONED static void conv_dot_worker(void *state) {
    struct conv_dot *w = state;
    const struct conv_dot_args a = *w->args;
    ptrdiff_t row;
    while ((row = take_next(&w->next, 1)) < a.output_rows)
        for (ptrdiff_t first = 0, left; (left = a.out_channels - first) > 0;) {
            const ptrdiff_t out = left >= 8 ? 8 : left >= 4 ? 4 : left;
            switch (out) {
            case 8: dot_row(&a, row, first, MAX_COLUMNS / 2, 8); break;
            case 4: dot_row(&a, row, first, MAX_COLUMNS, 4); break;
            case 3: dot_row(&a, row, first, MAX_COLUMNS, 3); break;
            case 2: dot_row(&a, row, first, MAX_COLUMNS, 2); break;
            default: dot_row(&a, row, first, MAX_COLUMNS, 1);
            }
            first += out;
        }
}

void conv_dot(const struct conv_dot_args *args) {
    struct conv_dot w = {.args = args};
    run_parallel(conv_dot_worker, &w, args->parallel, args->threads);
}
