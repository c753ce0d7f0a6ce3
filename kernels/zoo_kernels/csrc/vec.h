// Vectors through the compiler's extensions: AVX-512, AVX2, NEON or whatever else the machine has.
#ifndef ZOO_VEC_H
#define ZOO_VEC_H
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
enum { VL = 16 };
#include <immintrin.h>
#else
enum { VL = 8 };
#endif
typedef float vec __attribute__((vector_size(4 * VL)));
typedef int32_t ivec __attribute__((vector_size(4 * VL)));
typedef float uvec __attribute__((vector_size(4 * VL), aligned(2), may_alias)); // also two bf16 a lane
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE vec load(const float *p) { return *(const uvec *)p; }
INLINE void store(float *p, vec v) { *(uvec *)p = v; }
INLINE vec load_n(const float *p, int64_t n) { // the first n lanes, the others 0
    if (n >= VL) return load(p);
    vec v = {0};
    memcpy(&v, p, 4 * n);
    return v;
}
INLINE void store_n(float *p, vec v, int64_t n) {
    if (n >= VL) store(p, v);
    else memcpy(p, &v, 4 * n);
}
INLINE void store_past_caches(float *p, vec v) {
#ifdef __AVX512F__
    _mm512_stream_ps(p, (__m512)v);
#else
    store(p, v);
#endif
}
INLINE void fence(void) { // makes streamed stores visible to the threads behind the next barrier
#ifdef __AVX512F__
    _mm_sfence();
#endif
}
INLINE vec zip(vec a, vec b, int high) { // interleaves the low or high halves of a and b
    ivec mask;
    UNROLL for (int i = 0; i < VL; i++) mask[i] = (i % 2) * VL + i / 2 + high * (VL / 2);
    return __builtin_shuffle(a, b, mask);
}

INLINE vec unzip(vec a, vec b, int odd) { // every other element of a and b
    ivec mask;
    UNROLL for (int i = 0; i < VL; i++) mask[i] = 2 * i + odd;
    return __builtin_shuffle(a, b, mask);
}

INLINE vec splat(float x) { return x - (vec){0}; }
INLINE vec pick(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }
INLINE float sum(vec v) {
    float s = 0;
    for (int i = 0; i < VL; i++) s += v[i];
    return s;
}

INLINE vec vexp(vec x) { // to about 1 ulp
    x = pick(x < -87.0f, splat(-87.0f), x);
    x = pick(x > 88.0f, splat(88.0f), x);
    const float magic = 12582912.0f; // adding 1.5 * 2^23 rounds to an integer
    vec n = (x * 1.44269504f + magic) - magic;
    vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f; // Cephes expf
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (vec)((__builtin_convertvector(n, ivec) + 127) << 23);
}

INLINE vec vsigmoid(vec x) { return 1.0f / (1.0f + vexp(-x)); }
#endif
