/* Attention on one kind of processor; multiplier.h includes this, with what it was given.

   Queries come in panels, as filters do.  For a block of keys, scores are (keys, queries), so that what a softmax
   does is done in lanes, a query each, and what is made of values is (channels, queries), until the end. */

/* PANELS of queries, which wait in a core's own cache, meet every block of keys and values once. */
__attribute__((target(TARGET))) static void NAME(attended)(void *what) {
    attention *w = what;
    enum { KEYS = DEEP * TOGETHER };
    const ptrdiff_t channels = w->channels, depth = channels / TOGETHER;
    float scores[KEYS * PANEL] __attribute__((aligned(64)));
    softmax states[PANELS_AT_ONCE];
    ptrdiff_t first, last;
    while (take_panels(w, &first, &last)) {
        for (ptrdiff_t n = first; n < last; n++) states[n - first] = queries_of(w, n, TOGETHER);
        for (ptrdiff_t key = 0; key < w->positions; key += KEYS)
            for (ptrdiff_t n = first; n < last; n++) {
                const ptrdiff_t keys = least(KEYS, w->positions - key);
                float *mixed = w->mixed + n * channels * PANEL;
                NAME(rows)(w->keys + key * depth, depth, depth, w->at_once, w->panels + n * depth * PANEL, 0, scores,
                           PANEL, keys);
                weights_of(scores, keys, KEYS, &states[n - first], mixed, key ? channels : 0, TOGETHER);
                NAME(rows)(w->values + key / KEYS * channels * DEEP, DEEP, DEEP, w->at_once, (const uint32_t *)scores,
                           key ? mixed : 0, mixed, PANEL, channels);
            }
        for (ptrdiff_t n = first; n < last; n++) mixed_of(w, n, &states[n - first]);
    }
}
