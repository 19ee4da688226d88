/* Matrix products for one instruction set: for_each_isa.h includes this, with the macros that it describes. */

/* The products of ROWS positions, a constant, with two vectors of output channels.  ROW_STRIDE is from one position of
   the input to the next, OUTPUT_STRIDE is the same of the output.  INITIAL, or zero where it is NULL, is added. */
__attribute__((target(TARGET), always_inline)) static inline void NAME(gemm_block)(
    const uint32_t *input, ptrdiff_t row_stride, ptrdiff_t depth, ptrdiff_t k_block, const uint32_t *panel,
    const float *initial, float *output, ptrdiff_t output_stride, const int rows) {
    enum { WIDTH = sizeof(SUM_VECTOR) / sizeof(float) };
    SUM_VECTOR sums[MAX_ROWS][2], partial_sums[MAX_PARTIAL_SUMS][MAX_ROWS][2];
    UNROLL for (int i = 0; i < rows; i++) for (int j = 0; j < 2; j++)
        __builtin_prefetch(output + i * output_stride + j * WIDTH, 1);
    ptrdiff_t k = 0, blocks = 0;
    do {
        UNROLL for (int i = 0; i < rows; i++) sums[i][0] = sums[i][1] = (SUM_VECTOR){0};
        for (const ptrdiff_t end = min(k + k_block, depth); k < end; k++) {
            if (depth <= PREFETCH_MAX_DEPTH && k % CACHE_LINE_WORDS == 0) UNROLL for (int i = 0; i < rows; i++)
                __builtin_prefetch(input + (i + rows) * row_stride + k);
            const FACTOR_VECTOR *y = (const FACTOR_VECTOR *)(panel + k * PANEL);
            const FACTOR_VECTOR first = y[0], second = y[1];
            UNROLL for (int i = 0; i < rows; i++) {
                const FACTOR_VECTOR x = LOAD_SCALAR(input + i * row_stride + k) + (FACTOR_VECTOR){0};
                sums[i][0] = FMA(sums[i][0], x, first);
                sums[i][1] = FMA(sums[i][1], x, second);
            }
        }
        int level = 0; /* a partial sum at this level is of 2^level blocks */
        for (; blocks >> level & 1 || (k == depth && blocks >> level); level++)
            if (blocks >> level & 1) UNROLL for (int i = 0; i < rows; i++) for (int j = 0; j < 2; j++)
                sums[i][j] += partial_sums[level][i][j];
        if (k < depth) UNROLL for (int i = 0; i < rows; i++) for (int j = 0; j < 2; j++)
            partial_sums[level][i][j] = sums[i][j];
        blocks++;
    } while (k < depth);
    UNROLL for (int i = 0; i < rows; i++) for (int j = 0; j < 2; j++) {
        const ptrdiff_t at = i * output_stride + j * WIDTH;
        *(SUM_VECTOR *)(output + at) = (initial ? *(const SUM_VECTOR *)(initial + at) : (SUM_VECTOR){0}) + sums[i][j];
    }
}

/* Of any number of ROWS: in blocks of MAX_ROWS, then of four, then of one. */
__attribute__((target(TARGET), always_inline)) static inline void NAME(gemm_rows)(
    const uint32_t *input, ptrdiff_t row_stride, ptrdiff_t depth, ptrdiff_t k_block, const uint32_t *panel,
    const float *initial, float *output, ptrdiff_t output_stride, ptrdiff_t rows) {
    for (ptrdiff_t count; rows > 0; rows -= count, input += count * row_stride, output += count * output_stride) {
        count = rows >= MAX_ROWS ? MAX_ROWS : rows >= 4 ? 4 : 1;
        if (count == MAX_ROWS)
            NAME(gemm_block)(input, row_stride, depth, k_block, panel, initial, output, output_stride, MAX_ROWS);
        else if (count == 4)
            NAME(gemm_block)(input, row_stride, depth, k_block, panel, initial, output, output_stride, 4);
        else
            NAME(gemm_block)(input, row_stride, depth, k_block, panel, initial, output, output_stride, 1);
        if (initial) initial += count * output_stride;
    }
}

__attribute__((target(TARGET), always_inline)) static inline void NAME(gemm_task)(const struct gemm *w,
                                                                                 struct gemm_task task) {
    const ptrdiff_t depth = w->depth, out = w->out_channels, first = task.n * w->positions + task.first_row;
    for (ptrdiff_t column = task.first_column; column < task.end_column;
         column += 2 * sizeof(SUM_VECTOR) / sizeof(float)) {
        const ptrdiff_t panel = task.n * out + column / PANEL * PANEL, at = first * out + column;
        NAME(gemm_rows)(w->input + first * depth, depth, depth, w->k_block,
                        w->filters + panel * depth + column % PANEL, 0, w->output + at, out,
                        task.end_row - task.first_row);
    }
}
