/* Attention: softmax(scale · queries · keysᵀ) · values, a few panels of queries at a time. */

#include "gemm.h"
#include "softmax.h"

#define KERNELS_FILE "attention_kernels.h"
#include "for_each_isa.h"

void attention(const struct attention_args *args) {
    struct attention w = {
        .queries = args->queries, .keys = args->keys, .values = args->values, .query_panels = args->query_panels,
        .accumulators = args->accumulators, .output = args->output, .scale = args->scale,
        .query_count = args->query_count, .key_count = args->key_count, .channels = args->channels,
        .k_block = args->k_block,
    };
    run_for_isa(args->keys_are_bfloat16, &w, args->parallel, args->threads);
}
