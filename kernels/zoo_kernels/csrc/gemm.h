// Packed GEMM for the pieces of one expert: rows gathered while packing, results scattered while storing. What is packed are
// words of 32 bits: floats, widened if they are not, or (PAIRS) two bf16 of neighbouring k, which the machine multiplies and
// adds in one instruction.
#ifndef ZOO_GEMM_H
#define ZOO_GEMM_H
#include "element.h"

#if defined(__AVX512F__)
enum { NV = 2, MR = 14 }; // 28 of 32 registers accumulate
#else
enum { NV = 2, MR = 6 };
#endif
enum { NR = VL * NV, KC = 512, MC = 16 * MR, NC = 512 };
enum { PAIRS_OF_BF16 = 16 }; // a way to pack, beside the types F32, BF16 and F16

// element (lane i, k) is p[row[i] * ld + k], or p[row[k] * ld + i] if k_major; row == NULL means the identity
typedef struct {
    const char *p;
    int64_t ld;
    const int64_t *row;
    int type, k_major;
    const float *scale; // of row[i], for codes
    int64_t size;       // bytes of a dense matrix, 0: unknown
} operand;

// C row i is p[row[i] * ld ...], multiplied by scale[i] if given, after bias[0 ...] was added if given
typedef struct {
    char *p;
    int64_t ld;
    const int64_t *row;
    const float *scale, *bias;
    int type;
    int add;    // to what is there, instead of overwriting it; floats only
    int stream; // written past the caches, because nobody reads it soon
} result;

INLINE int both_pairs(const operand *a, const operand *b) { return HAVE_DOT && a->type == BF16 && b->type == BF16; }
INLINE operand matrix(const void *p, int type, int64_t ld, const int64_t *row, int k_major) {
    return (operand){p, ld, row, type, k_major, NULL, 0};
}
INLINE const char *row_of(const int type, const operand *m, int64_t i) {
    return m->p + bytes_of(type, (m->row ? m->row[i] : i) * m->ld);
}
INLINE char *c_row(const result *c, int64_t i) { return c->p + bytes_of(c->type, (c->row ? c->row[i] : i) * c->ld); }

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

// lanes [i, i + n) of word k of a k_major matrix with `total` rows
INLINE vec lanes_of(const int how, const operand *m, int64_t k, int64_t i, int64_t n, int64_t total) {
    if (how != PAIRS_OF_BF16) return load_n_as(how, row_of(how, m, k), i, n);
    wvec low = (wvec)load_n_as(BF16, row_of(BF16, m, 2 * k), i, n), high = {0};
    if (2 * k + 1 < total) high = (wvec)load_n_as(BF16, row_of(BF16, m, 2 * k + 1), i, n);
    return (vec)(low >> 16 | high);
}

// word k of a row that has `total` elements
INLINE float word_of(const int how, const char *row, int64_t k, int64_t total) {
    float word = 0;
    if (how != PAIRS_OF_BF16) return load_n_as(how, row, k, 1)[0];
    memcpy(&word, row + 4 * k, 2 * k + 1 < total ? 4 : 2);
    return word;
}

// Packs lanes [first, first + lanes) and words [k0, k0 + depth) as dst[k * width + lane]; lanes beyond are zero if width
// is a multiple of VL, otherwise width == lanes and each store runs over into the next k: in order, so all ends well.
INLINE void pack_panel(const int how, const operand *m, int64_t first, int lanes, int width, int64_t k0, int64_t depth,
                       int64_t total, float *dst) {
    const int type = how == PAIRS_OF_BF16 ? BF16 : how;
    if (m->k_major) {
        for (int64_t k = k0; k < k0 + depth; k++, dst += width) {
            if (lanes == NR && width == NR)
                UNROLL for (int j = 0; j < NR; j += VL) store(dst + j, lanes_of(how, m, k, first + j, VL, total));
            else if (how == F32 && lanes == MR)
                memcpy(dst, row_of(F32, m, k) + 4 * first, 4 * MR);
            else if (how == F32 && lanes == MR - 1)
                memcpy(dst, row_of(F32, m, k) + 4 * first, 4 * (MR - 1));
            else
                for (int j = 0; j < width; j += VL) store(dst + j, lanes_of(how, m, k, first + j, lanes > j ? lanes - j : 0, total));
        }
        return;
    }
    static const char zeros[4 * VL];
    const int64_t whole = how == PAIRS_OF_BF16 ? min64(depth, total / 2 - k0) : depth; // the last word may be half a one
    for (int block = 0; block < width; block += VL) {
        const char *src[VL];
        for (int i = 0; i < VL; i++) src[i] = block + i < lanes ? row_of(type, m, first + block + i) : NULL;
        float *out = dst + block;
        int64_t k = 0;
        for (; k + VL <= whole; k += VL) {
            vec r[VL];
            UNROLL for (int i = 0; i < VL; i++)
                r[i] = load_as(how == PAIRS_OF_BF16 ? F32 : how, src[i] ? src[i] : zeros, src[i] ? k0 + k : 0);
            transpose(r);
            UNROLL for (int i = 0; i < VL; i++) store(out + (k + i) * width, r[i]);
        }
        int here = width - block < VL ? width - block : VL;
        for (; k < depth; k++)
            for (int i = 0; i < here; i++) out[k * width + i] = src[i] ? word_of(how, src[i], k0 + k, total) : 0;
    }
}

static void pack(int dot, const operand *m, int64_t first, int lanes, int width, int64_t k0, int64_t depth, int64_t total, float *dst) {
    if (dot) pack_panel(PAIRS_OF_BF16, m, first, lanes, width, k0, depth, total, dst);
    else if (m->type == F32) pack_panel(F32, m, first, lanes, width, k0, depth, total, dst);
    else if (m->type == BF16) pack_panel(BF16, m, first, lanes, width, k0, depth, total, dst);
    else pack_panel(F16, m, first, lanes, width, k0, depth, total, dst);
}

INLINE vec multiply_add(const int dot, vec acc, float a, vec b) {
#ifdef __AVX512BF16__
    if (dot) return (vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)b, (__m512bh)splat(a));
#endif
    (void)dot;
    return acc + a * b;
}

static __attribute__((noinline)) void store_part(const int type, char *c, const float *value, int n, int add) {
    if (type != F32) narrow(type, value, n, c);
    else
        for (int j = 0; j < n; j++) ((float *)c)[j] = add ? ((float *)c)[j] + value[j] : value[j];
}

// Two cache lines, `gap` apart, that are fetched a step of the k loop.
typedef struct {
    const char *p;
    int64_t step, gap;
} fetch;

// C (m x n) = A B over `depth` words, A packed, B's rows `ldb` apart
INLINE void micro(const int m, const int dot, int64_t depth, const float *a, const float *b, int64_t ldb, char *const *c, const float *scale,
                  const float *bias, int n, const result *how, fetch ahead) {
    const int type = how->type, add = how->add, stream = how->stream;
    vec acc[MR][NV];
    UNROLL for (int j = 0; j < NV; j++) {
        vec start = {0};
        if (bias && n > j * VL) start = load_n(bias + j * VL, n - j * VL);
        UNROLL for (int i = 0; i < m; i++) acc[i][j] = start;
    }
    if (add) UNROLL for (int i = 0; i < m; i++) UNROLL for (int j = 0; j < NV; j++) __builtin_prefetch(c[i] + 4 * j * VL, 1);
    for (int64_t k = 0; k < depth; k++, a += m, b += ldb, ahead.p += ahead.step) {
        __builtin_prefetch(ahead.p, 0, 2), __builtin_prefetch(ahead.p + ahead.gap, 0, 2);
        vec bv[NV];
        UNROLL for (int j = 0; j < NV; j++) bv[j] = load(b + j * VL);
        UNROLL for (int i = 0; i < m; i++) UNROLL for (int j = 0; j < NV; j++) acc[i][j] = multiply_add(dot, acc[i][j], a[i], bv[j]);
    }
    UNROLL for (int i = 0; i < m; i++) {
        if (scale) UNROLL for (int j = 0; j < NV; j++) acc[i][j] *= scale[i];
        if (n == NR && type == F32) {
            UNROLL for (int j = 0; j < NV; j++) {
                float *out = (float *)c[i] + j * VL;
                if (stream) store_past_caches(out, acc[i][j]);
                else store(out, add ? load(out) + acc[i][j] : acc[i][j]);
            }
        } else if (dot && n == NR && type == BF16) {
            UNROLL for (int j = 0; j < NV; j++) {
                if (stream) stream_as(BF16, c[i] + 2 * j * VL, acc[i][j]);
                else store_n_as(BF16, c[i], j * VL, acc[i][j], VL);
            }
        } else {
            store_part(type, c[i], (const float *)acc[i], n, add);
        }
    }
}

#define CASE(M) case M: micro(M, dot, depth, a, b, ldb, c, scale, bias, n, how, *ahead); return;
#ifdef __AVX512F__
#define MORE_CASES CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#else
#define MORE_CASES
#endif
#define TILE(NAME, DOT) \
    static __attribute__((noinline)) void NAME(int m, int64_t depth, const float *a, const float *b, int64_t ldb, char *const *c, \
                                               const float *scale, const float *bias, int n, const result *how, const fetch *ahead) { \
        const int dot = DOT; \
        switch (m) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) MORE_CASES } \
    }
TILE(float_tile, 0)
TILE(dot_tile, HAVE_DOT)

INLINE int can_stream(const result *c, int64_t n) {
    return c->stream && !c->add && n % VL == 0 && c->ld % VL == 0 && (uintptr_t)c->p % (uintptr_t)bytes_of(c->type, VL) == 0;
}

// Where panel `first` of B lies before packing, as two cache lines per step of the k loop; elsewhere if it is irregular.
INLINE fetch panel_of(int dot, const operand *b, int64_t first, int64_t k0, int64_t words) {
    const int each = dot ? 2 : 1; // elements a word
    if (b->row || (!b->k_major && b->ld != each * words)) return (fetch){b->p, 0, 64};
    return (fetch){b->p + bytes_of(b->type, b->k_major ? each * k0 * b->ld + first : first * b->ld),
                   bytes_of(b->type, each * (b->k_major ? b->ld : NR)), dot && b->k_major ? 2 * b->ld : 64};
}

// Bytes to fetch of a matrix in each of so many steps: one or two cache lines.
INLINE int64_t share_of(const operand *m, int64_t steps) { return m->size > 64 * steps ? 128 : 64; }

// How the work is cut: so many words of k, rows and columns at a time. A result that is not of floats cannot be added to, so
// all of k is taken at once then.
typedef struct {
    int64_t k, m, n;
} blocks;

INLINE blocks cut_of(int64_t words, int type) {
    int64_t k = type == F32 || words < KC ? KC : words;
    int64_t m = MC * KC / k / MR * MR, n = NC * KC / k / NR * NR;
    return (blocks){k, m > MR ? m : MR, n > NR ? n : NR};
}
// floats of workspace for any product over at most so many elements
INLINE int64_t pack_floats(int64_t depth) {
    int64_t k = depth > KC ? depth : KC, a = MC * KC > MR * k ? MC * KC : MR * k, b = NC * KC > NR * k ? NC * KC : NR * k;
    return a + b + VL + 32;
}

// C = A B; `then` is the operand that is read next (NULL: unknown). What is fetched meanwhile: with
// few rows all of `then`, evenly and in the order of memory; otherwise the next panel of B, and at its end the first of `then`.
static void packed_gemm(int64_t m, int64_t n, int64_t elements, operand a, operand b, result c, float *workspace,
                        const operand *then) {
    const int dot = both_pairs(&a, &b);
    const int64_t depth = dot ? (elements + 1) / 2 : elements;
    const blocks cut = cut_of(depth, c.type);
    float *pack_b = workspace, *pack_a = workspace + cut.n * cut.k;
    const int add = c.add;
    c.stream = depth <= cut.k && can_stream(&c, n);
    // packing B would cost more than reading it twice
    int few = m <= 2 * MR, in_place = few && b.k_major && !b.row && b.type == F32;
    const char *next = NULL, *end = NULL;
    int64_t stride = 0;
    if (then && then->size && ((few && !dot) || elements <= 2 * MR)) {
        next = then->p, end = next + then->size;
        stride = share_of(then, (n + NR - 1) / NR * depth * ((m + MR - 1) / MR));
    }
    for (int64_t j0 = 0; j0 < n; j0 += cut.n) {
        int64_t nc = min64(cut.n, n - j0);
        for (int64_t k0 = 0; k0 < depth; k0 += cut.k) {
            int64_t kc = min64(cut.k, depth - k0);
            c.add = add || k0;
            for (int64_t i0 = 0; i0 < m; i0 += cut.m) {
                int64_t mc = min64(cut.m, m - i0);
                int panels = (int)((mc + MR - 1) / MR), edge[MC / MR + 1]; // of nearly equal height
                for (int i = 0; i <= panels; i++) edge[i] = (int)(mc * i / panels);
                for (int i = 0; i < panels; i++) {
                    int lanes = edge[i + 1] - edge[i];
                    pack(dot, &a, i0 + edge[i], lanes, lanes, k0, kc, elements, pack_a + edge[i] * kc);
                }
                for (int64_t j = 0; j < nc; j += NR) {
                    fetch ahead = {(const char *)pack_b, 0, 64};
                    const float *panel = pack_b + j * kc;
                    int64_t ldb = NR;
                    if (in_place && nc - j >= NR) panel = (const float *)b.p + k0 * b.ld + j0 + j, ldb = b.ld;
                    if (i0 == 0) {
                        if (panel == pack_b + j * kc) pack(dot, &b, j0 + j, (int)min64(NR, nc - j), NR, k0, kc, elements, pack_b + j * kc);
                        if (next) {}
                        else if (j0 + j + NR < n) ahead = panel_of(dot, &b, j0 + j + NR, k0, kc);
                        else if (then) ahead = panel_of(0, then, 0, 0, then->k_major ? kc : then->ld);
                    }
                    for (int i = 0; i < panels; i++) {
                        int64_t from = i0 + edge[i];
                        int lanes = edge[i + 1] - edge[i];
                        if (next) ahead.p = next, ahead.step = next < end ? stride : 0, next += ahead.step * kc;
                        char *rows[MR];
                        for (int r = 0; r < lanes; r++) rows[r] = c_row(&c, from + r) + bytes_of(c.type, j0 + j);
                        (dot ? dot_tile : float_tile)(lanes, kc, pack_a + edge[i] * kc, panel, ldb, rows, c.scale ? c.scale + from : NULL,
                             c.bias && !k0 ? c.bias + j0 + j : NULL, (int)min64(NR, nc - j), &c, &ahead);
                        ahead.step = 0;
                    }
                }
            }
        }
    }
}
#endif
