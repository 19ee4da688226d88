/* A convolution with few outputs, as a model's last is: a dot product for each, with what a row of its kernel reads. */

#include "numbers.h"

enum { OUT_AT_ONCE = 8, COLUMNS_AT_ONCE = 4 };

typedef struct {
    const float *from, *filters, *bias; /* a window, and (rows of a kernel, outputs, DEPTH) */
    float *to;
    ptrdiff_t from_row, from_column;      /* numbers from what an output reads to what the next does */
    ptrdiff_t line;                       /* from a row of the window to the next */
    ptrdiff_t to_row, to_column, to_next; /* the same of what is made, and from one output channel to the next */
    ptrdiff_t rows, columns, kernel, depth;
    ptrdiff_t out;
    ptrdiff_t next; /* row that no thread has taken */
} dots;

/* COUNT columns from COLUMN on, of OUT channels from FIRST on, constants: so many sums that none waits for another. */
INLINE void dots_of(const dots *w, ptrdiff_t row, ptrdiff_t column, ptrdiff_t first, const int count, const int out) {
    lanes sums[COLUMNS_AT_ONCE][OUT_AT_ONCE] = {{{0}}};
    for (ptrdiff_t i = 0; i < w->kernel; i++) {
        const float *from = w->from + row * w->from_row + column * w->from_column + i * w->line;
        const float *filters = w->filters + (i * w->out + first) * w->depth;
        lanes line[COLUMNS_AT_ONCE][OUT_AT_ONCE] = {{{0}}};
        for (ptrdiff_t k = 0; k < w->depth; k += LANES) UNROLLED for (int n = 0; n < count; n++) {
            const lanes x = *(const lanes *)(from + n * w->from_column + k);
            UNROLLED for (int c = 0; c < out; c++) line[n][c] += x * *(const lanes *)(filters + c * w->depth + k);
        }
        UNROLLED for (int n = 0; n < count; n++) UNROLLED for (int c = 0; c < out; c++) sums[n][c] += line[n][c];
    }
    UNROLLED for (int n = 0; n < count; n++) UNROLLED for (int c = 0; c < out; c++) {
        const lanes s = sums[n][c];
        const float sum = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
        const ptrdiff_t at = row * w->to_row + (column + n) * w->to_column + (first + c) * w->to_next;
        w->to[at] = sum + (w->bias ? w->bias[first + c] : 0);
    }
}

INLINE void dots_of_row(const dots *w, ptrdiff_t row, ptrdiff_t first, const int count, const int out) {
    ptrdiff_t column = 0;
    for (; column + count <= w->columns; column += count) dots_of(w, row, column, first, count, out);
    for (; column < w->columns; column++) dots_of(w, row, column, first, 1, out);
}

FOR_THIS_CPU static void rows_of_dots(void *what) {
    dots *w = what;
    ptrdiff_t row;
    while ((row = __atomic_fetch_add(&w->next, 1, __ATOMIC_RELAXED)) < w->rows)
        for (ptrdiff_t first = 0, left; (left = w->out - first) > 0;) {
            const ptrdiff_t some = left >= 8 ? 8 : left >= 4 ? 4 : left;
            switch (some) {
            case 8: dots_of_row(w, row, first, COLUMNS_AT_ONCE / 2, 8); break;
            case 4: dots_of_row(w, row, first, COLUMNS_AT_ONCE, 4); break;
            case 3: dots_of_row(w, row, first, COLUMNS_AT_ONCE, 3); break;
            case 2: dots_of_row(w, row, first, COLUMNS_AT_ONCE, 2); break;
            default: dots_of_row(w, row, first, COLUMNS_AT_ONCE, 1);
            }
            first += some;
        }
}

void convolve_dots(const float *window, const float *filters, const float *bias, float *picture, ptrdiff_t line,
                   ptrdiff_t channels, ptrdiff_t to_row, ptrdiff_t to_column, ptrdiff_t to_next, ptrdiff_t rows,
                   ptrdiff_t columns, ptrdiff_t out, ptrdiff_t kernel, ptrdiff_t stride, parallel run,
                   unsigned threads) {
    dots w = {.from = window, .filters = filters, .bias = bias, .to = picture, .from_row = stride * line,
              .from_column = stride * channels, .line = line, .to_row = to_row, .to_column = to_column,
              .to_next = to_next, .rows = rows, .columns = columns, .kernel = kernel, .depth = kernel * channels,
              .out = out};
    in_all_threads(rows_of_dots, &w, run, threads);
}
