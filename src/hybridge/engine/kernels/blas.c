/* Products where BLAS makes them: on processors for which products.c has no loops. */

#include "numbers.h"

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
