// Activations and their derivatives on vectors; exp to about 1 ulp, GELU through erfc (relative error below 5e-7).
#ifndef ZOO_ACTIVATION_H
#define ZOO_ACTIVATION_H
#include "gemm.h"

enum { SILU, GELU, RELU, CLAMPED }; // CLAMPED: GPT-OSS, gate * sigmoid(1.702 gate) * (up + 1)

INLINE vec splat(float x) { return x - (vec){0}; }
INLINE vec pick(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }
INLINE float sum(vec v) {
    float s = 0;
    for (int i = 0; i < VL; i++) s += v[i];
    return s;
}

INLINE vec vexp(vec x) {
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

INLINE vec vcdf(vec x) { // 0.5 erfc(-x / sqrt 2), Chebyshev fit of Numerical Recipes 6.2.2
    vec z = pick(x < 0.0f, -x, x) * 0.70710678f;
    vec t = 1.0f / (1.0f + 0.5f * z);
    vec p = t * 0.17087277f - 0.82215223f;
    p = p * t + 1.48851587f;
    p = p * t - 1.13520398f;
    p = p * t + 0.27886807f;
    p = p * t - 0.18628806f;
    p = p * t + 0.09678418f;
    p = p * t + 0.37409196f;
    p = p * t + 1.00002368f;
    p = p * t - 1.26551223f;
    vec tail = 0.5f * t * vexp(p - z * z);
    return pick(x < 0.0f, tail, 1.0f - tail);
}

INLINE void activation(const int kind, vec z, vec *value, vec *slope) {
    if (kind == RELU) {
        *value = pick(z < 0.0f, splat(0), z);
        *slope = pick(z > 0.0f, splat(1), splat(0));
    } else if (kind == GELU) {
        vec cdf = vcdf(z);
        *value = z * cdf;
        *slope = cdf + z * 0.39894228f * vexp(-0.5f * z * z);
    } else {
        const float alpha = kind == CLAMPED ? 1.702f : 1.0f;
        vec s = vsigmoid(alpha * z);
        *value = z * s;
        *slope = s + alpha * z * s * (1.0f - s);
    }
}

// act (F) of the pre-activation h (W); limit is INFINITY if there is none
INLINE void forward_row(const int kind, const int gated, int64_t f, float limit, const float *h, float *act) {
    for (int64_t j = 0; j < f; j += VL) {
        vec z = load_n(h + j, f - j), value, slope;
        if (gated) {
            vec up = load_n(h + f + j, f - j);
            z = pick(z > limit, splat(limit), z);
            up = pick(up > limit, splat(limit), pick(up < -limit, splat(-limit), up));
            activation(kind, z, &value, &slope);
            value *= kind == CLAMPED ? up + 1.0f : up;
        } else
            activation(kind, z, &value, &slope);
        store_n(act + j, value, f - j);
    }
}

// Given h and dact = dy W_out: dh of the weighted output, wact = w * act, and <dact, act>.
INLINE float backward_row(const int kind, const int gated, int64_t f, float limit, float w, const float *h,
                          const float *dact, float *dh, float *wact) {
    vec inner = {0};
    for (int64_t j = 0; j < f; j += VL) {
        int64_t n = f - j;
        vec z = load_n(h + j, n), d = load_n(dact + j, n), up = splat(1), value, slope, d_up;
        ivec gate_out = {0}, up_out = {0};
        if (gated) {
            up = load_n(h + f + j, n);
            gate_out = z > limit, up_out = (up > limit) | (up < -limit);
            z = pick(gate_out, splat(limit), z);
            up = pick(up > limit, splat(limit), pick(up < -limit, splat(-limit), up));
            if (kind == CLAMPED) up += 1.0f;
        }
        activation(kind, z, &value, &slope);
        inner += d * value * up;
        store_n(wact + j, w * value * up, n);
        d *= w;
        d_up = pick(up_out, splat(0), d * value);
        d = pick(gate_out, splat(0), d * up * slope);
        store_n(dh + j, d, n);
        if (gated) store_n(dh + f + j, d_up, n);
    }
    return sum(inner);
}
#endif
