// Activations and their derivatives on vectors; GELU through erfc (relative error below 5e-7).
#ifndef ZOO_ACTIVATION_H
#define ZOO_ACTIVATION_H
#include "vec.h"

// CLAMPED: GPT-OSS, gate * sigmoid(1.702 gate) * (up + 1); TANH: GELU's approximation by tanh; RELU2: relu squared
enum { SILU, GELU, RELU, CLAMPED, TANH, RELU2 };
enum { UNGATED, HALVES, PAIRS }; // how gate and up lie in a pre-activation

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
    } else if (kind == RELU2) {
        vec base = pick(z < 0.0f, splat(0), z);
        *value = base * base;
        *slope = 2.0f * base;
    } else if (kind == TANH) { // 0.5 (1 + tanh u) = sigmoid(2 u), u = sqrt(2 / pi) (z + 0.044715 z^3)
        vec s = vsigmoid(z * (1.5957691216f + 0.0713548162726f * z * z));
        *value = z * s;
        *slope = s + z * s * (1.0f - s) * (1.5957691216f + 0.2140644488178f * z * z);
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

// gate and up of the inner units from j on
INLINE void load_units(const int mode, const float *h, int64_t f, int64_t j, vec *gate, vec *up) {
    int64_t n = f - j;
    if (mode == PAIRS) {
        vec low = load_n(h + 2 * j, 2 * n), high = {0};
        if (2 * n > VL) high = load_n(h + 2 * j + VL, 2 * n - VL);
        *gate = unzip(low, high, 0);
        *up = unzip(low, high, 1);
    } else {
        *gate = load_n(h + j, n);
        *up = mode == HALVES ? load_n(h + f + j, n) : splat(1);
    }
}

INLINE void store_units(const int mode, float *h, int64_t f, int64_t j, vec gate, vec up) {
    int64_t n = f - j;
    if (mode == PAIRS) {
        store_n(h + 2 * j, zip(gate, up, 0), 2 * n);
        if (2 * n > VL) store_n(h + 2 * j + VL, zip(gate, up, 1), 2 * n - VL);
    } else {
        store_n(h + j, gate, n);
        if (mode == HALVES) store_n(h + f + j, up, n);
    }
}

// act (F) of the pre-activation h (W); limit is INFINITY if there is none
INLINE void forward_row(const int kind, const int mode, int64_t f, float limit, const float *h, float *act) {
    for (int64_t j = 0; j < f; j += VL) {
        vec z, up, value, slope;
        load_units(mode, h, f, j, &z, &up);
        if (mode != UNGATED) {
            z = pick(z > limit, splat(limit), z);
            up = pick(up > limit, splat(limit), pick(up < -limit, splat(-limit), up));
            if (kind == CLAMPED) up += 1.0f;
        }
        activation(kind, z, &value, &slope);
        store_n(act + j, mode == UNGATED ? value : value * up, f - j);
    }
}

// Given h and dact = dy W_out: dh of the weighted output, wact = w * act, and <dact, act>.
INLINE float backward_row(const int kind, const int mode, int64_t f, float limit, float w, const float *h,
                          const float *dact, float *dh, float *wact) {
    vec inner = {0};
    for (int64_t j = 0; j < f; j += VL) {
        int64_t n = f - j;
        vec z, up, d = load_n(dact + j, n), value, slope, d_up;
        ivec gate_out = {0}, up_out = {0};
        load_units(mode, h, f, j, &z, &up);
        if (mode != UNGATED) {
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
        store_units(mode, dh, f, j, pick(gate_out, splat(0), d * up * slope), d_up);
    }
    return sum(inner);
}
#endif
