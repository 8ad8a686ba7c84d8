/* Products of fp32 matrices on AMX tiles, which multiply in bf16 and add in fp32; kernels.c includes this once.

   A number of fp32 is the sum of three of bf16, exactly. Of the nine products of the parts of two numbers six are
   added up, the smallest first; the other three are below 2^-24 of the whole, which is what fp32 rounds away (Henry,
   Tang and Heinecke 2019, arXiv 1904.06376). Tiles add up MOST_TERMS terms, and their sums are added up after that: a
   long sum loses fewer digits so.
   Numbers below 1e-31 lose their last digits, since tiles take what is below 1e-38 for zero; what is not finite, and a
   number above 3.39e38, makes sums that are not finite. */

#include <immintrin.h>

#define SIDE 16                               /* lines of a tile, and words of a line */
#define DEPTH 32                              /* terms that a product of two tiles sums up: two in a word */
#define APART (DEPTH / 2)                     /* how many terms further on the second one of a word is */
#define PARTS 3
#define TILE_WORDS (SIDE * SIDE)
#define LINE_BYTES 64
#define BLOCK (2 * SIDE)                      /* rows, and columns, that are worked on at once: four tiles of sums */
#define STEP_WORDS (2 * PARTS * TILE_WORDS)   /* of one factor of a block: two tiles in three parts */
#define MOST_TERMS 128                        /* of a block of rows: their parts are in the first cache (measured) */
#define MOST_COLUMNS 1024                     /* with as many terms: their parts are in the second cache (measured) */

typedef uint32_t words __attribute__((vector_size(64), aligned(4), may_alias));
typedef float floats __attribute__((vector_size(64), aligned(4), may_alias));

/* A factor: its lines are the rows of the first one or the columns of the second one. How far apart the numbers of two
   lines are, and those of two terms of a sum; one of the distances is 1. */
struct factor {
    const float *first;
    int64_t line, term;
};

/* Parts of two vectors of numbers, side by side in words. */
INLINE void split(floats low, floats high, words parts[PARTS]) {
    for (int part = 0; part < PARTS; part++) {
        const uint32_t half = part + 1 < PARTS ? 0x8000 : 0; /* rounds; the last part needs none */
        const words low_part = ((words)low + half) & 0xffff0000u, high_part = ((words)high + half) & 0xffff0000u;
        parts[part] = low_part >> 16 | high_part;
        low -= (floats)low_part;
        high -= (floats)high_part;
    }
}

INLINE void transpose(words tile[SIDE]) {
    static const words evens[4] = {
        {0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30},
        {0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29},
        {0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27},
        {0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23},
    };
#pragma GCC unroll 4
    for (int stage = 0; stage < 4; stage++) {
        const int size = 1 << stage; /* squares of this size change places across the diagonal */
#pragma GCC unroll 16
        for (int i = 0; i < SIDE; i++) {
            if (i & size) continue;
            const words above = tile[i], below = tile[i + size];
            tile[i] = __builtin_shuffle(above, below, evens[stage]);
            tile[i + size] = __builtin_shuffle(above, below, evens[stage] + (uint32_t)size);
        }
    }
}

/* The parts of a tile: its line i has SIDE numbers from first + i * line on, and as many from there + apart on. */
INLINE void pack_tile(const float *first, int64_t line, int64_t apart, uint32_t *to, int is_transposed) {
    words parts[SIDE][PARTS];
#pragma GCC unroll 16
    for (int i = 0; i < SIDE; i++) {
        const float *at = first + i * line;
        split(*(const floats *)at, *(const floats *)(at + apart), parts[i]);
    }
    for (int part = 0; part < PARTS; part++) {
        words tile[SIDE];
#pragma GCC unroll 16
        for (int i = 0; i < SIDE; i++) tile[i] = parts[i][part];
        if (is_transposed) transpose(tile);
#pragma GCC unroll 16
        for (int i = 0; i < SIDE; i++) *(words *)(to + part * TILE_WORDS + i * SIDE) = tile[i];
    }
}

/* The same of SIDE lines and DEPTH terms of a factor, or of as many as there are and zeros. Tiles of a first factor have
   a line for each of its lines, those of a second one a line for each word of terms. */
INLINE void pack_part(struct factor f, int64_t lines, int64_t terms, uint32_t *to, int is_second) {
    float padded[SIDE * DEPTH];
    if (lines < SIDE || terms < DEPTH) {
        memset(padded, 0, sizeof padded);
        for (int64_t line = 0; line < smaller(lines, SIDE); line++)
            for (int64_t term = 0; term < smaller(terms, DEPTH); term++)
                padded[line * DEPTH + term] = f.first[line * f.line + term * f.term];
        f = (struct factor){padded, DEPTH, 1};
    }
    if (f.term == 1)
        pack_tile(f.first, f.line, APART, to, is_second);
    else
        pack_tile(f.first, f.term, APART * f.term, to, !is_second);
}

/* Up to BLOCK lines of a factor, and up to MOST_TERMS terms. */
static void pack(struct factor f, int64_t lines, int64_t terms, uint32_t *to, int is_second) {
    for (int64_t term = 0; term < terms; term += DEPTH)
        for (int64_t line = 0; line < BLOCK; line += SIDE, to += PARTS * TILE_WORDS) {
            const struct factor part = {f.first + line * f.line + term * f.term, f.line, f.term};
            pack_part(part, lines - line, terms - term, to, is_second);
        }
}

#define LOAD_FIRST(part) \
    _tile_loadd(4, a + (part) * TILE_WORDS, LINE_BYTES); \
    _tile_loadd(5, a + (PARTS + (part)) * TILE_WORDS, LINE_BYTES)
#define LOAD_SECOND(part) \
    _tile_loadd(6, b + (part) * TILE_WORDS, LINE_BYTES); \
    _tile_loadd(7, b + (PARTS + (part)) * TILE_WORDS, LINE_BYTES)
#define ADD_PRODUCTS \
    _tile_dpbf16ps(0, 4, 6); \
    _tile_dpbf16ps(1, 4, 7); \
    _tile_dpbf16ps(2, 5, 6); \
    _tile_dpbf16ps(3, 5, 7)

/* out[BLOCK][BLOCK] = a . b */
INLINE void multiply_block(const uint32_t *a, const uint32_t *b, int64_t steps, float *out, int64_t out_row) {
    const int64_t out_bytes = out_row * (int64_t)sizeof *out;
    __asm__ volatile("" ::: "memory"); /* GCC does not know that tiles are loaded from memory: what they load is there */
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t step = 0; step < steps; step++, a += STEP_WORDS, b += STEP_WORDS) {
        LOAD_FIRST(2);
        LOAD_SECOND(0);
        ADD_PRODUCTS;
        LOAD_FIRST(1);
        ADD_PRODUCTS;
        LOAD_SECOND(1);
        ADD_PRODUCTS;
        LOAD_FIRST(0);
        ADD_PRODUCTS;
        LOAD_SECOND(2);
        ADD_PRODUCTS;
        LOAD_SECOND(0);
        ADD_PRODUCTS;
    }
    _tile_stored(0, out, out_bytes);
    _tile_stored(1, out + SIDE, out_bytes);
    _tile_stored(2, out + SIDE * out_row, out_bytes);
    _tile_stored(3, out + SIDE * out_row + SIDE, out_bytes);
}

/* The same for as many rows and columns as there are, or that added to out. */
static void multiply_part(const uint32_t *a, const uint32_t *b, int64_t steps, float *restrict out, int64_t out_row,
                          int64_t rows, int64_t columns, int is_added) {
    if (rows >= BLOCK && columns >= BLOCK && !is_added) {
        multiply_block(a, b, steps, out, out_row);
        return;
    }
    float sums[BLOCK][BLOCK];
    multiply_block(a, b, steps, sums[0], BLOCK);
    for (int64_t row = 0; row < smaller(rows, BLOCK); row++, out += out_row)
        for (int64_t column = 0; column < smaller(columns, BLOCK); column++)
            out[column] = sums[row][column] + (is_added ? out[column] : 0.0f);
}

/* All eight tiles have SIDE lines of LINE_BYTES. */
static const struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t line_bytes[16];
    uint8_t lines[16];
} configuration = {
    .palette = 1,
    .line_bytes = {LINE_BYTES, LINE_BYTES, LINE_BYTES, LINE_BYTES, LINE_BYTES, LINE_BYTES, LINE_BYTES, LINE_BYTES},
    .lines = {SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE},
};

/* out[rows][columns] = a[rows][terms] . b[terms][columns], or that added to out. Strides of a and b are those of their
   rows and columns: in each of them one is 1. */
void multiply_amx(const float *a, int64_t a_row, int64_t a_column, const float *b, int64_t b_row, int64_t b_column,
                  float *out, int64_t out_row, int64_t rows, int64_t columns, int64_t terms, int64_t is_added) {
    static _Thread_local uint32_t packed_a[MOST_TERMS / DEPTH * STEP_WORDS] __attribute__((aligned(LINE_BYTES)));
    static _Thread_local uint32_t packed_b[MOST_COLUMNS / BLOCK][MOST_TERMS / DEPTH * STEP_WORDS]
        __attribute__((aligned(LINE_BYTES)));
    _tile_loadconfig(&configuration);
    for (int64_t term = 0; term < terms; term += MOST_TERMS)
        for (int64_t left = 0; left < columns; left += MOST_COLUMNS) {
            const int64_t n = smaller(terms - term, MOST_TERMS), steps = (n + DEPTH - 1) / DEPTH;
            const int64_t right = smaller(left + MOST_COLUMNS, columns);
            for (int64_t column = left; column < right; column += BLOCK) {
                const struct factor from = {b + term * b_row + column * b_column, b_column, b_row};
                pack(from, columns - column, n, packed_b[(column - left) / BLOCK], 1);
            }
            for (int64_t row = 0; row < rows; row += BLOCK) {
                const struct factor from = {a + row * a_row + term * a_column, a_row, a_column};
                pack(from, rows - row, n, packed_a, 0);
                for (int64_t column = left; column < right; column += BLOCK)
                    multiply_part(packed_a, packed_b[(column - left) / BLOCK], steps, out + row * out_row + column,
                                  out_row, rows - row, columns - column, is_added || term);
            }
        }
    _tile_release();
}
