/* Products: by themselves, of a few tiles or positions on their way through a convolution, and of attention.

   Filters come in panels of PANEL output channels.  The sums of a block, a few positions by a panel or by half of one,
   stay in registers on the way along the channels.  What is read there has four bytes: a float, or, for processors that
   multiply these at once, a pair of bfloat16. */

#include "softmax.h"
#include "tiles.h"

enum { POSITIONS_AT_ONCE = 192, MOST_SUMS = 24 };

/* Of rows so short, what is read next can come into a cache beside what is read. */
enum { SHORT = 256, LINE = 16 };

typedef struct {
    const uint32_t *from, *filters;
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

/* A convolution without tiles.  What a row of a kernel reads lies side by side, so it is one product. */
enum { TAPS_AT_ONCE = 48 };

typedef struct {
    tiles target;                   /* a position each */
    const uint32_t *from, *filters; /* (panels, rows of a kernel, DEPTH, PANEL) */
    ptrdiff_t row, column;          /* from one to the next of the window */
    ptrdiff_t stride, kernel, depth;
    ptrdiff_t at_once; /* products that are added one after another */
} taps;

/* Sums (positions, PANEL) of channels from FIRST on. */
INLINE void picture_of(const tiles *w, const float *sums, ptrdiff_t row, ptrdiff_t column, ptrdiff_t end,
                       ptrdiff_t first) {
    const ptrdiff_t channels = least(PANEL, w->channels - first);
    for (; column < end; column++, sums += PANEL)
        for (ptrdiff_t c = 0; c < channels; c += LANES) {
            const ptrdiff_t at = column * w->channels + first + c;
            lanes x = *(const lanes *)(sums + c), added = {0};
            if (w->bias) x += *(const lanes *)(w->bias + first + c);
            if (w->added) read_at(&added, w->added, row * w->added_row + at, w->added_is_bfloat16);
            write_at(w->to, row * w->row + at, x + added, w->is_bfloat16);
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
#define taps_16 nothing
#define taps_pairs nothing
#define attended_16 nothing
#define attended_pairs nothing
static int has_floats(void) { return 0; }
static int has_pairs(void) { return 0; }
#endif

/* Whether this processor can be given to multiply. */
int multiplies(int is_bfloat16) { return is_bfloat16 ? has_pairs() : has_floats(); }

void multiply(const void *from, const void *filters, float *to, ptrdiff_t count, ptrdiff_t positions,
              ptrdiff_t in_channels, ptrdiff_t out_channels, ptrdiff_t at_once, int is_bfloat16, parallel run,
              unsigned threads) {
    products w = {.from = from, .filters = filters, .to = to, .count = count, .positions = positions,
                  .depth = is_bfloat16 ? in_channels / 2 : in_channels, .out = out_channels, .at_once = at_once};
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

void convolve_taps(const void *window, const void *filters, const float *bias, const void *added, void *picture,
                   ptrdiff_t window_row, ptrdiff_t row, ptrdiff_t added_row, ptrdiff_t rows, ptrdiff_t columns,
                   ptrdiff_t in_channels, ptrdiff_t out_channels, ptrdiff_t kernel, ptrdiff_t stride,
                   ptrdiff_t added_at_once, int in_pairs, int is_bfloat16, int added_is_bfloat16, parallel run,
                   unsigned threads) {
    const ptrdiff_t together = in_pairs ? 2 : 1;
    taps w = {.target = {.bias = bias, .added = added, .to = picture, .row = row, .added_row = added_row, .high = rows,
                         .wide = columns, .channels = out_channels, .at_once = TAPS_AT_ONCE,
                         .is_bfloat16 = is_bfloat16, .added_is_bfloat16 = added_is_bfloat16},
              .from = window, .filters = filters, .row = window_row / together, .column = in_channels / together,
              .stride = stride, .kernel = kernel, .depth = kernel * in_channels / together, .at_once = added_at_once};
    in_all_threads(in_pairs ? taps_pairs : taps_16, &w, run, threads);
}

void attend(const float *queries, const void *keys, const void *values, float *to, void *panels, float *mixed,
            ptrdiff_t count, ptrdiff_t positions, ptrdiff_t channels, ptrdiff_t at_once, float scale, int is_bfloat16,
            parallel run, unsigned threads) {
    attention w = {.queries = queries, .keys = keys, .values = values, .panels = panels, .mixed = mixed, .to = to,
                   .scale = scale, .count = count, .positions = positions, .channels = channels, .at_once = at_once};
    in_all_threads(is_bfloat16 ? attended_pairs : attended_16, &w, run, threads);
}
