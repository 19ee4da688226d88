/* Compiles the kernels of one file once for each instruction set that there are matrix products for.

   Before including this, define

   KERNELS_FILE             the file with the kernels, which defines NAME(worker), the function that threads run

   Both files that this includes use

   NAME(what)               the name of a function for this instruction set
   TARGET                   the instruction set, for the attribute target
   SUM_VECTOR               a vector of sums, which are floats
   FACTOR_VECTOR            a vector of factors, a word each
   LOAD_SCALAR(address)     a factor of the input, to be broadcast
   FMA(sums, x, y)          sums + x · y, word by word
   WORD_ELEMENTS            elements in a word of 32 bits */

#include "gemm.h"

#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && __GNUC__ >= 11
#include <immintrin.h>

typedef float f32x16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t u32x16 __attribute__((vector_size(64), aligned(4), may_alias));

/* float32, for processors with AVX-512. */
#define NAME(what) what##_avx512
#define TARGET AVX512
#define SUM_VECTOR f32x16
#define FACTOR_VECTOR f32x16
#define LOAD_SCALAR(address) *(const float *)(address)
#define FMA(sums, x, y) (sums) + (x) * (y) /* the compiler fuses them */
#define WORD_ELEMENTS 1
#include "gemm_isa.h"
#include KERNELS_FILE
#undef NAME
#undef TARGET
#undef SUM_VECTOR
#undef FACTOR_VECTOR
#undef LOAD_SCALAR
#undef FMA
#undef WORD_ELEMENTS

/* Pairs of bfloat16, for processors that multiply these. */
#define NAME(what) what##_avx512_bf16
#define TARGET AVX512 ",avx512bf16"
#define SUM_VECTOR f32x16
#define FACTOR_VECTOR u32x16
#define LOAD_SCALAR(address) *(address)
#define FMA(sums, x, y) (f32x16) _mm512_dpbf16_ps((__m512)(sums), (__m512bh)(x), (__m512bh)(y))
#define WORD_ELEMENTS 2
#include "gemm_isa.h"
#include KERNELS_FILE
#undef NAME
#undef TARGET
#undef SUM_VECTOR
#undef FACTOR_VECTOR
#undef LOAD_SCALAR
#undef FMA
#undef WORD_ELEMENTS

INLINE int is_supported(int is_bfloat16) {
    return HAS_AVX512 && (!is_bfloat16 || __builtin_cpu_supports("avx512bf16"));
}
#else
/* Never called: has_gemm says so. */
static void worker_avx512(void *state) { (void)state; }
#define worker_avx512_bf16 worker_avx512
INLINE int is_supported(int is_bfloat16) { return (void)is_bfloat16, 0; }
#endif

/* Runs the kernels of KERNELS_FILE for float32 or bfloat16 in a team of threads. */
INLINE void run_for_isa(int is_bfloat16, void *state, parallel_fn parallel, unsigned threads) {
    run_parallel(is_bfloat16 ? worker_avx512_bf16 : worker_avx512, state, parallel, threads);
}
