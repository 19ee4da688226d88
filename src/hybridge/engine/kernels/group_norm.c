/* Two halves of a group norm: what it does to rows, with SiLU behind it, and the statistics that it needs. */

#include "numbers.h"

/* --- normalised and activated --- */

typedef struct {
    const void *from;
    const float *scale, *shift;
    void *to;
    ptrdiff_t from_row, to_row, rows, columns, channels;
    int is_bfloat16, to_is_bfloat16;
    ptrdiff_t next;
} strip;

/* x / (1 + e^-x). */
INLINE void silu(lanes *x) {
    lanes y = *x;
    at_most(&y, 87.0f);
    y = -y;
    at_most(&y, 88.0f);
    exponential(&y);
    *x = *x / (1.0f + y);
}

FOR_THIS_CPU static void windows(void *what) {
    strip *s = what;
    ptrdiff_t row;
    while ((row = __atomic_fetch_add(&s->next, 1, __ATOMIC_RELAXED)) < s->rows)
        for (ptrdiff_t column = 0; column < s->columns; column++) {
            const ptrdiff_t from = row * s->from_row + column * s->channels;
            const ptrdiff_t to = row * s->to_row + column * s->channels;
            for (ptrdiff_t c = 0; c < s->channels; c += LANES) {
                lanes x;
                read_at(&x, s->from, from + c, s->is_bfloat16);
                x = x * *(const lanes *)(s->scale + c) + *(const lanes *)(s->shift + c);
                silu(&x);
                write_at(s->to, to + c, x, s->to_is_bfloat16);
            }
        }
}

void to_window(const void *rows, const float *scale, const float *shift, void *window, ptrdiff_t from_row,
               ptrdiff_t to_row, ptrdiff_t count, ptrdiff_t columns, ptrdiff_t channels, int is_bfloat16,
               int to_is_bfloat16, parallel run, unsigned threads) {
    strip s = {.from = rows, .scale = scale, .shift = shift, .to = window, .from_row = from_row, .to_row = to_row,
               .rows = count, .columns = columns, .channels = channels, .is_bfloat16 = is_bfloat16,
               .to_is_bfloat16 = to_is_bfloat16};
    in_all_threads(windows, &s, run, threads);
}

/* --- measured --- */

enum { VECTORS_AT_ONCE = 4, ADDED_POSITIONS = 64 };

typedef struct {
    const void *from;
    float *means, *variances;
    ptrdiff_t row, rows, columns, channels;
    ptrdiff_t at_once; /* rows whose mean and variance are taken together */
    int is_bfloat16;
    ptrdiff_t next; /* channels of such rows that no thread has taken */
} picture_measured;

/* Channels from FIRST on, so many VECTORS of them.  What is squared is the distance from the first position, so that
   little is lost of a variance of values far from zero; and sums are short. */
INLINE void measure_channels(const picture_measured *w, ptrdiff_t part, ptrdiff_t first, const int vectors) {
    const ptrdiff_t end = least((part + 1) * w->at_once, w->rows), count = (end - part * w->at_once) * w->columns;
    lanes origin[VECTORS_AT_ONCE], sum[VECTORS_AT_ONCE], squares[VECTORS_AT_ONCE];
    for (int i = 0; i < vectors; i++) {
        read_at(&origin[i], w->from, part * w->at_once * w->row + first + i * LANES, w->is_bfloat16);
        sum[i] = squares[i] = (lanes){0};
    }
    for (ptrdiff_t row = part * w->at_once; row < end; row++)
        for (ptrdiff_t column = 0, last; column < w->columns; column = last) {
            lanes added[VECTORS_AT_ONCE] = {{0}}, more[VECTORS_AT_ONCE] = {{0}};
            last = least(column + ADDED_POSITIONS, w->columns);
            for (ptrdiff_t n = column; n < last; n++)
                for (int i = 0; i < vectors; i++) {
                    lanes x;
                    read_at(&x, w->from, row * w->row + n * w->channels + first + i * LANES, w->is_bfloat16);
                    x -= origin[i];
                    added[i] += x;
                    more[i] += x * x;
                }
            for (int i = 0; i < vectors; i++) sum[i] += added[i], squares[i] += more[i];
        }
    for (int i = 0; i < vectors; i++) {
        const ptrdiff_t at = part * w->channels + first + i * LANES;
        const lanes mean = sum[i] / (float)count;
        *(lanes *)(w->means + at) = origin[i] + mean;
        *(lanes *)(w->variances + at) = squares[i] / (float)count - mean * mean;
    }
}

FOR_THIS_CPU static void measured(void *what) {
    picture_measured *w = what;
    const ptrdiff_t channels = VECTORS_AT_ONCE * LANES, across = (w->channels + channels - 1) / channels;
    const ptrdiff_t parts = (w->rows + w->at_once - 1) / w->at_once;
    ptrdiff_t piece;
    while ((piece = __atomic_fetch_add(&w->next, 1, __ATOMIC_RELAXED)) < parts * across) {
        const ptrdiff_t first = piece % across * channels, left = (w->channels - first) / LANES;
        if (left >= VECTORS_AT_ONCE)
            measure_channels(w, piece / across, first, VECTORS_AT_ONCE);
        else
            for (ptrdiff_t n = 0; n < left; n++) measure_channels(w, piece / across, first + n * LANES, 1);
    }
}

void measure(const void *rows, float *means, float *variances, ptrdiff_t row, ptrdiff_t count, ptrdiff_t columns,
             ptrdiff_t channels, ptrdiff_t at_once, int is_bfloat16, parallel run, unsigned threads) {
    picture_measured w = {.from = rows, .means = means, .variances = variances, .row = row, .rows = count,
                          .columns = columns, .channels = channels, .at_once = at_once, .is_bfloat16 = is_bfloat16};
    in_all_threads(measured, &w, run, threads);
}
