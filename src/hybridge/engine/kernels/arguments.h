/* The arguments of the functions that the library exports: each takes a pointer to its struct.

   arguments.py has the same structs for ctypes, and tests/engine/kernels/test_arguments.py compares the two.
   tensor_pointers.py checks every pointer before a struct gets it.

   Images are channels-last, with a batch of one.  A row stride is the number of elements from one row of an image to
   the next.  Where an argument may be float32 or bfloat16, it is a void pointer, and a flag says which. */

#pragma once

#include <stddef.h>

/* GOMP_parallel of OpenMP: calls a function in every thread of a team. */
typedef void (*parallel_fn)(void (*)(void *), void *, unsigned threads, unsigned flags);

/* sgemm of BLAS, which stores matrices by columns. */
typedef void (*sgemm_fn)(const char *, const char *, const int *, const int *, const int *, const float *,
                         const float *, const int *, const float *, const int *, const float *, float *, const int *);

struct input_transform_args {
    const float *input;     /* padded image */
    void *transformed;      /* (products, tile_rows · tile_columns, channels), is written */
    parallel_fn parallel;
    ptrdiff_t input_row_stride;
    ptrdiff_t tile_rows, tile_columns; /* how many tiles there are, down and across */
    ptrdiff_t channels;
    int tile_height, tile_width; /* rows and columns that a tile reads */
    int transformed_is_bfloat16;
    unsigned threads;
};

struct output_transform_args {
    const float *products; /* (products, tile_rows · tile_columns, channels) */
    const float *bias;     /* (channels), or NULL */
    const void *residual;  /* an image that is added, or NULL */
    void *output;          /* image, is written */
    float *means, *variances; /* of the output: (blocks of rows, channels), are written; or NULL */
    ptrdiff_t *written;       /* (blocks of rows), zeros: positions of each that are written */
    parallel_fn parallel;
    ptrdiff_t residual_row_stride, output_row_stride;
    ptrdiff_t tile_rows, tile_columns;
    ptrdiff_t output_rows, output_columns; /* what tiles compute beyond these is dropped */
    ptrdiff_t channels;
    ptrdiff_t row_block; /* rows whose mean and variance are computed together */
    int tile_height, tile_width;
    int residual_is_bfloat16, output_is_bfloat16;
    unsigned threads;
};

struct batched_gemm_args {
    const void *input;   /* (batch, positions, in_channels) */
    const void *filters; /* panels, see gemm.h; of the input's dtype */
    float *output;       /* (batch, positions, out_channels), is written */
    parallel_fn parallel;
    ptrdiff_t batch, positions, in_channels, out_channels;
    ptrdiff_t k_block; /* products that are added one after another, see gemm.h */
    int input_is_bfloat16;
    unsigned threads;
};

struct batched_gemm_blas_args {
    const float *input;   /* (batch, positions, in_channels) */
    const float *filters; /* (batch, in_channels, out_channels) */
    float *output;        /* (batch, positions, out_channels), is written */
    sgemm_fn sgemm;
    parallel_fn parallel;
    ptrdiff_t batch;
    int positions, in_channels, out_channels; /* BLAS takes int */
    unsigned threads;
};

struct conv_winograd_args {
    const float *input;   /* padded image */
    const void *filters;  /* transformed filters in panels, see gemm.h */
    const float *bias;    /* (out_channels), or NULL */
    const void *residual; /* an image that is added, or NULL */
    void *output;         /* image, is written */
    void *workspace;      /* workspace_bytes for every thread */
    float *means, *variances; /* of the output: (blocks of rows, channels), are written; or NULL */
    ptrdiff_t *written;       /* (blocks of rows), zeros: positions of each that are written */
    parallel_fn parallel;
    ptrdiff_t workspace_bytes;
    ptrdiff_t input_row_stride, residual_row_stride, output_row_stride;
    ptrdiff_t tile_rows, tile_columns; /* how many tiles there are, down and across */
    ptrdiff_t output_rows, output_columns;
    ptrdiff_t in_channels, out_channels;
    ptrdiff_t products;   /* of a tile */
    ptrdiff_t tile_block; /* tiles that a thread takes through all steps at a time */
    ptrdiff_t k_block;
    ptrdiff_t row_block; /* rows whose mean and variance are computed together */
    int tile_height, tile_width; /* rows and columns that a tile reads */
    int filters_are_bfloat16, residual_is_bfloat16, output_is_bfloat16;
    unsigned threads;
};

struct conv_direct_args {
    const void *input;    /* padded image, of the filters' dtype */
    const void *filters;  /* (panels, kernel, kernel · in_channels, PANEL) */
    const float *bias;    /* (out_channels), or NULL */
    const void *residual; /* an image that is added, or NULL */
    void *output;         /* image, is written */
    float *means, *variances; /* of the output: (blocks of rows, channels), are written; or NULL */
    ptrdiff_t *written;       /* (blocks of rows), zeros: positions of each that are written */
    parallel_fn parallel;
    ptrdiff_t input_row_stride, residual_row_stride, output_row_stride;
    ptrdiff_t output_rows, output_columns;
    ptrdiff_t in_channels, out_channels;
    ptrdiff_t kernel, stride;
    ptrdiff_t k_block;
    ptrdiff_t row_block; /* rows whose mean and variance are computed together */
    int filters_are_bfloat16, residual_is_bfloat16, output_is_bfloat16;
    unsigned threads;
};

struct conv_dot_args {
    const float *input;   /* padded image */
    const float *filters; /* (kernel, out_channels, kernel · in_channels) */
    const float *bias;    /* (out_channels), or NULL */
    float *output;        /* with strides of its own, is written */
    parallel_fn parallel;
    ptrdiff_t input_row_stride;
    ptrdiff_t output_channel_stride, output_row_stride, output_column_stride;
    ptrdiff_t output_rows, output_columns;
    ptrdiff_t in_channels, out_channels;
    ptrdiff_t kernel, stride;
    unsigned threads;
};

struct scale_shift_silu_args {
    const void *input;          /* image */
    const float *scale, *shift; /* (channels) */
    void *output;               /* image, is written */
    parallel_fn parallel;
    ptrdiff_t input_row_stride, output_row_stride;
    ptrdiff_t rows, columns, channels;
    int input_is_bfloat16, output_is_bfloat16;
    unsigned threads;
};

struct channel_moments_args {
    const void *input;        /* image */
    float *means, *variances; /* (blocks of rows, channels), are written */
    parallel_fn parallel;
    ptrdiff_t input_row_stride;
    ptrdiff_t rows, columns, channels;
    ptrdiff_t row_block; /* rows whose mean and variance are computed together */
    int input_is_bfloat16;
    unsigned threads;
};

struct pack_values_args {
    const float *rows; /* (positions, channels) */
    void *values;      /* (key blocks, channels, key_block), is written */
    parallel_fn parallel;
    ptrdiff_t first; /* position of the first row */
    ptrdiff_t positions, channels, key_block;
    int values_are_bfloat16;
    unsigned threads;
};

struct attention_args {
    const float *queries;       /* (query_count, channels) */
    const void *keys;           /* (key_count, channels) */
    const void *values;         /* (key blocks, channels, key block) */
    float *output;              /* (query_count, channels), is written */
    void *query_panels;         /* (query panels, channels, PANEL) in the keys' dtype: workspace */
    float *accumulators;        /* (query panels, channels, PANEL): workspace */
    parallel_fn parallel;
    ptrdiff_t query_count, key_count, channels;
    ptrdiff_t k_block;
    float scale; /* of scores */
    int keys_are_bfloat16;
    unsigned threads;
};

int has_gemm(int is_bfloat16);
void batched_gemm(const struct batched_gemm_args *args);
void batched_gemm_blas(const struct batched_gemm_blas_args *args);
void input_transform(const struct input_transform_args *args);
void output_transform(const struct output_transform_args *args);
void conv_winograd(const struct conv_winograd_args *args);
void conv_direct(const struct conv_direct_args *args);
void conv_dot(const struct conv_dot_args *args);
void scale_shift_silu(const struct scale_shift_silu_args *args);
void channel_moments(const struct channel_moments_args *args);
void pack_values(const struct pack_values_args *args);
void attention(const struct attention_args *args);
