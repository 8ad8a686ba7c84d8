/* The elementwise work of a training step; kernels.c includes this for every width of vectors. Sums run in sixteen
   lanes whatever the width, and in double precision over rows. */

#ifndef SUM_LANES
#define SUM_LANES 16
#define CHUNK 64     /* numbers of a row between two calls on memory: it works while the processor does (measured) */
#define ROWS_AHEAD 2 /* how far before its use a row is called from memory (measured) */
#define FLOATS_PER_LINE 16
INLINE int64_t end_of_chunk(int64_t start, int64_t width) { return start + CHUNK < width ? start + CHUNK : width; }
#endif

INLINE float NAME(sum)(float lanes[SUM_LANES]) {
    for (int half = SUM_LANES / 2; half; half /= 2)
        for (int lane = 0; lane < half; lane++) lanes[lane] += lanes[lane + half];
    return lanes[0];
}

INLINE float NAME(largest)(const float *numbers, int64_t n) {
    float lanes[SUM_LANES];
    for (int lane = 0; lane < SUM_LANES; lane++) lanes[lane] = numbers[0];
    int64_t i = 0;
    for (; i + SUM_LANES <= n; i += SUM_LANES)
        for (int lane = 0; lane < SUM_LANES; lane++)
            lanes[lane] = numbers[i + lane] > lanes[lane] ? numbers[i + lane] : lanes[lane];
    const int left = (int)(n - i);
    for (int lane = 0; lane < SUM_LANES; lane++) {
        const float number = lane < left ? numbers[i + lane] : lanes[lane];
        lanes[lane] = number > lanes[lane] ? number : lanes[lane];
    }
    for (int half = SUM_LANES / 2; half; half /= 2)
        for (int lane = 0; lane < half; lane++)
            lanes[lane] = lanes[lane + half] > lanes[lane] ? lanes[lane + half] : lanes[lane];
    return lanes[0];
}

INLINE float NAME(dot)(const float *restrict a, const float *restrict b, int64_t n) {
    float lanes[SUM_LANES] = {0.0f};
    int64_t i = 0;
    for (; i + SUM_LANES <= n; i += SUM_LANES)
        for (int lane = 0; lane < SUM_LANES; lane++) lanes[lane] += a[i + lane] * b[i + lane];
    for (int lane = 0; i < n; i++, lane++) lanes[lane] += a[i] * b[i];
    return NAME(sum)(lanes);
}

/* Writes past the caches: what is read only much later does not push out what is needed now. */
INLINE void NAME(copy_out)(float *restrict to, const float *restrict from, int64_t n) {
    if (n % 4 == 0 && (uintptr_t)to % 16 == 0)
        for (int64_t i = 0; i < n; i += 4) _mm_stream_ps(to + i, _mm_loadu_ps(from + i));
    else
        memcpy(to, from, (size_t)n * sizeof *to);
}

/* act = silu(gate) * up for rows of [gate, up]; the rows are also copied to kept unless that is null. */
void NAME(swiglu)(const float *restrict gate_up, float *restrict act, float *restrict kept, int64_t rows,
                  int64_t width) {
    for (int64_t row = 0; row < rows; row++) {
        const float *restrict gate = gate_up + row * 2 * width, *restrict up = gate + width;
        float *restrict out = act + row * width;
        for (int64_t start = 0; start < width; start += CHUNK) {
            const int64_t end = end_of_chunk(start, width);
            for (int64_t i = start; i < end; i++) out[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
            if (!kept) continue;
            float *restrict kept_gate = kept + row * 2 * width + start;
            NAME(copy_out)(kept_gate, gate + start, end - start);
            NAME(copy_out)(kept_gate + width, up + start, end - start);
        }
    }
    _mm_sfence();
}

/* act again, and the gradient of [gate, up] from that of act. */
void NAME(swiglu_backward)(const float *restrict gate_up, const float *restrict grad_act, float *restrict act,
                           float *restrict grad_gate_up, int64_t grad_stride, int64_t rows, int64_t width) {
    for (int64_t row = 0; row < rows; row++) {
        const float *restrict gate = gate_up + row * 2 * width, *restrict up = gate + width;
        const float *restrict grad = grad_act + row * width;
        float *restrict out = act + row * width;
        float *restrict grad_gate = grad_gate_up + row * grad_stride, *restrict grad_up = grad_gate + width;
        const int64_t ahead = row + ROWS_AHEAD < rows ? ROWS_AHEAD * 2 * width : 0;
        for (int64_t start = 0; start < width; start += CHUNK) {
            const int64_t end = end_of_chunk(start, width);
            for (int64_t i = start; i < end; i += FLOATS_PER_LINE) {
                __builtin_prefetch(gate + ahead + i, 0, 2);
                __builtin_prefetch(up + ahead + i, 0, 2);
            }
            for (int64_t i = start; i < end; i++) {
                const float sigmoid = 1.0f / (1.0f + exponential(-gate[i])), silu = gate[i] * sigmoid;
                out[i] = silu * up[i];
                grad_up[i] = grad[i] * silu;
                grad_gate[i] = grad[i] * up[i] * (sigmoid + silu * (1.0f - sigmoid));
            }
        }
    }
}

/* out = x * scale * weight with scale = 1 / rms(x), a scale per row. */
void NAME(rms_norm)(const float *restrict x, const float *restrict weight, float *restrict out, float *restrict scales,
                    int64_t rows, int64_t width, float eps) {
    for (int64_t row = 0; row < rows; row++) {
        const float *restrict in = x + row * width;
        float *restrict to = out + row * width;
        const float scale = 1.0f / sqrtf(NAME(dot)(in, in, width) / (float)width + eps);
        scales[row] = scale;
        for (int64_t i = 0; i < width; i++) to[i] = in[i] * scale * weight[i];
    }
}

/* The gradient of x, and that of weight added to grad_weight. */
void NAME(rms_norm_backward)(const float *restrict grad, const float *restrict x, const float *restrict weight,
                             const float *restrict scales, float *restrict grad_x, double *restrict grad_weight,
                             int64_t rows, int64_t width) {
    for (int64_t row = 0; row < rows; row++) {
        const float *restrict in = x + row * width, *restrict from = grad + row * width;
        float *restrict to = grad_x + row * width;
        const float scale = scales[row];
        for (int64_t i = 0; i < width; i++) {
            grad_weight[i] += from[i] * in[i] * scale;
            to[i] = from[i] * weight[i];
        }
        const float projection = NAME(dot)(to, in, width) * scale * scale / (float)width;
        for (int64_t i = 0; i < width; i++) to[i] = (to[i] - in[i] * projection) * scale;
    }
}

/* Each head of size 2 half: scaled to unit rms, weighted, and turned by the angles of its row's position. */
void NAME(normalise_and_rotate)(const float *restrict x, int64_t stride, const float *restrict weight,
                                const float *restrict cosines, const float *restrict sines, float *restrict out,
                                float *restrict scales, int64_t rows, int64_t length, int64_t heads, int64_t half,
                                float eps) {
    for (int64_t row = 0; row < rows; row++) {
        const float *restrict cosine = cosines + row % length * half, *restrict sine = sines + row % length * half;
        for (int64_t head = 0; head < heads; head++) {
            const float *restrict first = x + row * stride + head * 2 * half, *restrict second = first + half;
            const float *restrict weight_1 = weight + head * 2 * half, *restrict weight_2 = weight_1 + half;
            float *restrict to = out + (row * heads + head) * 2 * half;
            const float scale = 1.0f / sqrtf(NAME(dot)(first, first, 2 * half) / (float)(2 * half) + eps);
            scales[row * heads + head] = scale;
            for (int64_t i = 0; i < half; i++) {
                const float a = first[i] * scale * weight_1[i], b = second[i] * scale * weight_2[i];
                to[i] = a * cosine[i] - b * sine[i];
                to[i + half] = b * cosine[i] + a * sine[i];
            }
        }
    }
}

/* The gradient of x, and that of weight added to grad_weight. */
void NAME(normalise_and_rotate_backward)(const float *restrict grad, int64_t grad_stride, const float *restrict x,
                                         int64_t stride, const float *restrict weight, const float *restrict cosines,
                                         const float *restrict sines, const float *restrict scales,
                                         float *restrict grad_x, int64_t grad_x_stride, double *restrict grad_weight,
                                         int64_t rows, int64_t length, int64_t heads, int64_t half) {
    for (int64_t row = 0; row < rows; row++) {
        const float *restrict cosine = cosines + row % length * half, *restrict sine = sines + row % length * half;
        for (int64_t head = 0; head < heads; head++) {
            const float *restrict in = x + row * stride + head * 2 * half;
            const float *restrict from = grad + row * grad_stride + head * 2 * half;
            const float *restrict weights = weight + head * 2 * half;
            float *restrict to = grad_x + row * grad_x_stride + head * 2 * half;
            double *restrict sums = grad_weight + head * 2 * half;
            const float scale = scales[row * heads + head];
            for (int64_t i = 0; i < half; i++) {
                to[i] = from[i] * cosine[i] + from[i + half] * sine[i];
                to[i + half] = from[i + half] * cosine[i] - from[i] * sine[i];
            }
            for (int64_t i = 0; i < 2 * half; i++) {
                sums[i] += to[i] * in[i] * scale;
                to[i] *= weights[i];
            }
            const float projection = NAME(dot)(to, in, 2 * half) * scale * scale / (float)(2 * half);
            for (int64_t i = 0; i < 2 * half; i++) to[i] = (to[i] - in[i] * projection) * scale;
        }
    }
}

/* Cross-entropies of rows of logits, which become their gradient: softmax minus one at the target.
   Returns how many rows were done: fewer than all if a target is no word. */
int64_t NAME(cross_entropy)(float *restrict logits, int64_t stride, const int64_t *restrict targets,
                            float *restrict losses, int64_t rows, int64_t words) {
    for (int64_t row = 0; row < rows; row++) {
        if (targets[row] < 0 || targets[row] >= words) return row;
        float *restrict at = logits + row * stride;
        const float highest = NAME(largest)(at, words), wanted = at[targets[row]];
        float sums[SUM_LANES] = {0.0f};
        int64_t i = 0;
        for (; i + SUM_LANES <= words; i += SUM_LANES)
            for (int lane = 0; lane < SUM_LANES; lane++) {
                at[i + lane] = exponential(at[i + lane] - highest);
                sums[lane] += at[i + lane];
            }
        for (; i < words; i++) {
            at[i] = exponential(at[i] - highest);
            sums[0] += at[i];
        }
        const float total = NAME(sum)(sums), share = 1.0f / total;
        for (i = 0; i < words; i++) at[i] *= share;
        at[targets[row]] -= 1.0f;
        losses[row] = highest - wanted + logf(total); /* the difference of near logits is exact */
    }
    return rows;
}

/* Gradients of the experts' rows and of their shares in a token's sum, from the gradients of the tokens. */
void NAME(gradient_of_rows)(const float *restrict grad, const float *restrict out, const int64_t *restrict tokens,
                            const float *restrict shares, float *restrict grad_rows, float *restrict grad_shares,
                            int64_t rows, int64_t width) {
    for (int64_t row = 0; row < rows; row++) {
        const float *restrict from = grad + tokens[row] * width;
        float *restrict to = grad_rows + row * width;
        grad_shares[row] = NAME(dot)(from, out + row * width, width);
        for (int64_t i = 0; i < width; i++) to[i] = shares[row] * from[i];
    }
}
