/* What attention does between its matrix products, for a panel of queries.

   Of softmax(queries · keys) · values, scores and weights exist only for a block of keys and a panel of queries: each
   query has a running maximum and a running sum (Milakov and Gimelshein, "Online normalizer calculation for softmax",
   2018).  Values are packed in blocks of keys: (blocks, channels, keys of a block). */

#pragma once

#include "simd.h"

enum { KEY_BLOCK_WORDS = 128 }; /* words of a channel's values in a block: so many keys in float32, twice in bfloat16 */

struct attention {
    const float *queries;          /* (query_count, channels) */
    const uint32_t *keys, *values; /* (key_count, channels), and blocks */
    uint32_t *query_panels;        /* (panels, channels, PANEL) */
    float *accumulators;           /* (panels, channels, PANEL) */
    float *output;                 /* (query_count, channels) */
    float scale;
    ptrdiff_t query_count, key_count, channels;
    ptrdiff_t k_block;
    ptrdiff_t next; /* panel that no thread has taken */
};

/* The softmax of a panel's queries so far: the largest score, and the sum of e^(score - largest). */
struct softmax {
    float largest[PANEL], sum[PANEL];
};

/* Takes panels [first, end); returns 0 when none is left. */
INLINE int take_query_panels(struct attention *w, ptrdiff_t *first, ptrdiff_t *end) {
    const ptrdiff_t panels = (w->query_count + PANEL - 1) / PANEL;
    *first = take_next(&w->next, PANELS_PER_TASK);
    *end = min(*first + PANELS_PER_TASK, panels);
    return *first < panels;
}

/* Packs panel N, scaled, with zeros beyond the last query.  Returns the softmax of no keys. */
INLINE struct softmax pack_queries(const struct attention *w, ptrdiff_t n, int word_elements) {
    struct softmax state = {.sum = {0}};
    const ptrdiff_t panel_words = w->channels / word_elements * PANEL;
    for (ptrdiff_t q = 0; q < PANEL; q++) {
        state.largest[q] = -1e30f;
        const float *from = w->queries + (n * PANEL + q) * w->channels;
        const int exists = n * PANEL + q < w->query_count;
        uint32_t *to = w->query_panels + n * panel_words + q;
        for (ptrdiff_t c = 0; c < w->channels; c += LANES) {
            u32x8 bits = {0};
            if (exists) bits = (u32x8)(*(const f32x8 *)(from + c) * w->scale);
            if (word_elements == 2) round_to_bfloat16(&bits);
            for (int i = 0; i < LANES; i += word_elements)
                to[(c + i) / word_elements * PANEL] = word_elements == 1 ? bits[i] : bits[i] | bits[i + 1] << 16;
        }
    }
    return state;
}

/* Replaces the scores of KEYS keys by e^(score - largest), and those up to KEY_BLOCK by zeros.  Where the largest score
   grows, the sum and the first CHANNELS of ACCUMULATORS are scaled to it. */
INLINE void softmax_block(float *scores, ptrdiff_t keys, ptrdiff_t key_block, struct softmax *state,
                          float *accumulators, ptrdiff_t channels, int word_elements) {
    float scales[PANEL] __attribute__((aligned(64)));
    int is_scaled = 0;
    for (ptrdiff_t q = 0; q < PANEL; q += LANES) {
        f32x8 *largest = (f32x8 *)(state->largest + q), *sum = (f32x8 *)(state->sum + q), new_largest = *largest;
        for (ptrdiff_t k = 0; k < keys; k++) {
            const f32x8 x = *(const f32x8 *)(scores + k * PANEL + q);
            const u32x8 is_larger = (u32x8)(x > new_largest);
            new_largest = (f32x8)((is_larger & (u32x8)x) | (~is_larger & (u32x8)new_largest));
        }
        f32x8 scale = *largest - new_largest;
        for (int i = 0; i < LANES; i++) is_scaled |= scale[i] != 0;
        exp_nonpositive(&scale);
        *(f32x8 *)(scales + q) = scale;
        *largest = new_largest;
        f32x8 block_sum = {0};
        for (ptrdiff_t k = 0; k < key_block; k += word_elements) {
            u32x8 bits = {0};
            for (int i = 0; i < word_elements && k + i < keys; i++) {
                f32x8 x = *(const f32x8 *)(scores + (k + i) * PANEL + q) - new_largest;
                exp_nonpositive(&x);
                block_sum += x;
                u32x8 element = (u32x8)x;
                if (word_elements == 2) round_to_bfloat16(&element);
                bits |= element << 16 * i;
            }
            *(u32x8 *)(scores + k / word_elements * PANEL + q) = bits;
        }
        *sum = *sum * scale + block_sum;
    }
    for (ptrdiff_t at = 0; is_scaled && at < channels * PANEL; at += PANEL)
        for (ptrdiff_t q = 0; q < PANEL; q += LANES)
            *(f32x8 *)(accumulators + at + q) *= *(const f32x8 *)(scales + q);
}

/* Writes the output of panel N. */
INLINE void store_attention(const struct attention *w, ptrdiff_t n, const struct softmax *state) {
    const ptrdiff_t queries = min(PANEL, w->query_count - n * PANEL);
    const float *from = w->accumulators + n * w->channels * PANEL;
    for (ptrdiff_t q = 0; q < queries; q++) {
        const float factor = 1 / state->sum[q];
        float *to = w->output + (n * PANEL + q) * w->channels;
        for (ptrdiff_t c = 0; c < w->channels; c++) to[c] = from[c * PANEL + q] * factor;
    }
}
