/* Causal softmax attention in fp32 on one CPU core, forward and backward, for heads of a multiple of 32 numbers.

   Written for GCC on x86-64, where it takes AVX-512 or AVX2; elsewhere there is none and torch attends. */

#include <math.h>
#include <stddef.h>
#include <stdlib.h>

#include "exponential.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)

#define TILE 32
#define ROW_GAP 16 /* rows of scores a power of two apart would share the lines of a cache */

struct shape {
    int64_t batch, length, heads, groups, width;
};

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t padded_length(int64_t length) { return (length + TILE - 1) / TILE * TILE; }

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
#define NAME(function) function##_avx512
#define LANES 16
#define ROWS 8
#include "attention_tiles.h"
#undef NAME
#undef LANES
#undef ROWS
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#define NAME(function) function##_avx2
#define LANES 8
#define ROWS 4
#include "attention_tiles.h"
#undef NAME
#undef LANES
#undef ROWS
#pragma GCC pop_options

static int has_avx512(void) { return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl"); }

int64_t has_attention(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

static float *make_scratch(const struct shape *s, int64_t panels, int64_t tiles, int64_t scores) {
    const int64_t padded = padded_length(s->length);
    const int64_t count = (panels * padded + tiles * TILE) * s->width + scores * TILE * (padded + ROW_GAP);
    return aligned_alloc(64, (size_t)count * sizeof(float));
}

/* q and k [B, T, H + G, C] in one array, k after q; v with a stride of its own; out [B, T, H, C]; log_sums [B, T, H].
   Returns 0, or 1 if there is no memory. */
int64_t attention(const float *q, int64_t q_stride, const float *v, int64_t v_stride, float *out, float *log_sums,
                  int64_t batch, int64_t length, int64_t heads, int64_t groups, int64_t width) {
    const struct shape s = {batch, length, heads, groups, width};
    float *scratch = make_scratch(&s, 2, 2, 1);
    if (!scratch) return 1;
    (has_avx512() ? forward_avx512 : forward_avx2)(&s, q, q_stride, q + heads * width, v, v_stride, out, log_sums, scratch);
    free(scratch);
    return 0;
}

/* Gradients of q and k [B, T, H + G, C] and of v [B, T, G, C] from that of out. */
int64_t attention_backward(const float *grad, const float *q, int64_t q_stride, const float *v, int64_t v_stride,
                           const float *out, const float *log_sums, float *grad_qk, float *grad_v, int64_t batch,
                           int64_t length, int64_t heads, int64_t groups, int64_t width) {
    const struct shape s = {batch, length, heads, groups, width};
    float *scratch = make_scratch(&s, 5, 3, 2);
    if (!scratch) return 1;
    (has_avx512() ? backward_avx512 : backward_avx2)(&s, grad, q, q_stride, q + heads * width, v, v_stride, out, log_sums, grad_qk,
         grad_qk + heads * width, grad_v, scratch);
    free(scratch);
    return 0;
}

#else

int64_t has_attention(void) { return 0; }

#endif
