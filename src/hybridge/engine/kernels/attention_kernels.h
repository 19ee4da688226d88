/* Attention for one instruction set; for_each_isa.h includes this.

   Queries are packed in panels, as filters are.  Scores of a block of keys are (keys, queries), so that a lane of the
   softmax is a query, and what is accumulated of values is (channels, queries), until the end. */

/* The queries of PANELS_PER_TASK panels stay in a core's own cache, and every block of keys and values is read once. */
__attribute__((target(TARGET))) static void NAME(worker)(void *state) {
    struct attention *w = state;
    enum { KEY_BLOCK = KEY_BLOCK_WORDS * WORD_ELEMENTS };
    const ptrdiff_t channels = w->channels, depth = channels / WORD_ELEMENTS;
    float scores[KEY_BLOCK * PANEL] __attribute__((aligned(64)));
    struct softmax softmaxes[PANELS_PER_TASK];
    ptrdiff_t first, end;
    while (take_query_panels(w, &first, &end)) {
        for (ptrdiff_t n = first; n < end; n++) softmaxes[n - first] = pack_queries(w, n, WORD_ELEMENTS);
        for (ptrdiff_t key = 0; key < w->key_count; key += KEY_BLOCK)
            for (ptrdiff_t n = first; n < end; n++) {
                const ptrdiff_t keys = min(KEY_BLOCK, w->key_count - key);
                float *accumulators = w->accumulators + n * channels * PANEL;
                NAME(gemm_rows)(w->keys + key * depth, depth, depth, w->k_block, w->query_panels + n * depth * PANEL,
                                0, scores, PANEL, keys);
                softmax_block(scores, keys, KEY_BLOCK, &softmaxes[n - first], accumulators, key ? channels : 0,
                              WORD_ELEMENTS);
                NAME(gemm_rows)(w->values + key / KEY_BLOCK * channels * KEY_BLOCK_WORDS, KEY_BLOCK_WORDS,
                                KEY_BLOCK_WORDS, w->k_block, (const uint32_t *)scores, key ? accumulators : 0,
                                accumulators, PANEL, channels);
            }
        for (ptrdiff_t n = first; n < end; n++) store_attention(w, n, &softmaxes[n - first]);
    }
}
