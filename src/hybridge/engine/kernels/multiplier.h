/* Products on one kind of processor: products.c includes this once for each, and defines before

   NAME(what)    what is made here
   TARGET        the processor's instructions
   SUMS          a vector of sums, floats
   FACTORS       a vector of what is multiplied, as long
   READ(at)      what is broadcast to FACTORS, from four bytes
   AND(s, x, y)  the sums s and the products of x and y
   TOGETHER      numbers in four bytes
   MOST          positions of a block, whose sums, two vectors each, fit into the registers. */

/* The products of COUNT positions, a constant, STEP from one to the next, with two vectors of output channels.  Sums of
   AT_ONCE are added up two by two, and those two by two again. */
__attribute__((target(TARGET), always_inline)) static inline void NAME(block)(
    const uint32_t *from, ptrdiff_t step, ptrdiff_t depth, ptrdiff_t at_once, const uint32_t *panel, const float *added, float *to,
    ptrdiff_t out, const int count) {
    enum { WIDTH = sizeof(SUMS) / sizeof(float) };
    SUMS sums[MOST][2], waiting[MOST_SUMS][MOST][2];
    UNROLLED for (int i = 0; i < count; i++) for (int j = 0; j < 2; j++)
        __builtin_prefetch(to + i * out + j * WIDTH, 1);
    ptrdiff_t k = 0, done = 0;
    do {
        UNROLLED for (int i = 0; i < count; i++) sums[i][0] = sums[i][1] = (SUMS){0};
        for (const ptrdiff_t end = least(k + at_once, depth); k < end; k++) {
            if (depth <= SHORT && k % LINE == 0) UNROLLED for (int i = 0; i < count; i++)
                __builtin_prefetch(from + (i + count) * step + k);
            const FACTORS *y = (const FACTORS *)(panel + k * PANEL);
            const FACTORS first = y[0], second = y[1];
            UNROLLED for (int i = 0; i < count; i++) {
                const FACTORS x = READ(from + i * step + k) + (FACTORS){0};
                sums[i][0] = AND(sums[i][0], x, first);
                sums[i][1] = AND(sums[i][1], x, second);
            }
        }
        int level = 0; /* as many of AT_ONCE wait there as this power of two */
        for (; done >> level & 1 || (k == depth && done >> level); level++)
            if (done >> level & 1) UNROLLED for (int i = 0; i < count; i++) for (int j = 0; j < 2; j++)
                sums[i][j] += waiting[level][i][j];
        if (k < depth) UNROLLED for (int i = 0; i < count; i++) for (int j = 0; j < 2; j++)
            waiting[level][i][j] = sums[i][j];
        done++;
    } while (k < depth);
    UNROLLED for (int i = 0; i < count; i++) for (int j = 0; j < 2; j++) {
        const ptrdiff_t at = i * out + j * WIDTH;
        *(SUMS *)(to + at) = (added ? *(const SUMS *)(added + at) : (SUMS){0}) + sums[i][j];
    }
}

/* Of COUNT positions, in blocks: of MOST, then of four, then of one. */
__attribute__((target(TARGET), always_inline)) static inline void NAME(rows)(
    const uint32_t *from, ptrdiff_t step, ptrdiff_t depth, ptrdiff_t at_once, const uint32_t *panel,
    const float *added, float *to, ptrdiff_t out, ptrdiff_t count) {
    for (ptrdiff_t some; count > 0; count -= some, from += some * step, to += some * out) {
        some = count >= MOST ? MOST : count >= 4 ? 4 : 1;
        if (some == MOST)
            NAME(block)(from, step, depth, at_once, panel, added, to, out, MOST);
        else if (some == 4)
            NAME(block)(from, step, depth, at_once, panel, added, to, out, 4);
        else
            NAME(block)(from, step, depth, at_once, panel, added, to, out, 1);
        if (added) added += some * out;
    }
}

/* Of a piece. */
__attribute__((target(TARGET), always_inline)) static inline void NAME(blocks)(const products *w, piece p) {
    const ptrdiff_t depth = w->depth, out = w->out, first = p.n * w->positions + p.row;
    for (ptrdiff_t column = p.column; column < p.last_column; column += 2 * sizeof(SUMS) / sizeof(float)) {
        const ptrdiff_t panel = p.n * out + column / PANEL * PANEL, at = first * out + column;
        NAME(rows)(w->from + first * depth, depth, depth, w->at_once, w->filters + panel * depth + column % PANEL, 0,
                   w->to + at, out, p.last_row - p.row);
    }
}

__attribute__((target(TARGET))) static void NAME(products)(void *what) {
    products *w = what;
    piece p;
    while (take_piece(w, &p)) NAME(blocks)(w, p);
}

__attribute__((target(TARGET))) static void NAME(tiles)(void *what) {
    convolution *w = what;
    char *memory = w->memory + __atomic_fetch_add(&w->threads, 1, __ATOMIC_RELAXED) * w->nbytes;
    tiles source = w->source, target = w->target;
    products some = w->products;
    ptrdiff_t h, n, end;
    source.to = memory;
    some.from = (const uint32_t *)memory;
    some.to = (float *)memory + some.count * source.at_once * some.depth;
    while (take(&w->source, &h, &n, &end)) {
        some.positions = end - n;
        source.product = (end - n) * source.channels;
        target.product = (end - n) * target.channels;
        spectra_between(&source, h, n, end, 0);
        for (ptrdiff_t p = 0; p < some.count; p++)
            NAME(blocks)(&some, (piece){.n = p, .last_row = end - n, .last_column = some.out});
        pictures_between(&target, h, n, end, some.to);
    }
}

__attribute__((target(TARGET))) static void NAME(taps)(void *what) {
    taps *w = what;
    float sums[TAPS_AT_ONCE * PANEL] __attribute__((aligned(64)));
    ptrdiff_t h, n, end;
    while (take(&w->target, &h, &n, &end)) {
        const uint32_t *from = w->from + h * w->stride * w->row + n * w->stride * w->column, *filters = w->filters;
        for (ptrdiff_t first = 0; first < w->target.channels; first += PANEL) {
            for (ptrdiff_t i = 0; i < w->kernel; i++, filters += w->depth * PANEL)
                NAME(rows)(from + i * w->row, w->stride * w->column, w->depth, w->at_once, filters, i ? sums : 0, sums,
                           PANEL, end - n);
            picture_of(&w->target, sums, h, n, end, first);
        }
    }
}

#include "attention.h"

#undef NAME
#undef TARGET
#undef SUMS
#undef FACTORS
#undef READ
#undef AND
#undef TOGETHER
#undef MOST
