/* The values of attention, packed in the order in which attention reads them: see softmax.h. */

#include "simd.h"

struct pack_values {
    const struct pack_values_args *args;
    ptrdiff_t next; /* channel that no thread has taken */
};

MULTIVERSIONED static void pack_values_worker(void *state) {
    struct pack_values *w = state;
    const struct pack_values_args a = *w->args;
    ptrdiff_t c;
    while ((c = take_next(&w->next, LANES)) < a.channels)
        for (ptrdiff_t n = 0; n < a.positions; n++) {
            const ptrdiff_t position = a.first + n, block = position / a.key_block;
            const ptrdiff_t at = (block * a.channels + c) * a.key_block + position % a.key_block;
            const f32x8 x = *(const f32x8 *)(a.rows + n * a.channels + c);
            u32x8 bits = (u32x8)x;
            round_to_bfloat16(&bits);
            for (int i = 0; i < LANES; i++)
                if (a.values_are_bfloat16)
                    ((uint16_t *)a.values)[at + i * a.key_block] = bits[i];
                else
                    ((float *)a.values)[at + i * a.key_block] = x[i];
        }
}

void pack_values(const struct pack_values_args *args) {
    struct pack_values w = {.args = args};
    run_parallel(pack_values_worker, &w, args->parallel, args->threads);
}
