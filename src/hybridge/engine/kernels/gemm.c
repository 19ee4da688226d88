/* Batched matrix products by themselves. */

#include "gemm.h"

#define KERNELS_FILE "gemm_kernels.h"
#include "for_each_isa.h"

/* Whether this processor runs the functions that multiply float32 or bfloat16. */
int has_gemm(int is_bfloat16) { return is_supported(is_bfloat16); }

void batched_gemm(const struct batched_gemm_args *args) {
    const int is_bfloat16 = args->input_is_bfloat16;
    struct gemm w = {
        .input = args->input, .filters = args->filters, .output = args->output, .batch = args->batch,
        .positions = args->positions, .depth = is_bfloat16 ? args->in_channels / 2 : args->in_channels,
        .out_channels = args->out_channels, .k_block = args->k_block,
    };
    run_for_isa(is_bfloat16, &w, args->parallel, args->threads);
}
