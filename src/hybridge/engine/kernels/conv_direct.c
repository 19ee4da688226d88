/* A convolution without a transform.  What a row of the kernel reads lies side by side in the input, so each row is one
   matrix product, which is added to the ones before it. */

#include "gemm.h"
#include "moments.h"

enum { COLUMN_BLOCK = 48 };

/* A word has one element of float32 or two of bfloat16, see gemm.h. */
struct conv_direct {
    const uint32_t *input;
    const uint32_t *filters; /* (panels, kernel, depth, PANEL) */
    const float *bias;
    const void *residual;
    void *output;
    ptrdiff_t row_stride, column_stride; /* of the input, in words */
    ptrdiff_t residual_row_stride, output_row_stride;
    ptrdiff_t output_rows, output_columns, out_channels;
    ptrdiff_t kernel, stride;
    ptrdiff_t depth; /* words that a row of the kernel reads */
    ptrdiff_t k_block;
    int residual_is_bfloat16, output_is_bfloat16;
    struct output_moments moments;
    ptrdiff_t next; /* block of outputs that no thread has taken */
};

/* Takes outputs [first, end) of a row; returns 0 when none is left. */
INLINE int take_outputs(struct conv_direct *w, ptrdiff_t *row, ptrdiff_t *first, ptrdiff_t *end) {
    const ptrdiff_t blocks = (w->output_columns + COLUMN_BLOCK - 1) / COLUMN_BLOCK, next = take_next(&w->next, 1);
    *row = next / blocks;
    *first = next % blocks * COLUMN_BLOCK;
    *end = min(*first + COLUMN_BLOCK, w->output_columns);
    return *row < w->output_rows;
}

/* Writes SUMS, (end - first, PANEL), with bias and residual added: the panel of channels that begins at CHANNEL. */
INLINE void store_outputs(const struct conv_direct *w, const float *sums, ptrdiff_t row, ptrdiff_t first,
                          ptrdiff_t end, ptrdiff_t channel) {
    const ptrdiff_t channels = min(PANEL, w->out_channels - channel);
    for (ptrdiff_t column = first; column < end; column++, sums += PANEL)
        for (ptrdiff_t c = 0; c < channels; c += LANES) {
            const ptrdiff_t at = column * w->out_channels + channel + c;
            f32x8 x = *(const f32x8 *)(sums + c), residual = {0};
            if (w->bias) x += *(const f32x8 *)(w->bias + channel + c);
            if (w->residual) load(&residual, w->residual, row * w->residual_row_stride + at, w->residual_is_bfloat16);
            store(w->output, row * w->output_row_stride + at, x + residual, w->output_is_bfloat16);
        }
}

#define KERNELS_FILE "conv_direct_kernels.h"
#include "for_each_isa.h"

void conv_direct(const struct conv_direct_args *args) {
    const int is_bfloat16 = args->filters_are_bfloat16;
    const ptrdiff_t word_elements = is_bfloat16 ? 2 : 1;
    struct conv_direct w = {
        .input = args->input, .filters = args->filters, .bias = args->bias, .residual = args->residual,
        .output = args->output, .row_stride = args->input_row_stride / word_elements,
        .column_stride = args->in_channels / word_elements, .residual_row_stride = args->residual_row_stride,
        .output_row_stride = args->output_row_stride, .output_rows = args->output_rows,
        .output_columns = args->output_columns, .out_channels = args->out_channels, .kernel = args->kernel,
        .stride = args->stride, .depth = args->kernel * args->in_channels / word_elements, .k_block = args->k_block,
        .residual_is_bfloat16 = args->residual_is_bfloat16, .output_is_bfloat16 = args->output_is_bfloat16,
        .moments = OUTPUT_MOMENTS(args, args->out_channels),
    };
    run_for_isa(is_bfloat16, &w, args->parallel, args->threads);
}
