/* Loops over pictures for which torch takes several passes or more time; compiled.py says what goes in and out.

   Along one side a tile reads 6 or 4 numbers and makes 4 or 2, which is Winograd's, or reads 3 and makes 2, which is
   nearest ×2 and a convolution, or reads 5 and makes 2, which is one with stride 2.  Its side is called by what it
   reads.  The sums are the matrices of winograd.py, written out.

   Pictures lie channels-last, so the innermost loop runs over channels, eight at a time.  Nothing is allocated. */

#include <stddef.h>
#include <stdint.h>

#define MAKES(reads) ((reads) == 6 ? 4 : 2)
#define STEP(reads) ((reads) == 5 ? 4 : (reads) - 2) /* numbers from one tile to the next */

enum { LANES = 8, TILES_AT_ONCE = 16, MOST_READS = 6, MOST_MADE = 4, LANES_AT_ONCE = 64 };

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

/* The checksum of all files, which whoever compiles them gives: compiled.py takes no loops of others. */
#ifndef MADE_FROM
#define MADE_FROM 0u
#endif
const uint32_t made_from = MADE_FROM;

/* GOMP_parallel: calls a function in every thread of a team. */
typedef void (*parallel)(void (*)(void *), void *, unsigned threads, unsigned flags);

/* What processors are compiled for.  Their levels have fused multiplication, which AVX2 and AVX-512 alone do not. */
#if __GNUC__ >= 12
#define AVX2 "arch=x86-64-v3"
#define AVX512 "arch=x86-64-v4"
#define HAS_AVX512 __builtin_cpu_supports("x86-64-v4")
#else
#define AVX2 "avx2"
#define AVX512 "avx512f"
#define HAS_AVX512 __builtin_cpu_supports("avx512f")
#endif

/* Compiled several times over; the loader takes the one for this processor. */
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__)
#define FOR_THIS_CPU __attribute__((target_clones(AVX512, AVX2, "default")))
#else
#define FOR_THIS_CPU
#endif
#define UNROLLED _Pragma("GCC unroll 12")
#define INLINE static inline __attribute__((always_inline))

/* --- numbers ------------------------------------------------------------------------------------------------- */

INLINE ptrdiff_t least(ptrdiff_t x, ptrdiff_t y) { return x < y ? x : y; }

INLINE void at_most(lanes *x, float bound) {
    const words beyond = (words)(*x > (lanes){0} + bound);
    *x = (lanes)((beyond & (words)((lanes){0} + bound)) | (~beyond & (words)*x));
}

/* e^x for x from -88 to 88, as 2^n times Cephes' polynomial of the rest: right to the last bits.  NaN stays NaN. */
INLINE void exponential(lanes *to) {
    const float rounding = 12582912.0f; /* 1.5 · 2^23: adding it leaves no bits for a fraction */
    lanes x = *to, n = x * 1.44269504f + rounding;
    const words power = (words)n << 23;
    n -= rounding;
    x = x - n * 0.693359375f + n * 2.12194440e-4f;
    lanes p = 1.9875691500e-4f * x + 1.3981999507e-3f;
    p = p * x + 8.3334519073e-3f;
    p = p * x + 4.1665795894e-2f;
    p = p * x + 1.6666665459e-1f;
    p = p * x + 5.0000001201e-1f;
    p = p * x * x + x + 1.0f;
    *to = (lanes)((words)p + power);
}

/* Of x from -infinity to 0, which is no smaller than e^-87. */
INLINE void exponential_of_negative(lanes *x) {
    *x = -*x;
    at_most(x, 87.0f);
    *x = -*x;
    exponential(x);
}

/* bfloat16: to the nearest, and of two as near to the even. */
INLINE void round_bits(words *bits) { *bits = (*bits + 0x7fff + (*bits >> 16 & 1)) >> 16; }

INLINE halves rounded(lanes x) {
    words bits = (words)x;
    round_bits(&bits);
    return __builtin_convertvector(bits, halves);
}

INLINE void read_at(lanes *x, const void *from, ptrdiff_t at, int is_bfloat16) {
    if (is_bfloat16)
        *x = (lanes)(__builtin_convertvector(*(const halves *)((const uint16_t *)from + at), words) << 16);
    else
        *x = *(const lanes *)((const float *)from + at);
}

INLINE void write_at(void *to, ptrdiff_t at, lanes x, int is_bfloat16) {
    if (is_bfloat16)
        *(halves *)((uint16_t *)to + at) = rounded(x);
    else
        *(lanes *)((float *)to + at) = x;
}

typedef struct {
    const float *from, *bias;
    const void *added; /* to a picture */
    void *to;
    ptrdiff_t row, added_row; /* numbers from one row of a picture to the next */
    ptrdiff_t high, wide;    /* tiles */
    ptrdiff_t at_once;       /* tiles of a piece */
    ptrdiff_t product;       /* numbers from one product to the next */
    ptrdiff_t rows, columns; /* of the picture that is made */
    ptrdiff_t channels;
    int tall, broad;         /* what a tile reads */
    int is_bfloat16, added_is_bfloat16; /* what is made */
    ptrdiff_t next;          /* piece that no thread has taken */
} tiles;

/* --- along one side ------------------------------------------------------------------------------------------- */

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

/* --- tiles: along one side into LINES, and from there along the other ---------------------------------------------

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

/* --- all tiles ------------------------------------------------------------------------------------------------ */

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

FOR_THIS_CPU static void spectra(void *what) {
    tiles *w = what;
    ptrdiff_t h, n, end;
    while (take(w, &h, &n, &end)) spectra_between(w, h, n, end, (h * w->wide + n) * w->channels);
}

FOR_THIS_CPU static void pictures(void *what) {
    tiles *w = what;
    ptrdiff_t h, n, end;
    while (take(w, &h, &n, &end)) pictures_between(w, h, n, end, w->from + (h * w->wide + n) * w->channels);
}

static void in_all_threads(void (*does)(void *), void *w, parallel run, unsigned threads) {
    if (threads > 1)
        run(does, w, threads, 0);
    else
        does(w);
}

void to_spectrum(const float *window, void *spectrum, ptrdiff_t row, ptrdiff_t high, ptrdiff_t wide,
                 ptrdiff_t channels, int tall, int broad, int is_bfloat16, parallel run, unsigned threads) {
    tiles w = {.from = window, .to = spectrum, .row = row, .high = high, .wide = wide, .channels = channels,
               .at_once = TILES_AT_ONCE, .product = high * wide * channels, .tall = tall, .broad = broad,
               .is_bfloat16 = is_bfloat16};
    in_all_threads(spectra, &w, run, threads);
}

void to_picture(const float *products, const float *bias, const void *added, void *picture, ptrdiff_t row,
                ptrdiff_t added_row, ptrdiff_t high, ptrdiff_t wide, ptrdiff_t rows, ptrdiff_t columns,
                ptrdiff_t channels, int tall, int broad, int is_bfloat16, int added_is_bfloat16, parallel run,
                unsigned threads) {
    tiles w = {.from = products, .bias = bias, .added = added, .to = picture, .row = row, .added_row = added_row,
               .high = high, .wide = wide, .rows = rows, .columns = columns, .channels = channels,
               .at_once = TILES_AT_ONCE, .product = high * wide * channels, .tall = tall, .broad = broad,
               .is_bfloat16 = is_bfloat16, .added_is_bfloat16 = added_is_bfloat16};
    in_all_threads(pictures, &w, run, threads);
}

/* --- products -------------------------------------------------------------------------------------------------

   Filters come in panels of PANEL output channels.  The sums of a block, a few positions by a panel or by half of one,
   stay in registers on the way along the channels.  What is read there has four bytes: a float, or, for processors that
   multiply these at once, a pair of bfloat16. */

enum { PANEL = 32, PANELS_AT_ONCE = 4, POSITIONS_AT_ONCE = 192, MOST_SUMS = 24 };

/* Of rows so short, what is read next can come into a cache beside what is read. */
enum { SHORT = 256, LINE = 16 };

typedef struct {
    const uint32_t *from, *filters;
    const float *added;
    float *to;
    ptrdiff_t count, positions, depth, out;
    ptrdiff_t at_once; /* products that are added one after another */
    ptrdiff_t next;    /* piece that no thread has taken */
} products;

/* A convolution of a few tiles at a time, in a thread's own memory. */
typedef struct {
    tiles source, target;
    products products;
    char *memory;
    ptrdiff_t nbytes;  /* of it, for a thread */
    ptrdiff_t threads; /* that have theirs */
} convolution;

/* --- attention -------------------------------------------------------------------------------------------------

   Of softmax(queries · keys) · values neither scores nor weights exist but for a block of keys and a panel of queries:
   a running maximum and a running sum for each query (Milakov and Gimelshein, "Online normalizer calculation for
   softmax", 2018).  A block has DEEP times four bytes of every channel's values. */

enum { DEEP = 128 };

typedef struct {
    const float *queries;          /* (count, channels) */
    const uint32_t *keys, *values; /* (positions, channels) and blocks of (channels, positions of a block) */
    uint32_t *panels;              /* (count / PANEL, channels, PANEL) */
    float *mixed, *to;             /* the same, and (count, channels) */
    float scale;
    ptrdiff_t count, positions, channels;
    ptrdiff_t at_once; /* products that are added one after another */
    ptrdiff_t next;    /* panel that no thread has taken */
} attention;

/* Of a panel's queries, so far: the largest score, and the sum of e^(score - largest). */
typedef struct {
    float largest[PANEL], sum[PANEL];
} softmax;

/* False when none is left. */
INLINE int take_panels(attention *w, ptrdiff_t *first, ptrdiff_t *last) {
    const ptrdiff_t panels = (w->count + PANEL - 1) / PANEL;
    *first = __atomic_fetch_add(&w->next, PANELS_AT_ONCE, __ATOMIC_RELAXED);
    *last = least(*first + PANELS_AT_ONCE, panels);
    return *first < panels;
}

/* A panel, scaled; beyond the last query zeros. */
INLINE softmax queries_of(const attention *w, ptrdiff_t n, int together) {
    softmax unseen = {.sum = {0}};
    const ptrdiff_t size = w->channels / together * PANEL;
    for (ptrdiff_t q = 0; q < PANEL; q++) {
        unseen.largest[q] = -1e30f;
        const float *from = w->queries + (n * PANEL + q) * w->channels;
        const int is_there = n * PANEL + q < w->count;
        uint32_t *to = w->panels + n * size + q;
        for (ptrdiff_t c = 0; c < w->channels; c += LANES) {
            words bits = {0};
            if (is_there) bits = (words)(*(const lanes *)(from + c) * w->scale);
            if (together == 2) round_bits(&bits);
            for (int i = 0; i < LANES; i += together)
                to[(c + i) / together * PANEL] = together == 1 ? bits[i] : bits[i] | bits[i + 1] << 16;
        }
    }
    return unseen;
}

/* e^(score - largest) in place of COUNT keys' scores, zeros up to MOST; what was mixed before is scaled alike. */
INLINE void weights_of(float *scores, ptrdiff_t count, ptrdiff_t most, softmax *state, float *mixed,
                       ptrdiff_t channels, int together) {
    float scales[PANEL] __attribute__((aligned(64)));
    int is_scaled = 0;
    for (ptrdiff_t q = 0; q < PANEL; q += LANES) {
        lanes *largest = (lanes *)(state->largest + q), *sum = (lanes *)(state->sum + q), now = *largest;
        for (ptrdiff_t k = 0; k < count; k++) {
            const lanes x = *(const lanes *)(scores + k * PANEL + q);
            const words above = (words)(x > now);
            now = (lanes)((above & (words)x) | (~above & (words)now));
        }
        lanes scale = *largest - now;
        for (int i = 0; i < LANES; i++) is_scaled |= scale[i] != 0;
        exponential_of_negative(&scale);
        *(lanes *)(scales + q) = scale;
        *largest = now;
        lanes added = {0};
        for (ptrdiff_t k = 0; k < most; k += together) {
            words bits = {0};
            for (int i = 0; i < together && k + i < count; i++) {
                lanes x = *(const lanes *)(scores + (k + i) * PANEL + q) - now;
                exponential_of_negative(&x);
                added += x;
                words part = (words)x;
                if (together == 2) round_bits(&part);
                bits |= part << 16 * i;
            }
            *(words *)(scores + k / together * PANEL + q) = bits;
        }
        *sum = *sum * scale + added;
    }
    for (ptrdiff_t at = 0; is_scaled && at < channels * PANEL; at += PANEL)
        for (ptrdiff_t q = 0; q < PANEL; q += LANES)
            *(lanes *)(mixed + at + q) *= *(const lanes *)(scales + q);
}

/* A panel's result. */
INLINE void mixed_of(const attention *w, ptrdiff_t n, const softmax *state) {
    const ptrdiff_t queries = least(PANEL, w->count - n * PANEL);
    const float *from = w->mixed + n * w->channels * PANEL;
    for (ptrdiff_t q = 0; q < queries; q++) {
        const float part = 1 / state->sum[q];
        float *to = w->to + (n * PANEL + q) * w->channels;
        for (ptrdiff_t c = 0; c < w->channels; c++) to[c] = from[c * PANEL + q] * part;
    }
}

/* Rows of values, (count, channels), to their places in blocks. */
typedef struct {
    const float *from;
    void *to;
    ptrdiff_t first, count, channels, block;
    int is_bfloat16;
    ptrdiff_t next; /* channels that no thread has taken */
} arrival;

FOR_THIS_CPU static void arrivals(void *what) {
    arrival *w = what;
    ptrdiff_t c;
    while ((c = __atomic_fetch_add(&w->next, LANES, __ATOMIC_RELAXED)) < w->channels)
        for (ptrdiff_t n = 0; n < w->count; n++) {
            const ptrdiff_t position = w->first + n, block = position / w->block;
            const ptrdiff_t at = (block * w->channels + c) * w->block + position % w->block;
            const lanes x = *(const lanes *)(w->from + n * w->channels + c);
            words bits = (words)x;
            round_bits(&bits);
            for (int i = 0; i < LANES; i++)
                if (w->is_bfloat16)
                    ((uint16_t *)w->to)[at + i * w->block] = bits[i];
                else
                    ((float *)w->to)[at + i * w->block] = x[i];
        }
}

#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && __GNUC__ >= 11
#include <immintrin.h>

typedef float lanes16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t words16 __attribute__((vector_size(64), aligned(4), may_alias));

/* Some positions and some output channels of one product. */
typedef struct {
    ptrdiff_t n, row, last_row, column, last_column;
} piece;

/* False when none is left. */
INLINE int take_piece(products *w, piece *p) {
    const ptrdiff_t columns = PANELS_AT_ONCE * PANEL, across = (w->out + columns - 1) / columns;
    const ptrdiff_t down = (w->positions + POSITIONS_AT_ONCE - 1) / POSITIONS_AT_ONCE;
    const ptrdiff_t rows = (w->positions / down + 12) / 12 * 12; /* whole blocks */
    const ptrdiff_t next = __atomic_fetch_add(&w->next, 1, __ATOMIC_RELAXED);
    p->n = next / across / down;
    p->row = least(next / across % down * rows, w->positions);
    p->last_row = least(p->row + rows, w->positions);
    p->column = next % across * columns;
    p->last_column = least(p->column + columns, w->out);
    return p->n < w->count;
}

/* For processors with AVX-512. */
#define NAME(what) what##_16
#define TARGET AVX512
#define SUMS lanes16
#define FACTORS lanes16
#define READ(at) *(const float *)(at)
#define AND(sums, x, y) (sums) + (x) * (y)
#define TOGETHER 1
#define MOST 12
#include "multiplier.h"

/* For those that multiply pairs of bfloat16. */
#define NAME(what) what##_pairs
#define TARGET AVX512 ",avx512bf16"
#define SUMS lanes16
#define FACTORS words16
#define READ(at) *(at)
#define AND(sums, x, y) (lanes16) _mm512_dpbf16_ps((__m512)(sums), (__m512bh)(x), (__m512bh)(y))
#define TOGETHER 2
#define MOST 12
#include "multiplier.h"

static int has_floats(void) { return HAS_AVX512; }
static int has_pairs(void) { return has_floats() && __builtin_cpu_supports("avx512bf16"); }
#else
static void nothing(void *what) { (void)what; }
#define products_16 nothing
#define products_pairs nothing
#define tiles_16 nothing
#define tiles_pairs nothing
#define attended_16 nothing
#define attended_pairs nothing
static int has_floats(void) { return 0; }
static int has_pairs(void) { return 0; }
#endif

/* Whether this processor can be given to multiply. */
int multiplies(int is_bfloat16) { return is_bfloat16 ? has_pairs() : has_floats(); }

void multiply(const void *from, const void *filters, const float *added, float *to, ptrdiff_t count,
              ptrdiff_t positions, ptrdiff_t in_channels, ptrdiff_t out_channels, ptrdiff_t at_once, int is_bfloat16,
              parallel run, unsigned threads) {
    products w = {.at_once = at_once, .from = from, .filters = filters, .added = added, .to = to, .count = count, .positions = positions,
                  .depth = is_bfloat16 ? in_channels / 2 : in_channels, .out = out_channels};
    in_all_threads(is_bfloat16 ? products_pairs : products_16, &w, run, threads);
}

/* MEMORY has NBYTES for every thread: the transforms of AT_ONCE tiles, and their products. */
void convolve(const float *window, const void *filters, const float *bias, const void *added, void *picture,
              void *memory, ptrdiff_t nbytes, ptrdiff_t window_row, ptrdiff_t row, ptrdiff_t added_row, ptrdiff_t high,
              ptrdiff_t wide, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t in_channels, ptrdiff_t out_channels,
              ptrdiff_t count, ptrdiff_t at_once, ptrdiff_t added_at_once, int tall, int broad, int in_pairs,
              int is_bfloat16, int added_is_bfloat16, parallel run, unsigned threads) {
    convolution w = {
        .source = {.from = window, .row = window_row, .high = high, .wide = wide, .channels = in_channels,
                   .at_once = at_once, .tall = tall, .broad = broad, .is_bfloat16 = in_pairs},
        .target = {.bias = bias, .added = added, .to = picture, .row = row, .added_row = added_row, .high = high,
                   .wide = wide, .rows = rows, .columns = columns, .channels = out_channels, .tall = tall,
                   .broad = broad, .is_bfloat16 = is_bfloat16, .added_is_bfloat16 = added_is_bfloat16},
        .products = {.filters = filters, .count = count, .depth = in_pairs ? in_channels / 2 : in_channels,
                     .out = out_channels, .at_once = added_at_once},
        .memory = memory, .nbytes = nbytes};
    in_all_threads(in_pairs ? tiles_pairs : tiles_16, &w, run, threads);
}

void put_values(const float *from, void *to, ptrdiff_t first, ptrdiff_t count, ptrdiff_t channels, ptrdiff_t block,
                int is_bfloat16, parallel run, unsigned threads) {
    arrival w = {.from = from, .to = to, .first = first, .count = count, .channels = channels, .block = block,
                 .is_bfloat16 = is_bfloat16};
    in_all_threads(arrivals, &w, run, threads);
}

void attend(const float *queries, const void *keys, const void *values, float *to, void *panels, float *mixed,
            ptrdiff_t count, ptrdiff_t positions, ptrdiff_t channels, ptrdiff_t at_once, float scale, int is_bfloat16,
            parallel run, unsigned threads) {
    attention w = {.at_once = at_once, .queries = queries, .keys = keys, .values = values, .panels = panels, .mixed = mixed, .to = to,
                   .scale = scale, .count = count, .positions = positions, .channels = channels};
    in_all_threads(is_bfloat16 ? attended_pairs : attended_16, &w, run, threads);
}

/* --- products on other processors ---------------------------------------------------------------------------------- */

/* BLAS's, by columns: rows of ours are columns of its.  Within a parallel region it is one thread's. */
typedef void (*gemm)(const char *, const char *, const int *, const int *, const int *, const float *, const float *,
                     const int *, const float *, const int *, const float *, float *, const int *);

typedef struct {
    const float *spectrum, *filters;
    float *to;
    ptrdiff_t count;
    int positions, into, out;
    gemm sgemm;
    ptrdiff_t next; /* product that no thread has taken */
} blas;

static void with_blas(void *what) {
    blas *w = what;
    const float one = 1, zero = 0;
    ptrdiff_t n;
    while ((n = __atomic_fetch_add(&w->next, 1, __ATOMIC_RELAXED)) < w->count) {
        const float *spectrum = w->spectrum + n * w->positions * w->into, *filters = w->filters + n * w->into * w->out;
        float *to = w->to + n * w->positions * w->out;
        w->sgemm("N", "N", &w->out, &w->positions, &w->into, &one, filters, &w->out, spectrum, &w->into, &zero, to,
                 &w->out);
    }
}

void multiply_with_blas(const float *spectrum, const float *filters, float *to, ptrdiff_t count, int positions,
                        int in_channels, int out_channels, gemm sgemm, parallel run, unsigned threads) {
    blas w = {.spectrum = spectrum, .filters = filters, .to = to, .count = count, .positions = positions,
                  .into = in_channels, .out = out_channels, .sgemm = sgemm};
    in_all_threads(with_blas, &w, run, threads);
}

/* --- normalised and activated --------------------------------------------------------------------------------- */

typedef struct {
    const void *from;
    const float *scale, *shift;
    float *to;
    ptrdiff_t from_row, to_row, rows, columns, channels;
    int is_bfloat16;
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
            float *to = s->to + row * s->to_row + column * s->channels;
            for (ptrdiff_t c = 0; c < s->channels; c += LANES) {
                lanes x;
                read_at(&x, s->from, from + c, s->is_bfloat16);
                x = x * *(const lanes *)(s->scale + c) + *(const lanes *)(s->shift + c);
                silu(&x);
                *(lanes *)(to + c) = x;
            }
        }
}

void to_window(const void *rows, const float *scale, const float *shift, float *window, ptrdiff_t from_row,
               ptrdiff_t to_row, ptrdiff_t count, ptrdiff_t columns, ptrdiff_t channels, int is_bfloat16,
               parallel run, unsigned threads) {
    strip s = {.from = rows, .scale = scale, .shift = shift, .to = window, .from_row = from_row, .to_row = to_row,
               .rows = count, .columns = columns, .channels = channels, .is_bfloat16 = is_bfloat16};
    in_all_threads(windows, &s, run, threads);
}

/* --- measured --------------------------------------------------------------------------------------------------- */

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
