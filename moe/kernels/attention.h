/* Causal softmax attention, forward and backward, for heads of a multiple of 32 numbers. kernels.c includes this for
   every width of vectors, having defined

   NAME(f)  the function's name for this width
   LANES    floats in a vector
   ROWS     rows of a product that are worked on at once: ROWS x 2 vectors of sums fit into the registers

   and elementwise.h, whose sums it uses.
   A tile is 32 queries of one head; its scores against all earlier keys stay in a cache. Three products do the work:
   scores = queries . keys^T, mixed = weights . values, and gathered += weights^T . rows. */

#ifndef TILE
#define TILE 32
#define ROW_GAP 16 /* rows of scores a power of two apart would share the lines of a cache */

struct shape {
    int64_t batch, length, heads, groups, width;
};

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t padded_length(int64_t length) { return (length + TILE - 1) / TILE * TILE; }

static float *make_scratch(const struct shape *s, int64_t panels, int64_t tiles, int64_t scores) {
    const int64_t padded = padded_length(s->length);
    const int64_t count = (panels * padded + tiles * TILE) * s->width + scores * TILE * (padded + ROW_GAP);
    return aligned_alloc(64, (size_t)count * sizeof(float));
}
#endif

typedef float NAME(vector) __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));
#define VECTOR NAME(vector)
#define PANEL (2 * LANES)

/* Rows of a head side by side, and zeros up to the padded number of rows. */
INLINE void NAME(take)(const float *restrict from, int64_t stride, float *restrict to, int64_t rows, int64_t padded,
                       int64_t width) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t c = 0; c < width; c += LANES)
            *(VECTOR *)(to + row * width + c) = *(const VECTOR *)(from + row * stride + c);
    memset(to + rows * width, 0, (size_t)((padded - rows) * width) * sizeof(float));
}

/* The way back. */
INLINE void NAME(give)(const float *restrict from, float *restrict to, int64_t stride, int64_t rows, int64_t width) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t c = 0; c < width; c += LANES)
            *(VECTOR *)(to + row * stride + c) = *(const VECTOR *)(from + row * width + c);
}

/* Rows of a head as panels of PANEL keys, transposed: [T / PANEL][C][PANEL], zeros past the last key. */
INLINE void NAME(pack)(const float *restrict from, int64_t stride, float *restrict panels, int64_t length,
                       int64_t padded, int64_t width) {
    for (int64_t first = 0; first < padded; first += PANEL)
        for (int64_t i = 0; i < PANEL; i++)
            for (int64_t c = 0; c < width; c++)
                panels[first * width + c * PANEL + i] = first + i < length ? from[(first + i) * stride + c] : 0.0f;
}

/* The heart of all products: out[ROWS][PANEL] = a[ROWS][depth] . b[depth][PANEL], or that added to out. The numbers of
   a row of a are a_step apart. */
INLINE void NAME(product)(const float *restrict a, int64_t a_row, int64_t a_step, const float *restrict b,
                          int64_t b_row, float *restrict out, int64_t out_row, int64_t depth, int is_added) {
    VECTOR sums[ROWS][2];
    for (int i = 0; i < ROWS; i++) {
        sums[i][0] = is_added ? *(const VECTOR *)(out + i * out_row) : (VECTOR){0};
        sums[i][1] = is_added ? *(const VECTOR *)(out + i * out_row + LANES) : (VECTOR){0};
    }
    for (int64_t k = 0; k < depth; k++) {
        const VECTOR left = *(const VECTOR *)(b + k * b_row), right = *(const VECTOR *)(b + k * b_row + LANES);
        for (int i = 0; i < ROWS; i++) {
            const float factor = a[i * a_row + k * a_step];
            sums[i][0] += factor * left;
            sums[i][1] += factor * right;
        }
    }
    for (int i = 0; i < ROWS; i++) {
        *(VECTOR *)(out + i * out_row) = sums[i][0];
        *(VECTOR *)(out + i * out_row + LANES) = sums[i][1];
    }
}

/* scores[TILE][n] = tile[TILE][width] . panels */
INLINE void NAME(score)(const float *restrict tile, const float *restrict panels, float *restrict scores,
                        int64_t stride, int64_t n, int64_t width) {
    for (int64_t key = 0; key < n; key += PANEL)
        for (int64_t row = 0; row < TILE; row += ROWS)
            NAME(product)(tile + row * width, width, 1, panels + key * width, PANEL, scores + row * stride + key,
                          stride, width, 0);
}

/* mixed[TILE][width] = weights[TILE][n] . rows[n][width] */
INLINE void NAME(mix)(const float *restrict weights, int64_t stride, const float *restrict rows, float *restrict mixed,
                      int64_t n, int64_t width) {
    for (int64_t c = 0; c < width; c += PANEL)
        for (int64_t row = 0; row < TILE; row += ROWS)
            NAME(product)(weights + row * stride, stride, 1, rows + c, width, mixed + row * width + c, width, n, 0);
}

/* gathered[n][width] += weights[TILE][n]^T . tile[TILE][width] */
INLINE void NAME(gather)(const float *restrict weights, int64_t stride, const float *restrict tile,
                         float *restrict gathered, int64_t n, int64_t width) {
    for (int64_t key = 0; key < n; key += ROWS)
        for (int64_t c = 0; c < width; c += PANEL)
            NAME(product)(weights + key, 1, stride, tile + c, width, gathered + key * width + c, width, TILE, 1);
}

/* Scores of one query to weights exp(scale * score - shift), zeros for the keys from n_seen on; returns their sum. */
INLINE float NAME(weigh)(float *restrict scores, int64_t n_seen, int64_t n, float scale, float shift) {
    float lanes[SUM_LANES] = {0.0f};
    int64_t key = 0;
    for (; key + SUM_LANES <= n_seen; key += SUM_LANES)
        for (int lane = 0; lane < SUM_LANES; lane++) {
            scores[key + lane] = exponential(scale * scores[key + lane] - shift);
            lanes[lane] += scores[key + lane];
        }
    const int left = (int)(n_seen - key);
    if (left)
        for (int lane = 0; lane < SUM_LANES; lane++) {
            const float weight = exponential(scale * scores[key + lane] - shift);
            const float seen = lane < left ? weight : 0.0f;
            scores[key + lane] = seen;
            lanes[lane] += seen;
        }
    for (key += left ? SUM_LANES : 0; key < n; key++) scores[key] = 0.0f;
    return NAME(sum)(lanes);
}

static void NAME(forward)(const struct shape *s, const float *q, int64_t q_stride, const float *k, const float *v,
                          int64_t v_stride, float *out, float *log_sums, float *scratch) {
    const int64_t length = s->length, width = s->width, padded = padded_length(length), row = padded + ROW_GAP;
    const float scale = 1.0f / sqrtf((float)width);
    float *panels = scratch, *values = panels + padded * width, *tile = values + padded * width,
          *mixed = tile + TILE * width, *scores = mixed + TILE * width;
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t group = 0; group < s->groups; group++) {
            NAME(take)(v + b * length * v_stride + group * width, v_stride, values, length, length, width);
            NAME(pack)(k + b * length * q_stride + group * width, q_stride, panels, length, padded, width);
            for (int64_t h = group * s->heads / s->groups; h < (group + 1) * s->heads / s->groups; h++)
                for (int64_t first = 0; first < length; first += TILE) {
                    const int64_t rows = smaller(TILE, length - first), keys = first + rows, n = first + TILE;
                    const int64_t at = b * length + first;
                    NAME(take)(q + at * q_stride + h * width, q_stride, tile, rows, TILE, width);
                    NAME(score)(tile, panels, scores, row, n, width);
                    float totals[TILE];
                    for (int64_t i = 0; i < TILE; i++) {
                        const int64_t seen = smaller(first + i + 1, keys);
                        const float shift = scale * NAME(largest)(scores + i * row, seen);
                        totals[i] = NAME(weigh)(scores + i * row, seen, n, scale, shift);
                        if (i < rows) log_sums[(at + i) * s->heads + h] = shift + logf(totals[i]);
                    }
                    NAME(mix)(scores, row, values, mixed, keys, width);
                    for (int64_t i = 0; i < rows; i++) {
                        const float share = 1.0f / totals[i];
                        float *restrict to = out + ((at + i) * s->heads + h) * width;
                        for (int64_t c = 0; c < width; c++) to[c] = share * mixed[i * width + c];
                    }
                }
        }
}

static void NAME(backward)(const struct shape *s, const float *grad, const float *q, int64_t q_stride, const float *k,
                           const float *v, int64_t v_stride, const float *out, const float *log_sums, float *grad_q,
                           float *grad_k, float *grad_v, float *scratch) {
    const int64_t length = s->length, width = s->width, padded = padded_length(length), row = padded + ROW_GAP;
    const int64_t grad_stride = (s->heads + s->groups) * width;
    const float scale = 1.0f / sqrtf((float)width);
    float *key_panels = scratch, *value_panels = key_panels + padded * width,
          *keys_dense = value_panels + padded * width, *key_sums = keys_dense + padded * width,
          *value_sums = key_sums + padded * width, *tile = value_sums + padded * width,
          *grad_tile = tile + TILE * width, *mixed = grad_tile + TILE * width, *weights = mixed + TILE * width,
          *grad_weights = weights + TILE * row;
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t group = 0; group < s->groups; group++) {
            const float *keys_of = k + b * length * q_stride + group * width;
            NAME(take)(keys_of, q_stride, keys_dense, length, length, width);
            NAME(pack)(keys_of, q_stride, key_panels, length, padded, width);
            NAME(pack)(v + b * length * v_stride + group * width, v_stride, value_panels, length, padded, width);
            memset(key_sums, 0, (size_t)(2 * padded * width) * sizeof(float));
            for (int64_t h = group * s->heads / s->groups; h < (group + 1) * s->heads / s->groups; h++)
                for (int64_t first = 0; first < length; first += TILE) {
                    const int64_t rows = smaller(TILE, length - first), keys = first + rows, n = first + TILE;
                    const int64_t at = b * length + first;
                    NAME(take)(q + at * q_stride + h * width, q_stride, tile, rows, TILE, width);
                    NAME(take)(grad + (at * s->heads + h) * width, s->heads * width, grad_tile, rows, TILE, width);
                    NAME(score)(tile, key_panels, weights, row, n, width);
                    NAME(score)(grad_tile, value_panels, grad_weights, row, n, width);
                    for (int64_t i = 0; i < TILE; i++) {
                        const int64_t seen = i < rows ? first + i + 1 : 0;
                        const int64_t which = (at + smaller(i, rows - 1)) * s->heads + h;
                        const float *restrict mine = out + which * width;
                        const float along = NAME(dot)(mine, grad_tile + i * width, width);
                        NAME(weigh)(weights + i * row, seen, n, scale, log_sums[which]);
                        const float *restrict weight = weights + i * row;
                        float *restrict to = grad_weights + i * row;
                        for (int64_t key = 0; key < n; key++) to[key] = weight[key] * (to[key] - along) * scale;
                    }
                    NAME(gather)(weights, row, grad_tile, value_sums, n, width);
                    NAME(gather)(grad_weights, row, tile, key_sums, n, width);
                    NAME(mix)(grad_weights, row, keys_dense, mixed, keys, width);
                    NAME(give)(mixed, grad_q + at * grad_stride + h * width, grad_stride, rows, width);
                }
            NAME(give)(key_sums, grad_k + b * length * grad_stride + group * width, grad_stride, length, width);
            NAME(give)(value_sums, grad_v + (b * length * s->groups + group) * width, s->groups * width, length, width);
        }
}

/* q and k [B, T, H + G, C] in one array, k after q; v with a stride of its own; out [B, T, H, C]; log_sums [B, T, H].
   Returns 0, or 1 if there is no memory. */
int64_t NAME(attention)(const float *q, int64_t q_stride, const float *v, int64_t v_stride, float *out, float *log_sums,
                        int64_t batch, int64_t length, int64_t heads, int64_t groups, int64_t width) {
    const struct shape s = {batch, length, heads, groups, width};
    float *scratch = make_scratch(&s, 2, 2, 1);
    if (!scratch) return 1;
    NAME(forward)(&s, q, q_stride, q + heads * width, v, v_stride, out, log_sums, scratch);
    free(scratch);
    return 0;
}

/* Gradients of q and k [B, T, H + G, C] and of v [B, T, G, C] from that of out. */
int64_t NAME(attention_backward)(const float *grad, const float *q, int64_t q_stride, const float *v, int64_t v_stride,
                                 const float *out, const float *log_sums, float *grad_qk, float *grad_v, int64_t batch,
                                 int64_t length, int64_t heads, int64_t groups, int64_t width) {
    const struct shape s = {batch, length, heads, groups, width};
    float *scratch = make_scratch(&s, 5, 3, 2);
    if (!scratch) return 1;
    NAME(backward)(&s, grad, q, q_stride, q + heads * width, v, v_stride, out, log_sums, grad_qk,
                   grad_qk + heads * width, grad_v, scratch);
    free(scratch);
    return 0;
}

#undef VECTOR
#undef PANEL
