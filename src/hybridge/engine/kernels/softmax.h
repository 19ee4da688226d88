/* What attention does between its products, with a panel of queries.

   Of softmax(queries · keys) · values neither scores nor weights exist but for a block of keys and a panel of queries:
   a running maximum and a running sum for each query (Milakov and Gimelshein, "Online normalizer calculation for
   softmax", 2018).  A block has DEEP times four bytes of every channel's values. */

#pragma once

#include "numbers.h"

enum { DEEP = 128 };

typedef struct {
    const float *queries;          /* (count, channels) */
    const uint32_t *keys, *values; /* (positions, channels) and blocks of (channels, positions of a block) */
    uint32_t *panels;              /* (count / PANEL, channels, PANEL) */
    float *mixed, *to;             /* the same, and (count, channels) */
    float scale;
    ptrdiff_t count, positions, channels;
    ptrdiff_t at_once; /* products that are added one after another */
    ptrdiff_t next;    /* panel that no thread has taken */
} attention;

/* Of a panel's queries, so far: the largest score, and the sum of e^(score - largest). */
typedef struct {
    float largest[PANEL], sum[PANEL];
} softmax;

/* False when none is left. */
INLINE int take_panels(attention *w, ptrdiff_t *first, ptrdiff_t *last) {
    const ptrdiff_t panels = (w->count + PANEL - 1) / PANEL;
    *first = __atomic_fetch_add(&w->next, PANELS_AT_ONCE, __ATOMIC_RELAXED);
    *last = least(*first + PANELS_AT_ONCE, panels);
    return *first < panels;
}

/* A panel, scaled; beyond the last query zeros. */
INLINE softmax queries_of(const attention *w, ptrdiff_t n, int together) {
    softmax unseen = {.sum = {0}};
    const ptrdiff_t size = w->channels / together * PANEL;
    for (ptrdiff_t q = 0; q < PANEL; q++) {
        unseen.largest[q] = -1e30f;
        const float *from = w->queries + (n * PANEL + q) * w->channels;
        const int is_there = n * PANEL + q < w->count;
        uint32_t *to = w->panels + n * size + q;
        for (ptrdiff_t c = 0; c < w->channels; c += LANES) {
            words bits = {0};
            if (is_there) bits = (words)(*(const lanes *)(from + c) * w->scale);
            if (together == 2) round_bits(&bits);
            for (int i = 0; i < LANES; i += together)
                to[(c + i) / together * PANEL] = together == 1 ? bits[i] : bits[i] | bits[i + 1] << 16;
        }
    }
    return unseen;
}

/* e^(score - largest) in place of COUNT keys' scores, zeros up to MOST; what was mixed before is scaled alike. */
INLINE void weights_of(float *scores, ptrdiff_t count, ptrdiff_t most, softmax *state, float *mixed,
                       ptrdiff_t channels, int together) {
    float scales[PANEL] __attribute__((aligned(64)));
    int is_scaled = 0;
    for (ptrdiff_t q = 0; q < PANEL; q += LANES) {
        lanes *largest = (lanes *)(state->largest + q), *sum = (lanes *)(state->sum + q), now = *largest;
        for (ptrdiff_t k = 0; k < count; k++) {
            const lanes x = *(const lanes *)(scores + k * PANEL + q);
            const words above = (words)(x > now);
            now = (lanes)((above & (words)x) | (~above & (words)now));
        }
        lanes scale = *largest - now;
        for (int i = 0; i < LANES; i++) is_scaled |= scale[i] != 0;
        exponential_of_negative(&scale);
        *(lanes *)(scales + q) = scale;
        *largest = now;
        lanes added = {0};
        for (ptrdiff_t k = 0; k < most; k += together) {
            words bits = {0};
            for (int i = 0; i < together && k + i < count; i++) {
                lanes x = *(const lanes *)(scores + (k + i) * PANEL + q) - now;
                exponential_of_negative(&x);
                added += x;
                words part = (words)x;
                if (together == 2) round_bits(&part);
                bits |= part << 16 * i;
            }
            *(words *)(scores + k / together * PANEL + q) = bits;
        }
        *sum = *sum * scale + added;
    }
    for (ptrdiff_t at = 0; is_scaled && at < channels * PANEL; at += PANEL)
        for (ptrdiff_t q = 0; q < PANEL; q += LANES)
            *(lanes *)(mixed + at + q) *= *(const lanes *)(scales + q);
}

/* A panel's result. */
INLINE void mixed_of(const attention *w, ptrdiff_t n, const softmax *state) {
    const ptrdiff_t queries = least(PANEL, w->count - n * PANEL);
    const float *from = w->mixed + n * w->channels * PANEL;
    for (ptrdiff_t q = 0; q < queries; q++) {
        const float part = 1 / state->sum[q];
        float *to = w->to + (n * PANEL + q) * w->channels;
        for (ptrdiff_t c = 0; c < w->channels; c++) to[c] = from[c * PANEL + q] * part;
    }
}
