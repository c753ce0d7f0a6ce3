// Matrix products with one dimension of at most SMALL: decoding, where reading (or writing) the weights is all the work.
// Nothing is packed; weights are read or written once, in the order of memory. The few rows are floats, widened if need be.
#ifndef ZOO_SMALL_H
#define ZOO_SMALL_H
#include "gemm.h"

enum { SMALL = 8 };

static void widen(const operand *m, int64_t rows, int64_t depth, float *out) { // codes to floats
    for (int64_t i = 0; i < rows; i++, out += depth) {
        float scale = m->scale[m->row ? m->row[i] : i];
        widened(m->type, row_of(m->type, m, i), depth, out);
        for (int64_t k = 0; k < depth; k += VL) store_n(out + k, scale * load_n(out + k, depth - k), depth - k);
    }
}

static __attribute__((noinline)) vec last_of(int type, const char *row, int64_t k, int64_t n) { // apart: it is inlined often
    return type == F32     ? load_n_as(F32, row, k, n)
           : type == BF16  ? load_n_as(BF16, row, k, n)
           : type == F16   ? load_n_as(F16, row, k, n)
           : type == INT8  ? load_n_as(INT8, row, k, n)
                           : load_n_as(TERNARY, row, k, n);
}

static __attribute__((noinline)) vec sums_of(vec *acc) { // lane i is the sum of acc[i]
    UNROLL for (int half = VL / 2; half; half /= 2)
        UNROLL for (int q = 0; q < half; q++) acc[q] = zip(acc[q], acc[q + half], 0) + zip(acc[q], acc[q + half], 1);
    return acc[0];
}

// C = A B^T, both with k contiguous: VL / m rows of B at once, so that VL sums end in one register; m is
// the number of rows rounded up, and the extra ones repeat the last
INLINE void dots(const int m, const int type, int rows, int64_t n, int64_t depth, const operand *a, const operand *b, const result *c) {
    const int wide = VL / m;
    const float *x[SMALL];
    for (int i = 0; i < m; i++) x[i] = (const float *)row_of(F32, a, i < rows ? i : rows - 1);
    for (int64_t j = 0; j < n; j += wide) {
        const char *w[VL];
        UNROLL for (int q = 0; q < wide; q++) w[q] = row_of(type, b, j + q < n ? j + q : n - 1);
        vec acc[VL];
        UNROLL for (int q = 0; q < VL; q++) acc[q] = (vec){0};
        int64_t k = 0;
        for (; k + VL <= depth; k += VL) {
            vec xv[SMALL];
            UNROLL for (int i = 0; i < m; i++) xv[i] = load(x[i] + k);
            UNROLL for (int q = 0; q < wide; q++) {
                vec wv = load_as(type, w[q], k);
                // the same place in the next rows, a line at a time and into the second cache: the first has too few misses open
                if (bytes_of(type, k) % 64 == 0) __builtin_prefetch(w[q] + bytes_of(type, k + wide * b->ld), 0, 2);
                UNROLL for (int i = 0; i < m; i++) acc[i * wide + q] += xv[i] * wv;
            }
        }
        if (k < depth)
            for (int q = 0; q < wide; q++)
                for (int i = 0; i < m; i++)
                    acc[i * wide + q] += last_of(F32, (const char *)x[i], k, depth - k) * last_of(type, w[q], k, depth - k);
        acc[0] = sums_of(acc);
        const float *sums = (const float *)acc;
        for (int i = 0; i < rows; i++) {
            float *row = (float *)c_row(c, i) + j, scale = c->scale ? c->scale[i] : 1.0f, value[VL];
            for (int q = 0; q < wide; q++) value[q] = sums[i * wide + q] * scale;
            if (type == INT8 || type == TERNARY)
                for (int q = 0; q < wide && j + q < n; q++) value[q] *= b->scale[j + q];
            if (c->bias)
                for (int q = 0; q < wide && j + q < n; q++) value[q] += c->bias[j + q];
            if (j + wide <= n && c->add)
                for (int q = 0; q < wide; q++) row[q] += value[q];
            else
                for (int q = 0; q < wide && j + q < n; q++) row[q] = c->add ? row[q] + value[q] : value[q];
        }
    }
}

// C += A B with B's rows contiguous: four of them at a time are added into the rows of C
INLINE void axpys(const int m, const int type, int64_t n, int64_t depth, const operand *a, const operand *b, const result *c) {
    float *out[SMALL];
    const float *x[SMALL];
    for (int i = 0; i < m; i++) out[i] = (float *)c_row(c, i), x[i] = (const float *)row_of(F32, a, i);
    for (int i = 0; i < m && !c->add; i++)
        if (c->bias) memcpy(out[i], c->bias, 4 * n);
        else memset(out[i], 0, 4 * n);
    for (int64_t k = 0; k < depth; k += 4) {
        const char *w[4];
        float s[SMALL][4];
        for (int q = 0; q < 4; q++) {
            w[q] = row_of(type, b, k + q < depth ? k + q : depth - 1);
            for (int i = 0; i < m; i++) s[i][q] = k + q < depth ? x[i][k + q] * (c->scale ? c->scale[i] : 1.0f) : 0;
        }
        for (int64_t j = 0; j < n; j += VL) {
            vec wv[4];
            UNROLL for (int q = 0; q < 4; q++)
                wv[q] = load_n_as(type, w[q], j, n - j), __builtin_prefetch(w[q] + bytes_of(type, j + 4 * b->ld));
            UNROLL for (int i = 0; i < m; i++) {
                vec total = load_n(out[i] + j, n - j);
                UNROLL for (int q = 0; q < 4; q++) total += s[i][q] * wv[q];
                store_n(out[i] + j, total, n - j);
            }
        }
    }
}

// C = A^T B over `depth` <= SMALL rows: sums of outer products, written row by row
INLINE void outer(const int depth, const int type, int64_t m, int64_t n, const operand *a, const operand *b, const result *c, int stream) {
    const float *x[SMALL], *y[SMALL];
    for (int k = 0; k < depth; k++) x[k] = (const float *)row_of(F32, a, k), y[k] = (const float *)row_of(F32, b, k);
    for (int64_t i = 0; i < m; i++) {
        char *row = c->p + bytes_of(type, (c->row ? c->row[i] : i) * c->ld);
        for (int64_t j = 0; j < n; j += VL) {
            vec total = {0};
            if (type == F32 && c->add) total = load_n((float *)row + j, n - j);
            UNROLL for (int k = 0; k < depth; k++) total += x[k][i] * load_n(y[k] + j, n - j);
            if (stream) stream_as(type, row + bytes_of(type, j), total);
            else store_n_as(type, row, j, total, n - j);
        }
    }
}

// the same rows as floats; those that are not are widened into *scratch, which moves on
static operand as_floats(const operand *m, int64_t rows, int64_t length, float **scratch) {
    if (m->type == F32) return *m;
    operand wide = matrix(*scratch, F32, length, NULL, m->k_major);
    for (int64_t i = 0; i < rows; i++, *scratch += length) widened(m->type, row_of(m->type, m, i), length, *scratch);
    return wide;
}

// one function a type and kind of product: their sizes together would be more than a compiler likes in one
#define SIZE(M, CALL, TYPE) case M: CALL(M, TYPE); break;
#define EVERY_SIZE(CALL, TYPE) \
    SIZE(1, CALL, TYPE) SIZE(2, CALL, TYPE) SIZE(3, CALL, TYPE) SIZE(4, CALL, TYPE) \
    SIZE(5, CALL, TYPE) SIZE(6, CALL, TYPE) SIZE(7, CALL, TYPE) SIZE(8, CALL, TYPE)
#define SOME_SIZES(CALL, TYPE) \
    SIZE(1, CALL, TYPE) SIZE(2, CALL, TYPE) case 3: SIZE(4, CALL, TYPE) case 5: case 6: case 7: SIZE(8, CALL, TYPE)
#define PRODUCT(NAME, SIZES, CALL, SMALLEST, TYPE) \
    static __attribute__((noinline)) void NAME##_##TYPE(int64_t m, int64_t n, int64_t depth, const operand *a, const operand *b, \
                                                        const result *c) { \
        switch (SMALLEST) { SIZES(CALL, TYPE) } \
    }
#define DOTS(M, TYPE) dots(M, TYPE, (int)m, n, depth, a, b, c)
#define AXPYS(M, TYPE) axpys(M, TYPE, n, depth, a, b, c)
#define OUTER(D, TYPE) outer(D, TYPE, m, n, a, b, c, can_stream(c, n))
PRODUCT(dots, SOME_SIZES, DOTS, m, F32)
PRODUCT(dots, SOME_SIZES, DOTS, m, BF16)
PRODUCT(dots, SOME_SIZES, DOTS, m, F16)
PRODUCT(dots, SOME_SIZES, DOTS, m, INT8)
PRODUCT(dots, SOME_SIZES, DOTS, m, TERNARY)
PRODUCT(axpys, EVERY_SIZE, AXPYS, m, F32)
PRODUCT(axpys, EVERY_SIZE, AXPYS, m, BF16)
PRODUCT(axpys, EVERY_SIZE, AXPYS, m, F16)
PRODUCT(outer, EVERY_SIZE, OUTER, depth, F32)
PRODUCT(outer, EVERY_SIZE, OUTER, depth, BF16)
PRODUCT(outer, EVERY_SIZE, OUTER, depth, F16)

typedef void (*product_of)(int64_t, int64_t, int64_t, const operand *, const operand *, const result *);

// Takes the products that fit, with SMALL rows of A, of C and (in A^T B) of B as floats in the workspace at most; returns
// whether it did.
static int small_gemm(int64_t m, int64_t n, int64_t depth, operand a, operand b, const result *out, float *workspace) {
    static const product_of all_dots[] = {dots_F32, dots_BF16, dots_F16, dots_INT8, dots_TERNARY};
    static const product_of all_axpys[] = {axpys_F32, axpys_BF16, axpys_F16}, all_outer[] = {outer_F32, outer_BF16, outer_F16};
    const int outer = a.k_major && b.k_major;
    result c = *out;
    if ((outer ? depth : m) > SMALL || (outer ? c.scale || c.bias : a.k_major)) return 0;
    if (both_pairs(&a, &b) && !outer && (m > SMALL / 2 || (!b.k_major && 128 * m > depth))) return 0; // multiplied faster packed
    if (a.type != F32 || b.type != F32 || c.type != F32)
        if (SMALL * (outer ? m + n : n + depth) > MC * KC + NC * KC) return 0;
    a = as_floats(&a, outer ? depth : m, outer ? m : depth, &workspace);
    if (outer) b = as_floats(&b, depth, n, &workspace);
    else if (c.type != F32) c = (result){(char *)workspace, n, NULL, c.scale, c.bias, F32, 0, 0};
    (outer ? all_outer[c.type] : b.k_major ? all_axpys[b.type] : all_dots[b.type])(m, n, depth, &a, &b, &c);
    if (out->type != c.type)
        for (int64_t i = 0; i < m; i++) narrow(out->type, (const float *)c_row(&c, i), n, c_row(out, i));
    return 1;
}
#endif
