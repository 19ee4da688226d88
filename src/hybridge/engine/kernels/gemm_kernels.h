/* Batched matrix products for one instruction set; for_each_isa.h includes this. */

__attribute__((target(TARGET))) static void NAME(worker)(void *state) {
    struct gemm *w = state;
    struct gemm_task task;
    while (take_gemm_task(w, &task)) NAME(gemm_task)(w, task);
}
