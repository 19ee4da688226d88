/* Batched matrix products: output = input · filters, with the filters packed in panels of PANEL output channels.

   A product is blocked as in BLIS.  The sums of a block, up to MAX_ROWS positions by a panel or half of one, stay in
   registers along the depth, which is the input channels.  One step of the depth reads a word of 32 bits: a float, or a
   pair of bfloat16 for processors that multiply pairs.

   Sums of k_block products are added up in pairs, and those in pairs again, so that long sums round less. */

#pragma once

#include "simd.h"

enum {
    MAX_ROWS = 12,         /* positions whose sums, two vectors each, fit into 32 registers of AVX-512 */
    TASK_POSITIONS = 192,  /* of a task, at most */
    MAX_PARTIAL_SUMS = 24, /* levels of the pairwise sum; tensor_pointers.py checks that the depth needs no more */
    PREFETCH_MAX_DEPTH = 256, /* rows so short that the next ones fit into a cache beside those that are read */
    CACHE_LINE_WORDS = 16,
};

struct gemm {
    const uint32_t *input;   /* (batch, positions, depth) */
    const uint32_t *filters; /* (batch, panels, depth, PANEL) */
    float *output;           /* (batch, positions, out_channels) */
    ptrdiff_t batch, positions, depth, out_channels;
    ptrdiff_t k_block;
    ptrdiff_t next; /* task that no thread has taken */
};

/* Some positions and some output channels of one product. */
struct gemm_task {
    ptrdiff_t n; /* which product */
    ptrdiff_t first_row, end_row, first_column, end_column;
};

/* Returns 0 when no task is left. */
INLINE int take_gemm_task(struct gemm *w, struct gemm_task *task) {
    const ptrdiff_t columns = PANELS_PER_TASK * PANEL, across = (w->out_channels + columns - 1) / columns;
    const ptrdiff_t down = (w->positions + TASK_POSITIONS - 1) / TASK_POSITIONS;
    const ptrdiff_t rows = (w->positions / down + MAX_ROWS) / MAX_ROWS * MAX_ROWS;
    const ptrdiff_t next = take_next(&w->next, 1);
    task->n = next / across / down;
    task->first_row = min(next / across % down * rows, w->positions);
    task->end_row = min(task->first_row + rows, w->positions);
    task->first_column = next % across * columns;
    task->end_column = min(task->first_column + columns, w->out_channels);
    return task->n < w->batch;
}
