// Single-precision packed GEMM for the pieces of one expert: rows gathered while packing, results scattered while storing.
#ifndef ZOO_GEMM_H
#define ZOO_GEMM_H
#include "vec.h"

#if defined(__AVX512F__)
enum { NV = 2, MR = 14 }; // 28 of 32 registers accumulate
#else
enum { NV = 2, MR = 6 };
#endif
enum { NR = VL * NV, KC = 512, MC = 16 * MR, NC = 512 };

// element (lane i, k) is p[row[i] * ld + k], or p[row[k] * ld + i] if k_major; row == NULL means the identity
typedef struct {
    const float *p;
    int64_t ld;
    const int64_t *row;
    int k_major;
    int bits;           // 8 or 2: p points at codes of that many bits (small.h), 0: at floats
    const float *scale; // of row[i], for codes
    int64_t size;       // floats of a dense matrix, 0: unknown
} operand;

// C row i is p[row[i] * ld ...], multiplied by scale[i] if given, added or stored
typedef struct {
    float *p;
    int64_t ld;
    const int64_t *row;
    const float *scale;
    int add;    // to what is there, instead of overwriting it
    int stream; // written past the caches, because nobody reads it soon
} result;

INLINE operand floats(const float *p, int64_t ld, const int64_t *row, int k_major) {
    return (operand){p, ld, row, k_major, 0, NULL, 0};
}
INLINE const float *row_of(const operand *m, int64_t i) { return m->p + (m->row ? m->row[i] : i) * m->ld; }

INLINE void transpose(vec *r) {
    UNROLL for (int stage = 1; stage < VL; stage *= 2) {
        vec t[VL];
        UNROLL for (int i = 0; i < VL / 2; i++) {
            t[2 * i] = zip(r[i], r[i + VL / 2], 0);
            t[2 * i + 1] = zip(r[i], r[i + VL / 2], 1);
        }
        UNROLL for (int i = 0; i < VL; i++) r[i] = t[i];
    }
}

// Packs lanes [first, first + lanes) and k in [k0, k0 + depth) as dst[k * width + lane]; lanes beyond are zero if width
// is a multiple of VL, otherwise width == lanes and each store runs over into the next k: in order, so all ends well.
static void pack_panel(const operand *m, int64_t first, int lanes, int width, int64_t k0, int64_t depth, float *dst) {
    if (m->k_major) {
        for (int64_t k = 0; k < depth; k++, dst += width) {
            const float *src = row_of(m, k0 + k) + first;
            if (lanes == NR && width == NR)
                UNROLL for (int j = 0; j < NV; j++) store(dst + j * VL, load(src + j * VL));
            else if (lanes == MR)
                memcpy(dst, src, 4 * MR);
            else if (lanes == MR - 1)
                memcpy(dst, src, 4 * (MR - 1));
            else
                for (int i = 0; i < width; i++) dst[i] = i < lanes ? src[i] : 0;
        }
        return;
    }
    static const float zeros[VL];
    for (int block = 0; block < width; block += VL) {
        const float *src[VL];
        for (int i = 0; i < VL; i++) src[i] = block + i < lanes ? row_of(m, first + block + i) + k0 : NULL;
        float *out = dst + block;
        int64_t k = 0;
        for (; k + VL <= depth; k += VL) {
            vec r[VL];
            UNROLL for (int i = 0; i < VL; i++) r[i] = load(src[i] ? src[i] + k : zeros);
            transpose(r);
            UNROLL for (int i = 0; i < VL; i++) store(out + (k + i) * width, r[i]);
        }
        int here = width - block < VL ? width - block : VL;
        for (; k < depth; k++)
            for (int i = 0; i < here; i++) out[k * width + i] = src[i] ? src[i][k] : 0;
    }
}

// C (m x n) = A B over `depth`, A packed, B's rows `ldb` apart; fetches two cache lines a step from `ahead`
INLINE void micro(const int m, int64_t depth, const float *a, const float *b, int64_t ldb, float *const *c, const float *scale, int n,
                  int add, int stream, const char *ahead, int64_t step) {
    vec acc[MR][NV];
    UNROLL for (int i = 0; i < m; i++) UNROLL for (int j = 0; j < NV; j++) acc[i][j] = (vec){0};
    if (add) UNROLL for (int i = 0; i < m; i++) UNROLL for (int j = 0; j < NV; j++) __builtin_prefetch(c[i] + j * VL, 1);
    for (int64_t k = 0; k < depth; k++, a += m, b += ldb, ahead += step) {
        __builtin_prefetch(ahead, 0, 2), __builtin_prefetch(ahead + 64, 0, 2);
        vec bv[NV];
        UNROLL for (int j = 0; j < NV; j++) bv[j] = load(b + j * VL);
        UNROLL for (int i = 0; i < m; i++) UNROLL for (int j = 0; j < NV; j++) acc[i][j] += a[i] * bv[j];
    }
    UNROLL for (int i = 0; i < m; i++) {
        if (scale) UNROLL for (int j = 0; j < NV; j++) acc[i][j] *= scale[i];
        if (n == NR && stream) {
            UNROLL for (int j = 0; j < NV; j++) store_past_caches(c[i] + j * VL, acc[i][j]);
        } else if (n == NR) {
            UNROLL for (int j = 0; j < NV; j++) store(c[i] + j * VL, add ? load(c[i] + j * VL) + acc[i][j] : acc[i][j]);
        } else {
            const float *value = (const float *)acc[i];
            for (int j = 0; j < n; j++) c[i][j] = add ? c[i][j] + value[j] : value[j];
        }
    }
}

static void tile(int m, int64_t depth, const float *a, const float *b, int64_t ldb, float *const *c, const float *scale, int n, int add,
                 int stream, const char *ahead, int64_t step) {
#define CASE(M) case M: micro(M, depth, a, b, ldb, c, scale, n, add, stream, ahead, step); return;
    switch (m) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#ifdef __AVX512F__
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#endif
    }
#undef CASE
}

enum { PACK_A = MC * KC + VL, PACK_B = NC * KC, PACK = PACK_A + PACK_B + 32 }; // floats of workspace

INLINE int can_stream(const result *c, int64_t n) {
    return c->stream && !c->add && n % VL == 0 && c->ld % VL == 0 && (uintptr_t)c->p % sizeof(vec) == 0;
}

// Where panel `first` of B lies before packing, as two cache lines per step of the k loop; elsewhere if it is irregular.
INLINE const char *panel_of(const operand *b, int64_t first, int64_t k0, int64_t depth, int64_t *step) {
    if (b->row || (!b->k_major && b->ld != depth)) return *step = 0, (const char *)b->p;
    *step = b->k_major ? 4 * b->ld : 4 * NR;
    return (const char *)(b->k_major ? b->p + k0 * b->ld + first : b->p + first * b->ld);
}

// Bytes to fetch of a matrix in each of so many steps: one or two cache lines.
INLINE int64_t share_of(const operand *m, int64_t steps) { return 4 * m->size > 64 * steps ? 128 : 64; }

// C = A B; `then` is the operand that is read next (NULL: unknown). What is fetched meanwhile: with few rows all of `then`,
// evenly and in the order of memory; otherwise the next panel of B, and at its end the first of `then`.
static void packed_gemm(int64_t m, int64_t n, int64_t depth, operand a, operand b, result c, float *workspace, const operand *then) {
    float *pack_b = workspace, *pack_a = workspace + PACK_B;
    int stream = depth <= KC && can_stream(&c, n);
    int few = m <= 2 * MR, in_place = few && b.k_major && !b.row; // packing B would cost more than reading it twice
    const char *next = NULL, *end = NULL;
    int64_t stride = 0;
    if (then && then->size && (few || depth <= 2 * MR)) {
        next = (const char *)then->p, end = next + 4 * then->size;
        stride = share_of(then, (n + NR - 1) / NR * depth * ((m + MR - 1) / MR));
    }
    for (int64_t j0 = 0; j0 < n; j0 += NC) {
        int64_t nc = min64(NC, n - j0);
        for (int64_t k0 = 0; k0 < depth; k0 += KC) {
            int64_t kc = min64(KC, depth - k0);
            for (int64_t i0 = 0; i0 < m; i0 += MC) {
                int64_t mc = min64(MC, m - i0), step = 0;
                int panels = (int)((mc + MR - 1) / MR), edge[MC / MR + 1]; // of nearly equal height
                for (int i = 0; i <= panels; i++) edge[i] = (int)(mc * i / panels);
                for (int i = 0; i < panels; i++) {
                    int lanes = edge[i + 1] - edge[i];
                    pack_panel(&a, i0 + edge[i], lanes, lanes, k0, kc, pack_a + edge[i] * kc);
                }
                for (int64_t j = 0; j < nc; j += NR) {
                    const char *ahead = (const char *)pack_b;
                    const float *panel = pack_b + j * kc;
                    int64_t ldb = NR;
                    if (in_place && nc - j >= NR) panel = b.p + k0 * b.ld + j0 + j, ldb = b.ld;
                    if (i0 == 0) {
                        if (panel == pack_b + j * kc) pack_panel(&b, j0 + j, (int)min64(NR, nc - j), NR, k0, kc, pack_b + j * kc);
                        if (next) {}
                        else if (j0 + j + NR < n) ahead = panel_of(&b, j0 + j + NR, k0, kc, &step);
                        else if (then) ahead = panel_of(then, 0, 0, then->k_major ? kc : then->ld, &step);
                    }
                    for (int i = 0; i < panels; i++) {
                        int64_t from = i0 + edge[i];
                        int lanes = edge[i + 1] - edge[i];
                        if (next) ahead = next, step = next < end ? stride : 0, next += step * kc;
                        float *rows[MR];
                        for (int r = 0; r < lanes; r++) rows[r] = c.p + (c.row ? c.row[from + r] : from + r) * c.ld + j0 + j;
                        tile(lanes, kc, pack_a + edge[i] * kc, panel, ldb, rows, c.scale ? c.scale + from : NULL,
                             (int)min64(NR, nc - j), c.add || k0, stream, ahead, step);
                        step = 0;
                    }
                }
            }
        }
    }
}
#endif
