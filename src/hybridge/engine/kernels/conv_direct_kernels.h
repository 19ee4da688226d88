/* Direct convolution for one instruction set; for_each_isa.h includes this. */

__attribute__((target(TARGET))) static void NAME(worker)(void *state) {
    struct conv_direct *w = state;
    float sums[COLUMN_BLOCK * PANEL] __attribute__((aligned(64)));
    ptrdiff_t row, first, end;
    while (take_outputs(w, &row, &first, &end)) {
        const uint32_t *input = w->input + row * w->stride * w->row_stride + first * w->stride * w->column_stride;
        const uint32_t *filters = w->filters;
        for (ptrdiff_t channel = 0; channel < w->out_channels; channel += PANEL) {
            for (ptrdiff_t i = 0; i < w->kernel; i++, filters += w->depth * PANEL)
                NAME(gemm_rows)(input + i * w->row_stride, w->stride * w->column_stride, w->depth, w->k_block, filters,
                                i ? sums : 0, sums, PANEL, end - first);
            store_outputs(w, sums, row, first, end, channel);
        }
        count_written(&w->moments, row, row + 1, end - first);
    }
}
