/* The tiles of a Winograd convolution: the transforms of what they read, and of their products.

   Along one side, a tile reads 6 or 4 elements of the input and computes 4 or 2 of the output, for Winograd's F(4, 3)
   and F(2, 3); or it reads 3 and computes 2, for a convolution after nearest upsampling by two; or it reads 5 and
   computes 2, for stride 2.  A tile's height and width are what it reads.  planning/winograd.py has the same sums as
   matrices. */

#pragma once

#include "moments.h"

#define OUTPUTS(reads) ((reads) == 6 ? 4 : 2)
#define STEP(reads) ((reads) == 5 ? 4 : (reads) - 2) /* elements of the input from one tile to the next */

enum { MAX_TILE_INPUTS = 6, MAX_TILE_OUTPUTS = 4, MAX_VECTORS = 64 };

struct winograd_tiles {
    const float *input;   /* an image, or the products */
    const float *bias;    /* added to the output, as the residual is; both may be NULL */
    const void *residual;
    void *output;         /* what is multiplied, or an image */
    ptrdiff_t image_row_stride, residual_row_stride;
    ptrdiff_t rows, columns;             /* how many tiles there are, down and across */
    ptrdiff_t block;                     /* tiles of a row that a thread takes at a time */
    ptrdiff_t product_stride;            /* elements from one of a tile's products to the next */
    ptrdiff_t image_rows, image_columns; /* of the output image */
    ptrdiff_t channels;
    int tile_height, tile_width;
    int output_is_bfloat16, residual_is_bfloat16;
    struct output_moments moments; /* of an output image */
    ptrdiff_t next; /* block that no thread has taken */
};

/* --- along one side of a tile --- */

INLINE void input_transform_1d(int reads, const f32x8 *x, f32x8 *t) {
    if (reads == 6) { /* points 0, 1, -1, 1/2, -2, infinity */
        f32x8 odd = x[3] - x[1], even = x[4] - x[2];
        t[0] = x[0] - 2 * x[2] + x[4] + 1.5f * odd;
        t[1] = x[4] - x[1] + 0.5f * x[2] + 2.5f * x[3];
        t[2] = x[4] + x[1] - 2.5f * x[2] + 0.5f * x[3];
        t[3] = even + 2 * odd;
        t[4] = even - 0.5f * odd;
        t[5] = x[5] + x[1] - 2 * x[3] + 1.5f * even;
    } else if (reads == 4) { /* points 0, 1, -1, infinity */
        t[0] = x[2] - x[0];
        t[1] = x[1] + x[2];
        t[2] = x[2] - x[1];
        t[3] = x[3] - x[1];
    } else if (reads == 5) {
        t[0] = x[0] - x[2];
        t[1] = x[2];
        t[2] = x[4] - x[2];
        t[3] = x[1];
        t[4] = x[3];
    } else {
        t[0] = x[1];
        t[1] = x[0] - x[1];
        t[2] = x[2] - x[1];
    }
}

INLINE void output_transform_1d(int reads, const f32x8 *p, f32x8 *y) {
    if (reads == 6) {
        f32x8 sum = p[1] + p[2], difference = p[1] - p[2];
        y[0] = p[0] + sum + p[3] + p[4];
        y[1] = difference + 0.5f * p[3] - 2 * p[4];
        y[2] = sum + 0.25f * p[3] + 4 * p[4];
        y[3] = difference + 0.125f * p[3] - 8 * p[4] + p[5];
    } else if (reads == 4) {
        y[0] = p[0] + p[1] + p[2];
        y[1] = p[1] - p[2] + p[3];
    } else if (reads == 5) {
        y[0] = p[0] + p[1] + p[3];
        y[1] = p[1] + p[2] + p[4];
    } else {
        y[0] = p[0] + p[1];
        y[1] = p[0] + p[2];
    }
}

/* --- tiles: along one side into LINES, and from there along the other ---

   The products of a tile lie far apart, often at the same offset of a page, and a cache has few places for such an
   offset: so only MAX_TILE_INPUTS of them are read or written at a time.  COUNT neighbouring tiles are handled
   together, unless their channels are more than MAX_VECTORS vectors; then it is one tile, a part of its channels at a
   time. */

/* INPUT is where the first tile begins in the image, TO where its part of the first product begins. */
INLINE void transform_input(const struct winograd_tiles *w, const float *input, ptrdiff_t to, ptrdiff_t count,
                            int height, int width, int is_bfloat16) {
    const ptrdiff_t row_stride = w->image_row_stride, channels = w->channels, product_stride = w->product_stride;
    for (ptrdiff_t first = 0; first < channels; first += LANES * MAX_VECTORS) {
        const ptrdiff_t vectors = min((channels - first) / LANES, MAX_VECTORS);
        f32x8 lines[MAX_TILE_INPUTS][MAX_TILE_INPUTS][MAX_VECTORS] __attribute__((aligned(64)));
        for (ptrdiff_t n = 0; n < count; n++)
            for (int j = 0; j < width; j++) {
                const float *from = input + (n * STEP(width) + j) * channels + first;
                for (ptrdiff_t k = 0; k < vectors; k++) {
                    f32x8 x[MAX_TILE_INPUTS], t[MAX_TILE_INPUTS];
                    UNROLL for (int i = 0; i < height; i++)
                        x[i] = *(const f32x8 *)(from + i * row_stride + k * LANES);
                    input_transform_1d(height, x, t);
                    UNROLL for (int i = 0; i < height; i++) lines[i][j][n * vectors + k] = t[i];
                }
            }
        for (int i = 0; i < height; i++) {
            const ptrdiff_t line = to + i * width * product_stride + first;
            for (ptrdiff_t k = 0; k < count * vectors; k++) {
                f32x8 x[MAX_TILE_INPUTS], t[MAX_TILE_INPUTS];
                UNROLL for (int j = 0; j < width; j++) x[j] = lines[i][j][k];
                input_transform_1d(width, x, t);
                UNROLL for (int j = 0; j < width; j++)
                    store(w->output, line + j * product_stride + k * LANES, t[j], is_bfloat16);
            }
        }
    }
}

/* PRODUCTS is where the first tile's part of the first product begins; ROW and COLUMN are where its output begins. */
INLINE void transform_output(const struct winograd_tiles *w, const float *products, ptrdiff_t row, ptrdiff_t column,
                             ptrdiff_t count, int height, int width) {
    const ptrdiff_t channels = w->channels, product_stride = w->product_stride;
    const ptrdiff_t rows = w->image_rows - row, columns = w->image_columns - column;
    const float *biases = w->bias;
    for (ptrdiff_t first = 0; first < channels; first += LANES * MAX_VECTORS) {
        const ptrdiff_t vectors = min((channels - first) / LANES, MAX_VECTORS);
        f32x8 lines[MAX_TILE_OUTPUTS][MAX_TILE_INPUTS][MAX_VECTORS] __attribute__((aligned(64)));
        for (int i = 0; i < height; i++) {
            const float *line = products + i * width * product_stride + first;
            for (ptrdiff_t k = 0; k < count * vectors; k++) {
                f32x8 p[MAX_TILE_INPUTS], y[MAX_TILE_OUTPUTS];
                UNROLL for (int j = 0; j < width; j++)
                    p[j] = *(const f32x8 *)(line + j * product_stride + k * LANES);
                output_transform_1d(width, p, y);
                for (int j = 0; j < OUTPUTS(width); j++) lines[j][i][k] = y[j];
            }
        }
        for (ptrdiff_t right = 0; right < count * OUTPUTS(width) && right < columns; right++) {
            const ptrdiff_t n = right / OUTPUTS(width), j = right % OUTPUTS(width);
            const ptrdiff_t at_column = (column + right) * channels + first;
            for (ptrdiff_t k = 0; k < vectors; k++) {
                f32x8 p[MAX_TILE_INPUTS], y[MAX_TILE_OUTPUTS], bias = {0};
                if (biases) bias = *(const f32x8 *)(biases + first + k * LANES);
                UNROLL for (int i = 0; i < height; i++) p[i] = lines[j][i][n * vectors + k];
                output_transform_1d(height, p, y);
                for (int i = 0; i < OUTPUTS(height); i++) {
                    const ptrdiff_t below = row + i, at = at_column + k * LANES;
                    f32x8 residual = {0};
                    if (w->residual && i < rows)
                        load(&residual, w->residual, below * w->residual_row_stride + at, w->residual_is_bfloat16);
                    if (i < rows)
                        store(w->output, below * w->image_row_stride + at, y[i] + bias + residual,
                              w->output_is_bfloat16);
                }
            }
        }
    }
}

/* --- all tiles --- */

/* Takes tiles [first, end) of a row of tiles; returns 0 when none is left. */
INLINE int take_tiles(struct winograd_tiles *w, ptrdiff_t *row, ptrdiff_t *first, ptrdiff_t *end) {
    const ptrdiff_t blocks = (w->columns + w->block - 1) / w->block, next = take_next(&w->next, 1);
    *row = next / blocks;
    *first = next % blocks * w->block;
    *end = min(*first + w->block, w->columns);
    return *row < w->rows;
}

/* Calls TRANSFORM(height, width) with constants, so that the loops above are unrolled. */
#define FOR_TILE_SIZE(w, TRANSFORM)                    \
    {                                                  \
        if ((w)->tile_height == 6 && (w)->tile_width == 6)\
            TRANSFORM(6, 6);                           \
        else if ((w)->tile_height == 6)                \
            TRANSFORM(6, 4);                           \
        else if ((w)->tile_height == 5)                \
            TRANSFORM(5, 5);                           \
        else if ((w)->tile_height == 4)                \
            TRANSFORM(4, 4);                           \
        else                                           \
            TRANSFORM(3, 3);                           \
    }

/* Of LEFT neighbouring tiles, how many are handled together. */
INLINE ptrdiff_t tiles_together(const struct winograd_tiles *w, ptrdiff_t left) {
    const ptrdiff_t most = LANES * MAX_VECTORS / w->channels;
    return most < 1 ? 1 : most < left ? most : left;
}

/* Transforms tiles [n, end) of a row of tiles; TO is where the first one's part of the first product begins. */
INLINE void transform_input_tiles(const struct winograd_tiles *w, ptrdiff_t row, ptrdiff_t n, ptrdiff_t end,
                                  ptrdiff_t to) {
    for (ptrdiff_t count; n < end; n += count, to += count * w->channels) {
        const float *input =
            w->input + row * STEP(w->tile_height) * w->image_row_stride + n * STEP(w->tile_width) * w->channels;
        count = tiles_together(w, end - n);
#define TO_FLOAT32(height, width) transform_input(w, input, to, count, height, width, 0)
#define TO_BFLOAT16(height, width) transform_input(w, input, to, count, height, width, 1)
        if (w->output_is_bfloat16)
            FOR_TILE_SIZE(w, TO_BFLOAT16)
        else
            FOR_TILE_SIZE(w, TO_FLOAT32)
#undef TO_FLOAT32
#undef TO_BFLOAT16
    }
}

/* Transforms the products of tiles [n, end); PRODUCTS is where the first one's part of the first product begins. */
INLINE void transform_output_tiles(const struct winograd_tiles *w, ptrdiff_t row, ptrdiff_t n, ptrdiff_t end,
                                   const float *products) {
    const ptrdiff_t first_row = row * OUTPUTS(w->tile_height), first_column = n * OUTPUTS(w->tile_width);
    const ptrdiff_t end_row = min(first_row + OUTPUTS(w->tile_height), w->image_rows);
    const ptrdiff_t end_column = min(end * OUTPUTS(w->tile_width), w->image_columns);
    for (ptrdiff_t count; n < end; n += count, products += count * w->channels) {
        const ptrdiff_t output_row = row * OUTPUTS(w->tile_height), output_column = n * OUTPUTS(w->tile_width);
        count = tiles_together(w, end - n);
#define TO_IMAGE(height, width) transform_output(w, products, output_row, output_column, count, height, width)
        FOR_TILE_SIZE(w, TO_IMAGE)
#undef TO_IMAGE
    }
    if (first_row < end_row && first_column < end_column)
        count_written(&w->moments, first_row, end_row, end_column - first_column);
}
