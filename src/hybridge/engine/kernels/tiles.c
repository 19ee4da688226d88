/* All tiles of a strip, a step at a time; products.c takes a few through all steps. */

#include "tiles.h"

enum { TILES_AT_ONCE = 16 };

FOR_THIS_CPU static void spectra(void *what) {
    tiles *w = what;
    ptrdiff_t h, n, end;
    while (take(w, &h, &n, &end)) spectra_between(w, h, n, end, (h * w->wide + n) * w->channels);
}

FOR_THIS_CPU static void pictures(void *what) {
    tiles *w = what;
    ptrdiff_t h, n, end;
    while (take(w, &h, &n, &end)) pictures_between(w, h, n, end, w->from + (h * w->wide + n) * w->channels);
}

void to_spectrum(const float *window, void *spectrum, ptrdiff_t row, ptrdiff_t high, ptrdiff_t wide,
                 ptrdiff_t channels, int tall, int broad, int is_bfloat16, parallel run, unsigned threads) {
    tiles w = {.from = window, .to = spectrum, .row = row, .high = high, .wide = wide, .channels = channels,
               .at_once = TILES_AT_ONCE, .product = high * wide * channels, .tall = tall, .broad = broad,
               .is_bfloat16 = is_bfloat16};
    in_all_threads(spectra, &w, run, threads);
}

void to_picture(const float *products, const float *bias, const void *added, void *picture, ptrdiff_t row,
                ptrdiff_t added_row, ptrdiff_t high, ptrdiff_t wide, ptrdiff_t rows, ptrdiff_t columns,
                ptrdiff_t channels, int tall, int broad, int is_bfloat16, int added_is_bfloat16, parallel run,
                unsigned threads) {
    tiles w = {.from = products, .bias = bias, .added = added, .to = picture, .row = row, .added_row = added_row,
               .high = high, .wide = wide, .rows = rows, .columns = columns, .channels = channels,
               .at_once = TILES_AT_ONCE, .product = high * wide * channels, .tall = tall, .broad = broad,
               .is_bfloat16 = is_bfloat16, .added_is_bfloat16 = added_is_bfloat16};
    in_all_threads(pictures, &w, run, threads);
}
