/* Values of attention, on their way to the order in which they are read. */

#include "numbers.h"

/* Rows of values, (count, channels), to their places in blocks. */
typedef struct {
    const float *from;
    void *to;
    ptrdiff_t first, count, channels, block;
    int is_bfloat16;
    ptrdiff_t next; /* channels that no thread has taken */
} arrival;

FOR_THIS_CPU static void arrivals(void *what) {
    arrival *w = what;
    ptrdiff_t c;
    while ((c = __atomic_fetch_add(&w->next, LANES, __ATOMIC_RELAXED)) < w->channels)
        for (ptrdiff_t n = 0; n < w->count; n++) {
            const ptrdiff_t position = w->first + n, block = position / w->block;
            const ptrdiff_t at = (block * w->channels + c) * w->block + position % w->block;
            const lanes x = *(const lanes *)(w->from + n * w->channels + c);
            words bits = (words)x;
            round_bits(&bits);
            for (int i = 0; i < LANES; i++)
                if (w->is_bfloat16)
                    ((uint16_t *)w->to)[at + i * w->block] = bits[i];
                else
                    ((float *)w->to)[at + i * w->block] = x[i];
        }
}

void put_values(const float *from, void *to, ptrdiff_t first, ptrdiff_t count, ptrdiff_t channels, ptrdiff_t block,
                int is_bfloat16, parallel run, unsigned threads) {
    arrival w = {.from = from, .to = to, .first = first, .count = count, .channels = channels, .block = block,
                 .is_bfloat16 = is_bfloat16};
    in_all_threads(arrivals, &w, run, threads);
}
