/* Winograd convolution for one instruction set; for_each_isa.h includes this. */

__attribute__((target(TARGET))) static void NAME(worker)(void *state) {
    struct conv_winograd *w = state;
    char *workspace = w->workspace + take_next(&w->threads, 1) * w->workspace_bytes;
    struct winograd_tiles input_tiles = w->input_tiles, output_tiles = w->output_tiles;
    struct gemm gemm = w->gemm;
    ptrdiff_t row, first, end;
    input_tiles.output = workspace;
    gemm.input = (const uint32_t *)workspace;
    gemm.output = (float *)workspace + gemm.batch * input_tiles.block * gemm.depth;
    while (take_tiles(&w->input_tiles, &row, &first, &end)) {
        gemm.positions = end - first;
        input_tiles.product_stride = (end - first) * input_tiles.channels;
        output_tiles.product_stride = (end - first) * output_tiles.channels;
        transform_input_tiles(&input_tiles, row, first, end, 0);
        for (ptrdiff_t n = 0; n < gemm.batch; n++)
            NAME(gemm_task)(&gemm, (struct gemm_task){.n = n, .end_row = end - first, .end_column = gemm.out_channels});
        transform_output_tiles(&output_tiles, row, first, end, gemm.output);
    }
}
