// The types that matrices have in memory. Everything is computed in fp32, but for products of bf16 where the machine
// multiplies pairs of them (HAVE_DOT): those are exact, and their sums are fp32 too.
#ifndef ZOO_ELEMENT_H
#define ZOO_ELEMENT_H
#include "vec.h"

enum { F32, BF16, F16, INT8, TERNARY }; // of the last two there are only weights, with a scale a row
#if defined(__AVX512F__) && defined(__AVX512BF16__)
enum { HAVE_DOT = 1 };
#else
enum { HAVE_DOT = 0 };
#endif
#ifdef __FLT16_MAX__
enum { HAVE_F16 = 1 };
#else
enum { HAVE_F16 = 0 };
#endif

typedef uint32_t wvec __attribute__((vector_size(4 * VL)));
typedef uint16_t hvec __attribute__((vector_size(2 * VL)));
typedef uint16_t uhvec __attribute__((vector_size(2 * VL), aligned(1), may_alias));
typedef int8_t bvec __attribute__((vector_size(VL), aligned(1), may_alias));

INLINE int64_t bytes_of(const int type, int64_t count) { // of ternary codes, a multiple of 4
    return type == F32 ? 4 * count : type == TERNARY ? count / 4 : type == INT8 ? count : 2 * count;
}

// VL elements from i on as floats; of codes, without their scale
INLINE vec load_as(const int type, const char *p, int64_t i) {
    if (type == F32) return load((const float *)p + i);
    p += bytes_of(type, i);
    if (type == BF16) { // the upper half of a float
#if defined(__AVX512F__) // gcc 12 makes scalar code of the generic conversions
        return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
#elif defined(__AVX2__)
        return (vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
#else
        return (vec)(__builtin_convertvector(*(const uhvec *)p, wvec) << 16);
#endif
    }
    if (type == F16) {
#if defined(__AVX512F__)
        return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__F16C__)
        return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#elif defined(__FLT16_MAX__)
        vec v;
        _Float16 half[VL];
        memcpy(half, p, sizeof half);
        for (int j = 0; j < VL; j++) v[j] = (float)half[j];
        return v;
#endif
    }
    if (type == INT8)
#ifdef __AVX512F__
        return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#else
        return __builtin_convertvector(__builtin_convertvector(*(const bvec *)p, ivec), vec);
#endif
    uint32_t word = 0; // ternary: weight i in bits 2i, 2i + 1, plus one
    memcpy(&word, p, VL / 4);
    ivec shifts;
    UNROLL for (int j = 0; j < VL; j++) shifts[j] = 2 * j;
    return __builtin_convertvector(((((ivec){0} + (int)word) >> shifts) & 3) - 1, vec);
}

INLINE vec load_n_as(const int type, const char *p, int64_t i, int64_t n) { // the first n lanes, the others 0
    if (n >= VL) return load_as(type, p, i);
    if (type == F32) return load_n((const float *)p + i, n);
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    if (type == BF16 || type == F16) {
        __m256i half = _mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p + 2 * i);
        return load_as(type, (const char *)&half, 0);
    }
#endif
    vec v = {0};
    if (type == TERNARY) // i need not be a multiple of 4 here
        for (int64_t j = 0; j < n; j++) v[j] = (float)((((const uint8_t *)p)[(i + j) / 4] >> (i + j) % 4 * 2) & 3) - 1;
    else {
        char buffer[2 * VL] = {0};
        memcpy(buffer, p + bytes_of(type, i), (size_t)bytes_of(type, n));
        v = load_as(type, buffer, 0);
    }
    return v;
}

INLINE hvec halves(const int type, vec v) { // rounded to the nearest, ties to even
    if (type == BF16) {
#ifdef __AVX512BF16__
        return (hvec)_mm512_cvtneps_pbh((__m512)v);
#else
        wvec bits = (wvec)v, even = (bits >> 16) & 1;
        wvec rounded = (wvec)pick(v == v, (vec)(bits + 0x7fff + even), (vec)(bits | 0x400000)); // NaN stays one
        return __builtin_convertvector(rounded >> 16, hvec);
#endif
    }
#if defined(__AVX512F__)
    return (hvec)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
    return (hvec)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__FLT16_MAX__)
    hvec out;
    _Float16 half[VL];
    for (int j = 0; j < VL; j++) half[j] = (_Float16)v[j];
    memcpy(&out, half, sizeof out);
    return out;
#else
    return (hvec){0}; // never reached: fp16 is refused without HAVE_F16
#endif
}

// n <= 0 stores nothing
INLINE void store_n_as(const int type, char *p, int64_t i, vec v, int64_t n) {
    if (n <= 0) return;
    p += bytes_of(type, i);
    if (type == F32) store_n((float *)p, v, n);
    else {
        hvec half = halves(type, v);
        if (n >= VL) *(uhvec *)p = half;
        else memcpy(p, &half, (size_t)(2 * n));
    }
}

INLINE void stream_as(const int type, char *p, vec v) { // aligned; written past the caches, because nobody reads it soon
    if (type == F32) store_past_caches((float *)p, v);
#ifdef __AVX512F__
    else _mm256_stream_si256((__m256i *)p, (__m256i)halves(type, v));
#else
    else store_n_as(type, p, 0, v, VL);
#endif
}

// n elements as floats: where they lie if they are, else in `scratch`
static const float *widened(int type, const char *p, int64_t n, float *scratch) {
    if (type == F32) return (const float *)p;
#define WIDEN(TYPE) for (int64_t i = 0; i < n; i += VL) store_n(scratch + i, load_n_as(TYPE, p, i, n - i), n - i)
    if (type == BF16) WIDEN(BF16);
    else if (type == F16) WIDEN(F16);
    else if (type == INT8) WIDEN(INT8);
    else WIDEN(TERNARY);
#undef WIDEN
    return scratch;
}

static void narrow(int type, const float *from, int64_t n, char *p) {
    if (type == BF16)
        for (int64_t i = 0; i < n; i += VL) store_n_as(BF16, p, i, load_n(from + i, n - i), n - i);
    else if (type == F16)
        for (int64_t i = 0; i < n; i += VL) store_n_as(F16, p, i, load_n(from + i, n - i), n - i);
    else if ((const char *)from != p) memcpy(p, from, (size_t)(4 * n));
}
#endif
