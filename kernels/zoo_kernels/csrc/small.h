// Matrix products with one dimension of at most SMALL: decoding, where reading (or writing) the weights is all the work.
// Nothing is packed; weights are read or written once, in the order of memory.
#ifndef ZOO_SMALL_H
#define ZOO_SMALL_H
#include "gemm.h"

enum { SMALL = 8 };

typedef int8_t bvec __attribute__((vector_size(VL), aligned(1)));

INLINE const uint8_t *codes_of(const operand *m, const int bits, int64_t i) {
    return (const uint8_t *)m->p + (m->row ? m->row[i] : i) * m->ld * (bits ? bits : 32) / 8;
}

// VL weights from k, as floats without their scale
INLINE vec weights(const int bits, const uint8_t *row, int64_t k) {
    if (bits == 0) return load((const float *)row + k);
#ifdef __AVX512F__ // gcc 12 makes scalar code of the generic conversion
    if (bits == 8) return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(row + k))));
#else
    if (bits == 8) return __builtin_convertvector(__builtin_convertvector(*(const bvec *)(row + k), ivec), vec);
#endif
    uint32_t word = 0; // ternary: weight i in bits 2i, 2i + 1, plus one
    memcpy(&word, row + k / 4, VL / 4);
    ivec shifts;
    UNROLL for (int i = 0; i < VL; i++) shifts[i] = 2 * i;
    return __builtin_convertvector(((((ivec){0} + (int)word) >> shifts) & 3) - 1, vec);
}

// the last n < VL of them, then zeros; apart, because it would be inlined very often
static __attribute__((noinline)) vec last_weights(int bits, const uint8_t *row, int64_t k, int64_t n) {
    vec v = {0};
    for (int64_t i = 0; i < n; i++)
        v[i] = bits == 0   ? ((const float *)row)[k + i]
               : bits == 8 ? ((const int8_t *)row)[k + i]
                           : (float)((row[(k + i) / 4] >> (k + i) % 4 * 2) & 3) - 1;
    return v;
}

static void widen(const operand *m, int64_t rows, int64_t depth, float *out) { // codes to floats
    for (int64_t i = 0; i < rows; i++, out += depth) {
        const uint8_t *row = codes_of(m, m->bits, i);
        float scale = m->scale[m->row ? m->row[i] : i];
        int64_t k = 0;
        for (; k + VL <= depth; k += VL) store(out + k, scale * (m->bits == 8 ? weights(8, row, k) : weights(2, row, k)));
        if (k < depth) store_n(out + k, scale * last_weights(m->bits, row, k, depth - k), depth - k);
    }
}

INLINE float *c_row(const result *c, int64_t i) { return c->p + (c->row ? c->row[i] : i) * c->ld; }

static __attribute__((noinline)) vec sums_of(vec *acc) { // lane i is the sum of acc[i]
    UNROLL for (int half = VL / 2; half; half /= 2)
        UNROLL for (int q = 0; q < half; q++) acc[q] = zip(acc[q], acc[q + half], 0) + zip(acc[q], acc[q + half], 1);
    return acc[0];
}

// C = A B^T, both with k contiguous: VL / m rows of B at once, so that VL sums end in one register; m is
// the number of rows rounded up, and the extra ones repeat the last
INLINE void dots(const int m, const int bits, int rows, int64_t n, int64_t depth, const operand *a, const operand *b, const result *c) {
    const int wide = VL / m;
    const float *x[SMALL];
    for (int i = 0; i < m; i++) x[i] = row_of(a, i < rows ? i : rows - 1);
    for (int64_t j = 0; j < n; j += wide) {
        const uint8_t *w[VL];
        UNROLL for (int q = 0; q < wide; q++) w[q] = codes_of(b, bits, j + q < n ? j + q : n - 1);
        vec acc[VL];
        UNROLL for (int q = 0; q < VL; q++) acc[q] = (vec){0};
        int64_t k = 0;
        for (; k + VL <= depth; k += VL) {
            vec xv[SMALL];
            UNROLL for (int i = 0; i < m; i++) xv[i] = load(x[i] + k);
            UNROLL for (int q = 0; q < wide; q++) {
                vec wv = weights(bits, w[q], k);
                // the same place in the next rows
                __builtin_prefetch(w[q] + (k + wide * b->ld) * (bits ? bits : 32) / 8);
                UNROLL for (int i = 0; i < m; i++) acc[i * wide + q] += xv[i] * wv;
            }
        }
        if (k < depth)
            for (int q = 0; q < wide; q++)
                for (int i = 0; i < m; i++)
                    acc[i * wide + q] += last_weights(0, (const uint8_t *)x[i], k, depth - k) * last_weights(bits, w[q], k, depth - k);
        acc[0] = sums_of(acc);
        const float *sums = (const float *)acc;
        for (int i = 0; i < rows; i++) {
            float *row = c_row(c, i) + j, scale = c->scale ? c->scale[i] : 1.0f, value[VL];
            for (int q = 0; q < wide; q++) value[q] = sums[i * wide + q] * scale;
            if (bits)
                for (int q = 0; q < wide && j + q < n; q++) value[q] *= b->scale[j + q];
            if (j + wide <= n && c->add)
                for (int q = 0; q < wide; q++) row[q] += value[q];
            else
                for (int q = 0; q < wide && j + q < n; q++) row[q] = c->add ? row[q] + value[q] : value[q];
        }
    }
}

// C += A B with B's rows contiguous: four of them at a time are added into the rows of C
INLINE void axpys(const int m, int64_t n, int64_t depth, const operand *a, const operand *b, const result *c) {
    float *out[SMALL];
    const float *x[SMALL];
    for (int i = 0; i < m; i++) out[i] = c_row(c, i), x[i] = row_of(a, i);
    if (!c->add)
        for (int i = 0; i < m; i++) memset(out[i], 0, 4 * n);
    for (int64_t k = 0; k < depth; k += 4) {
        const float *w[4];
        float s[SMALL][4];
        for (int q = 0; q < 4; q++) {
            w[q] = row_of(b, k + q < depth ? k + q : depth - 1);
            for (int i = 0; i < m; i++) s[i][q] = k + q < depth ? x[i][k + q] * (c->scale ? c->scale[i] : 1.0f) : 0;
        }
        for (int64_t j = 0; j < n; j += VL) {
            vec wv[4];
            UNROLL for (int q = 0; q < 4; q++) wv[q] = load_n(w[q] + j, n - j), __builtin_prefetch(w[q] + j + 4 * b->ld);
            UNROLL for (int i = 0; i < m; i++) {
                vec total = load_n(out[i] + j, n - j);
                UNROLL for (int q = 0; q < 4; q++) total += s[i][q] * wv[q];
                store_n(out[i] + j, total, n - j);
            }
        }
    }
}

// C = A^T B over `depth` <= SMALL rows: sums of outer products, written row by row
INLINE void outer(const int depth, int64_t m, int64_t n, const operand *a, const operand *b, const result *c, int stream) {
    const float *x[SMALL], *y[SMALL];
    for (int k = 0; k < depth; k++) x[k] = row_of(a, k), y[k] = row_of(b, k);
    for (int64_t i = 0; i < m; i++) {
        float *row = c_row(c, i);
        for (int64_t j = 0; j < n; j += VL) {
            vec total = {0};
            if (c->add) total = load_n(row + j, n - j);
            UNROLL for (int k = 0; k < depth; k++) total += x[k][i] * load_n(y[k] + j, n - j);
            if (stream) store_past_caches(row + j, total);
            else store_n(row + j, total, n - j);
        }
    }
}

// Takes the products that fit; returns whether it did.
static int small_gemm(int64_t m, int64_t n, int64_t depth, const operand *a, const operand *b, const result *c) {
#define EVERY_SIZE(SIZE, CALL) \
    switch (SIZE) { \
    case 1: CALL(1); return 1; \
    case 2: CALL(2); return 1; \
    case 3: CALL(3); return 1; \
    case 4: CALL(4); return 1; \
    case 5: CALL(5); return 1; \
    case 6: CALL(6); return 1; \
    case 7: CALL(7); return 1; \
    case 8: CALL(8); return 1; \
    }
#define SOME_SIZES(SIZE, CALL) \
    switch (SIZE) { \
    case 1: CALL(1); return 1; \
    case 2: CALL(2); return 1; \
    case 3: case 4: CALL(4); return 1; \
    case 5: case 6: case 7: case 8: CALL(8); return 1; \
    }
#define DOTS(M) dots(M, 0, (int)m, n, depth, a, b, c)
#define DOTS_8(M) dots(M, 8, (int)m, n, depth, a, b, c)
#define DOTS_2(M) dots(M, 2, (int)m, n, depth, a, b, c)
#define AXPYS(M) axpys(M, n, depth, a, b, c)
#define OUTER(D) outer(D, m, n, a, b, c, can_stream(c, n))
    if (a->k_major && b->k_major && !c->scale) EVERY_SIZE(depth, OUTER)
    else if (!a->k_major && b->k_major) EVERY_SIZE(m, AXPYS)
    else if (b->bits == 8) SOME_SIZES(m, DOTS_8)
    else if (b->bits == 2) SOME_SIZES(m, DOTS_2)
    else if (!a->k_major && !b->k_major) SOME_SIZES(m, DOTS)
    return 0;
#undef EVERY_SIZE
#undef SOME_SIZES
#undef DOTS
#undef DOTS_8
#undef DOTS_2
#undef AXPYS
#undef OUTER
}
#endif
