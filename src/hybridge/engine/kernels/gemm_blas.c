/* Batched matrix products with BLAS, on processors for which gemm.c has no kernels. */

#include "simd.h"

struct gemm_blas {
    const struct batched_gemm_blas_args *args;
    ptrdiff_t next; /* product that no thread has taken */
};

/* Within a parallel region, sgemm runs in the thread that calls it.  It stores by columns: rows of ours are its
   columns, so the filters are its first matrix. */
static void gemm_blas_worker(void *state) {
    struct gemm_blas *w = state;
    const struct batched_gemm_blas_args *a = w->args;
    const float one = 1, zero = 0;
    ptrdiff_t n;
    while ((n = take_next(&w->next, 1)) < a->batch) {
        const float *input = a->input + n * a->positions * a->in_channels;
        const float *filters = a->filters + n * a->in_channels * a->out_channels;
        float *output = a->output + n * a->positions * a->out_channels;
        a->sgemm("N", "N", &a->out_channels, &a->positions, &a->in_channels, &one, filters, &a->out_channels, input,
                 &a->in_channels, &zero, output, &a->out_channels);
    }
}

void batched_gemm_blas(const struct batched_gemm_blas_args *args) {
    struct gemm_blas w = {.args = args};
    run_parallel(gemm_blas_worker, &w, args->parallel, args->threads);
}
