/* Tiles of a convolution: how the numbers that they read become what is multiplied, and products become a picture.

   Along one side a tile reads 6 or 4 numbers and makes 4 or 2, which is Winograd's, or reads 3 and makes 2, which is
   nearest ×2 and a convolution, or reads 5 and makes 2, which is one with stride 2.  Its side is called by what it
   reads.  The sums are the matrices of winograd.py, written out. */

#pragma once

#include "numbers.h"

#define MAKES(reads) ((reads) == 6 ? 4 : 2)
#define STEP(reads) ((reads) == 5 ? 4 : (reads) - 2) /* numbers from one tile to the next */

enum { MOST_READS = 6, MOST_MADE = 4, LANES_AT_ONCE = 64 };

typedef struct {
    const float *from, *bias;
    const void *added; /* to a picture */
    void *to;
    ptrdiff_t row, added_row; /* numbers from one row of a picture to the next */
    ptrdiff_t high, wide;     /* tiles */
    ptrdiff_t at_once;        /* tiles of a piece */
    ptrdiff_t product;        /* numbers from one product to the next */
    ptrdiff_t rows, columns;  /* of the picture that is made */
    ptrdiff_t channels;
    int tall, broad;                    /* what a tile reads */
    int is_bfloat16, added_is_bfloat16; /* what is made, and what is added */
    ptrdiff_t next;                     /* piece that no thread has taken */
} tiles;

/* --- along one side --- */

INLINE void into(int reads, const lanes *x, lanes *t) {
    if (reads == 6) { /* points 0, 1, -1, 1/2, -2, infinity */
        lanes odd = x[3] - x[1], even = x[4] - x[2];
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

INLINE void out_of(int reads, const lanes *p, lanes *y) {
    if (reads == 6) {
        lanes sum = p[1] + p[2], difference = p[1] - p[2];
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

   A product lies far from the next, and often at the same place of a page, so at most MOST_READS are walked along at a
   time: the places that a cache has for them are few.  COUNT tiles that lie side by side are one piece of every
   product, unless their channels are so many that they are taken in parts, for one tile. */

INLINE void spectra_of(const tiles *w, const float *tile, ptrdiff_t to, ptrdiff_t count, int tall, int broad,
                       int is_bfloat16) {
    const ptrdiff_t row = w->row, channels = w->channels, product = w->product;
    for (ptrdiff_t first = 0; first < channels; first += LANES * LANES_AT_ONCE) {
        const ptrdiff_t left = (channels - first) / LANES, deep = left < LANES_AT_ONCE ? left : LANES_AT_ONCE;
        lanes lines[MOST_READS][MOST_READS][LANES_AT_ONCE] __attribute__((aligned(64)));
        for (ptrdiff_t n = 0; n < count; n++)
            for (int j = 0; j < broad; j++) {
                const float *from = tile + (n * STEP(broad) + j) * channels + first;
                for (ptrdiff_t k = 0; k < deep; k++) {
                    lanes x[MOST_READS], t[MOST_READS];
                    UNROLLED for (int i = 0; i < tall; i++)
                        x[i] = *(const lanes *)(from + i * row + k * LANES);
                    into(tall, x, t);
                    UNROLLED for (int i = 0; i < tall; i++) lines[i][j][n * deep + k] = t[i];
                }
            }
        for (int i = 0; i < tall; i++) {
            const ptrdiff_t line = to + i * broad * product + first;
            for (ptrdiff_t k = 0; k < count * deep; k++) {
                lanes x[MOST_READS], t[MOST_READS];
                UNROLLED for (int j = 0; j < broad; j++) x[j] = lines[i][j][k];
                into(broad, x, t);
                UNROLLED for (int j = 0; j < broad; j++)
                    write_at(w->to, line + j * product + k * LANES, t[j], is_bfloat16);
            }
        }
    }
}

/* Tiles whose first row and column those of the picture are. */
INLINE void pictures_of(const tiles *w, const float *from, ptrdiff_t row, ptrdiff_t column, ptrdiff_t count, int tall,
                        int broad) {
    const ptrdiff_t channels = w->channels, product = w->product;
    const ptrdiff_t rows = w->rows - row, columns = w->columns - column;
    const float *biases = w->bias;
    for (ptrdiff_t first = 0; first < channels; first += LANES * LANES_AT_ONCE) {
        const ptrdiff_t left = (channels - first) / LANES, deep = left < LANES_AT_ONCE ? left : LANES_AT_ONCE;
        lanes lines[MOST_MADE][MOST_READS][LANES_AT_ONCE] __attribute__((aligned(64)));
        for (int i = 0; i < tall; i++) {
            const float *line = from + i * broad * product + first;
            for (ptrdiff_t k = 0; k < count * deep; k++) {
                lanes p[MOST_READS], y[MOST_MADE];
                UNROLLED for (int j = 0; j < broad; j++)
                    p[j] = *(const lanes *)(line + j * product + k * LANES);
                out_of(broad, p, y);
                for (int j = 0; j < MAKES(broad); j++) lines[j][i][k] = y[j];
            }
        }
        for (ptrdiff_t right = 0; right < count * MAKES(broad) && right < columns; right++) {
            const ptrdiff_t n = right / MAKES(broad), j = right % MAKES(broad);
            const ptrdiff_t aside = (column + right) * channels + first;
            for (ptrdiff_t k = 0; k < deep; k++) {
                lanes p[MOST_READS], y[MOST_MADE], bias = {0};
                if (biases) bias = *(const lanes *)(biases + first + k * LANES);
                UNROLLED for (int i = 0; i < tall; i++) p[i] = lines[j][i][n * deep + k];
                out_of(tall, p, y);
                for (int i = 0; i < MAKES(tall); i++) {
                    const ptrdiff_t below = row + i, at = aside + k * LANES;
                    lanes added = {0};
                    if (w->added && i < rows)
                        read_at(&added, w->added, below * w->added_row + at, w->added_is_bfloat16);
                    if (i < rows) write_at(w->to, below * w->row + at, y[i] + bias + added, w->is_bfloat16);
                }
            }
        }
    }
}

/* --- all tiles --- */

/* Takes tiles [first, end) of a row of tiles; false when none is left. */
INLINE int take(tiles *w, ptrdiff_t *high, ptrdiff_t *first, ptrdiff_t *end) {
    const ptrdiff_t pieces = (w->wide + w->at_once - 1) / w->at_once;
    const ptrdiff_t piece = __atomic_fetch_add(&w->next, 1, __ATOMIC_RELAXED);
    *high = piece / pieces;
    *first = piece % pieces * w->at_once;
    *end = least(*first + w->at_once, w->wide);
    return *high < w->high;
}

/* With its sides as constants, so that the loops above unroll. */
#define FOR_ITS_SIDES(w, TILE)                 \
    {                                          \
        if ((w)->tall == 6 && (w)->broad == 6) \
            TILE(6, 6);                        \
        else if ((w)->tall == 6)               \
            TILE(6, 4);                        \
        else if ((w)->tall == 5)               \
            TILE(5, 5);                        \
        else if ((w)->tall == 4)               \
            TILE(4, 4);                        \
        else                                   \
            TILE(3, 3);                        \
    }

/* Tiles that are taken together: their channels are one piece of every product. */
INLINE ptrdiff_t together(const tiles *w, ptrdiff_t left) {
    const ptrdiff_t most = LANES * LANES_AT_ONCE / w->channels;
    return most < 1 ? 1 : most < left ? most : left;
}

/* Of tiles [n, end) of a row of tiles, whose first is TO. */
INLINE void spectra_between(const tiles *w, ptrdiff_t h, ptrdiff_t n, ptrdiff_t end, ptrdiff_t to) {
    for (ptrdiff_t count; n < end; n += count, to += count * w->channels) {
        const float *tile = w->from + h * STEP(w->tall) * w->row + n * STEP(w->broad) * w->channels;
        count = together(w, end - n);
#define TILE(tall, broad) spectra_of(w, tile, to, count, tall, broad, 0)
#define NARROW(tall, broad) spectra_of(w, tile, to, count, tall, broad, 1)
        if (w->is_bfloat16)
            FOR_ITS_SIDES(w, NARROW)
        else
            FOR_ITS_SIDES(w, TILE)
#undef TILE
#undef NARROW
    }
}

/* The same for tiles whose first is FROM. */
INLINE void pictures_between(const tiles *w, ptrdiff_t h, ptrdiff_t n, ptrdiff_t end, const float *from) {
    for (ptrdiff_t count; n < end; n += count, from += count * w->channels) {
        const ptrdiff_t row = h * MAKES(w->tall), column = n * MAKES(w->broad);
        count = together(w, end - n);
#define TILE(tall, broad) pictures_of(w, from, row, column, count, tall, broad)
        FOR_ITS_SIDES(w, TILE)
#undef TILE
    }
}
