/* Vectors of numbers, processors and threads: what all loops are made of.

   Pictures lie channels-last, so innermost loops run over channels, LANES at a time. */

#pragma once

#include <stddef.h>
#include <stdint.h>

/* Filters and queries come in panels, of which a thread takes some at once. */
enum { LANES = 8, PANEL = 32, PANELS_AT_ONCE = 4 };

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

/* --- processors and threads --- */

/* What processors are compiled for.  Their levels have fused multiplication, which AVX2 and AVX-512 alone do not. */
#if __GNUC__ >= 12
#define AVX2 "arch=x86-64-v3"
#define AVX512 "arch=x86-64-v4"
#define HAS_AVX512 __builtin_cpu_supports("x86-64-v4")
#else
#define AVX2 "avx2"
#define AVX512 "avx512f"
#define HAS_AVX512 __builtin_cpu_supports("avx512f")
#endif

/* Compiled several times over; the loader takes the one for this processor. */
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__)
#define FOR_THIS_CPU __attribute__((target_clones(AVX512, AVX2, "default")))
#else
#define FOR_THIS_CPU
#endif
#define UNROLLED _Pragma("GCC unroll 12")
#define INLINE static inline __attribute__((always_inline))

/* GOMP_parallel: calls a function in every thread of a team. */
typedef void (*parallel)(void (*)(void *), void *, unsigned threads, unsigned flags);

INLINE void in_all_threads(void (*does)(void *), void *w, parallel run, unsigned threads) {
    if (threads > 1)
        run(does, w, threads, 0);
    else
        does(w);
}

/* --- numbers --- */

INLINE ptrdiff_t least(ptrdiff_t x, ptrdiff_t y) { return x < y ? x : y; }

INLINE void at_most(lanes *x, float bound) {
    const words beyond = (words)(*x > (lanes){0} + bound);
    *x = (lanes)((beyond & (words)((lanes){0} + bound)) | (~beyond & (words)*x));
}

/* e^x for x from -88 to 88, as 2^n times Cephes' polynomial of the rest: right to the last bits.  NaN stays NaN. */
INLINE void exponential(lanes *to) {
    const float rounding = 12582912.0f; /* 1.5 · 2^23: adding it leaves no bits for a fraction */
    lanes x = *to, n = x * 1.44269504f + rounding;
    const words power = (words)n << 23;
    n -= rounding;
    x = x - n * 0.693359375f + n * 2.12194440e-4f;
    lanes p = 1.9875691500e-4f * x + 1.3981999507e-3f;
    p = p * x + 8.3334519073e-3f;
    p = p * x + 4.1665795894e-2f;
    p = p * x + 1.6666665459e-1f;
    p = p * x + 5.0000001201e-1f;
    p = p * x * x + x + 1.0f;
    *to = (lanes)((words)p + power);
}

/* Of x from -infinity to 0, which is no smaller than e^-87. */
INLINE void exponential_of_negative(lanes *x) {
    *x = -*x;
    at_most(x, 87.0f);
    *x = -*x;
    exponential(x);
}

/* bfloat16: to the nearest, and of two as near to the even. */
INLINE void round_bits(words *bits) { *bits = (*bits + 0x7fff + (*bits >> 16 & 1)) >> 16; }

INLINE halves rounded(lanes x) {
    words bits = (words)x;
    round_bits(&bits);
    return __builtin_convertvector(bits, halves);
}

INLINE void read_at(lanes *x, const void *from, ptrdiff_t at, int is_bfloat16) {
    if (is_bfloat16)
        *x = (lanes)(__builtin_convertvector(*(const halves *)((const uint16_t *)from + at), words) << 16);
    else
        *x = *(const lanes *)((const float *)from + at);
}

INLINE void write_at(void *to, ptrdiff_t at, lanes x, int is_bfloat16) {
    if (is_bfloat16)
        *(halves *)((uint16_t *)to + at) = rounded(x);
    else
        *(lanes *)((float *)to + at) = x;
}
