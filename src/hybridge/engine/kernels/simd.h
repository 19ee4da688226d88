/* Vectors of numbers, kinds of processors, and threads: what all kernels are built from.

   Images are channels-last, so innermost loops run over channels, LANES at a time. */

#pragma once

#include <stddef.h>
#include <stdint.h>

#include "arguments.h"

/* Filters and queries are packed in panels of PANEL output channels or queries; a thread takes a few at a time. */
enum { LANES = 8, PANEL = 32, PANELS_PER_TASK = 4 };

typedef float f32x8 __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t u32x8 __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t u16x8 __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

/* --- processors and threads --- */

/* The instruction sets that functions are compiled for.  These levels include fused multiply-add, which "avx2" and
   "avx512f" alone do not. */
#if __GNUC__ >= 12
#define AVX2 "arch=x86-64-v3"
#define AVX512 "arch=x86-64-v4"
#define HAS_AVX512 __builtin_cpu_supports("x86-64-v4")
#else
#define AVX2 "avx2"
#define AVX512 "avx512f"
#define HAS_AVX512 __builtin_cpu_supports("avx512f")
#endif

/* Compiles a function once for each instruction set; the loader takes the one for this processor. */
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__)
#define MULTIVERSIONED __attribute__((target_clones(AVX512, AVX2, "default")))
#else
#define MULTIVERSIONED
#endif
#define UNROLL _Pragma("GCC unroll 12")
#define INLINE static inline __attribute__((always_inline))

/* Calls FUNCTION with STATE in every thread of a team. */
INLINE void run_parallel(void (*function)(void *), void *state, parallel_fn parallel, unsigned threads) {
    if (threads > 1)
        parallel(function, state, threads, 0);
    else
        function(state);
}

/* Gives out the numbers from *NEXT on, COUNT at a time, each to one thread. */
INLINE ptrdiff_t take_next(ptrdiff_t *next, ptrdiff_t count) {
    return __atomic_fetch_add(next, count, __ATOMIC_RELAXED);
}

/* --- numbers --- */

INLINE ptrdiff_t min(ptrdiff_t x, ptrdiff_t y) { return x < y ? x : y; }

INLINE void clamp_max(f32x8 *x, float bound) {
    const u32x8 is_above = (u32x8)(*x > (f32x8){0} + bound);
    *x = (f32x8)((is_above & (u32x8)((f32x8){0} + bound)) | (~is_above & (u32x8)*x));
}

/* e^x for x from -88 to 88, as 2^n times Cephes' polynomial of the rest: right to the last bits.  NaN stays NaN. */
INLINE void exp_f32x8(f32x8 *to) {
    const float rounding = 12582912.0f; /* 1.5 · 2^23: adding it leaves no bits for a fraction */
    f32x8 x = *to, n = x * 1.44269504f + rounding;
    const u32x8 exponent = (u32x8)n << 23;
    n -= rounding;
    x = x - n * 0.693359375f + n * 2.12194440e-4f;
    f32x8 p = 1.9875691500e-4f * x + 1.3981999507e-3f;
    p = p * x + 8.3334519073e-3f;
    p = p * x + 4.1665795894e-2f;
    p = p * x + 1.6666665459e-1f;
    p = p * x + 5.0000001201e-1f;
    p = p * x * x + x + 1.0f;
    *to = (f32x8)((u32x8)p + exponent);
}

/* e^x for x from -infinity to 0; the result is at least e^-87. */
INLINE void exp_nonpositive(f32x8 *x) {
    *x = -*x;
    clamp_max(x, 87.0f);
    *x = -*x;
    exp_f32x8(x);
}

/* float32 bits to bfloat16 bits, in the lower half of each word: to the nearest, ties to even. */
INLINE void round_to_bfloat16(u32x8 *bits) { *bits = (*bits + 0x7fff + (*bits >> 16 & 1)) >> 16; }

INLINE u16x8 to_bfloat16(f32x8 x) {
    u32x8 bits = (u32x8)x;
    round_to_bfloat16(&bits);
    return __builtin_convertvector(bits, u16x8);
}

/* LANES elements from index AT on. */
INLINE void load(f32x8 *x, const void *from, ptrdiff_t at, int is_bfloat16) {
    if (is_bfloat16)
        *x = (f32x8)(__builtin_convertvector(*(const u16x8 *)((const uint16_t *)from + at), u32x8) << 16);
    else
        *x = *(const f32x8 *)((const float *)from + at);
}

INLINE void store(void *to, ptrdiff_t at, f32x8 x, int is_bfloat16) {
    if (is_bfloat16)
        *(u16x8 *)((uint16_t *)to + at) = to_bfloat16(x);
    else
        *(f32x8 *)((float *)to + at) = x;
}
