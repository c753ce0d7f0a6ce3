// Router: scores, (biased, group-limited) top-k, gate weights, and their backward; and token rounding. A token (in the
// rounding: an expert) is one thread's, so the result does not depend on the threads. Equations: zoo_kernels.reference.
#include "vec.h"
#include <math.h>
#include <stdlib.h>

enum { SOFTMAX, SIGMOID, NONE };

typedef struct {
    int64_t tokens, experts, slots, threads;
    int64_t score, after, renorm; // after: the chosen logits are scored, not all
    int64_t groups, kept;         // 0, 0: no groups
    float scale;
    const float *logits, *bias;   // (T, E), (E,) or NULL
    int64_t *index;               // (T, K)
    float *weight, *scores;       // (T, K), (T, E)
    const float *dweight, *dscores; // backward, either may be NULL
    float *dlogits;
} routing;

static void score_row(int64_t score, const float *in, float *out, int64_t n) {
    if (score == NONE) {
        memmove(out, in, 4 * n);
        return;
    }
    float top = -INFINITY;
    vec total = {0};
    if (score == SOFTMAX)
        for (int64_t i = 0; i < n; i++) top = in[i] > top ? in[i] : top;
    for (int64_t i = 0; i < n; i += VL) {
        vec x = load_n(in + i, n - i);
        vec y = score == SOFTMAX ? pick(x - top < -87.0f, splat(0), vexp(x - top)) : pick(x < -87.0f, splat(0), vsigmoid(x));
        store_n(out + i, y, n - i);
        total += i + VL <= n ? y : load_n(out + i, n - i);
    }
    if (score == SIGMOID) return;
    float all = sum(total);
    for (int64_t i = 0; i < n; i += VL) store_n(out + i, load_n(out + i, n - i) / all, n - i);
}

// Gradient of score_row from its output, in place.
static void score_row_backward(int64_t score, const float *out, float *grad, int64_t n) {
    vec total = {0};
    if (score == SOFTMAX)
        for (int64_t i = 0; i < n; i += VL) total += load_n(out + i, n - i) * load_n(grad + i, n - i);
    float inner = sum(total);
    for (int64_t i = 0; i < n && score != NONE; i += VL) {
        vec y = load_n(out + i, n - i), d = load_n(grad + i, n - i);
        store_n(grad + i, y * (score == SOFTMAX ? d - inner : d * (1.0f - y)), n - i);
    }
}

// Inserts entry i into the `held` best so far, best first; equal ones stay in the order of arrival. Returns how many are held.
INLINE int64_t insert(const float *value, int64_t i, int64_t *best, int64_t held, int64_t most) {
    if (held == most && !(value[i] > value[best[most - 1]])) return held;
    int64_t place = held < most ? held++ : most - 1;
    for (; place && value[i] > value[best[place - 1]]; place--) best[place] = best[place - 1];
    best[place] = i;
    return held;
}

static void choose(const routing *s, const float *select, int64_t *index, float *group, int64_t *kept) {
    int64_t held = 0, size = s->groups ? s->experts / s->groups : s->experts, some = 0;
    for (int64_t g = 0; g < s->groups; g++) { // the sum of its two best
        float first = -INFINITY, second = -INFINITY;
        for (int64_t e = g * size; e < (g + 1) * size; e++) {
            if (select[e] > first) second = first, first = select[e];
            else if (select[e] > second) second = select[e];
        }
        group[g] = size > 1 ? first + second : first;
        some = insert(group, g, kept, some, s->kept);
    }
    for (int64_t g = 0; g < (s->groups ? s->groups : 1); g++) {
        int in = !s->groups;
        for (int64_t i = 0; i < some; i++) in |= kept[i] == g;
        for (int64_t e = g * size; in && e < (g + 1) * size; e++) held = insert(select, e, index, held, s->slots);
    }
}

static void route_token(const routing *s, int64_t t, float *select, float *group, int64_t *kept) {
    const float *logits = s->logits + t * s->experts;
    float *scores = s->scores + t * s->experts, *weight = s->weight + t * s->slots, total = 0;
    int64_t *index = s->index + t * s->slots;
    score_row(s->score, logits, scores, s->experts);
    const float *source = s->after ? logits : scores;
    for (int64_t e = 0; e < s->experts; e++) select[e] = s->bias ? source[e] + s->bias[e] : source[e];
    choose(s, select, index, group, kept);
    for (int64_t k = 0; k < s->slots; k++) weight[k] = source[index[k]];
    if (s->after) score_row(s->score, weight, weight, s->slots);
    for (int64_t k = 0; k < s->slots; k++) total += weight[k];
    for (int64_t k = 0; k < s->slots; k++) weight[k] = (s->renorm ? weight[k] / (total + 1e-20f) : weight[k]) * s->scale;
}

static void route_token_backward(const routing *s, int64_t t, float *weight, float *grad) {
    const float *scores = s->scores + t * s->experts, *source = s->after ? s->logits + t * s->experts : scores;
    const int64_t *index = s->index + t * s->slots;
    float *out = s->dlogits + t * s->experts, total = 1e-20f, inner = 0;
    if (s->dscores) memcpy(out, s->dscores + t * s->experts, 4 * s->experts);
    else memset(out, 0, 4 * s->experts);
    if (s->after) score_row_backward(s->score, scores, out, s->experts);
    for (int64_t k = 0; k < s->slots; k++) weight[k] = source[index[k]], grad[k] = s->dweight ? s->dweight[t * s->slots + k] * s->scale : 0;
    if (s->after) score_row(s->score, weight, weight, s->slots);
    if (s->renorm) {
        for (int64_t k = 0; k < s->slots; k++) total += weight[k], inner += weight[k] * grad[k];
        for (int64_t k = 0; k < s->slots; k++) grad[k] = (grad[k] - inner / total) / total;
    }
    if (s->after) score_row_backward(s->score, weight, grad, s->slots);
    for (int64_t k = 0; k < s->slots; k++) out[index[k]] += grad[k];
    if (!s->after) score_row_backward(s->score, scores, out, s->experts);
}

// Forward if dlogits is NULL, else backward. Returns 0, or 1 if out of memory.
int zoo_route(const routing *s) {
    int failed = 0;
#pragma omp parallel num_threads(s->threads)
    {
        float *row = malloc(4 * (s->experts + s->groups + 2 * s->slots));
        int64_t *kept = malloc(8 * (s->kept + 1));
        if (!row || !kept) failed = 1;
#pragma omp barrier
#pragma omp for schedule(static)
        for (int64_t t = 0; t < s->tokens; t++) {
            if (failed) continue;
            if (s->dlogits) route_token_backward(s, t, row, row + s->slots);
            else route_token(s, t, row, row + s->experts, kept);
        }
        free(row);
        free(kept);
    }
    return failed;
}

// Integers in the order of floats, never INT32_MIN.
INLINE int32_t key_of(float x) {
    int32_t bits;
    x += 0.0f; // -0 is 0
    memcpy(&bits, &x, 4);
    return bits < 0 ? bits ^ INT32_MAX : bits;
}

static int64_t at_least(const int32_t *key, int64_t n, int32_t edge) { // n is a multiple of VL
    ivec total = {0};
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += VL) {
        ivec k;
        memcpy(&k, key + i, sizeof k);
        total -= k >= edge;
    }
    for (int i = 0; i < VL; i++) count += total[i];
    return count;
}

// Column e of `chosen`: see ops.round_tokens. The entry on the edge is found bit by bit.
static void round_expert(int64_t tokens, int64_t experts, int64_t tile, const float *select, const uint8_t *state, uint8_t *chosen,
                         int32_t *key) {
    int64_t count = 0, open = 0, padded = (tokens + VL - 1) / VL * VL;
    for (int64_t t = 0; t < tokens; t++) count += state[t * experts] == 2, open += state[t * experts] > 0;
    int64_t rows = min64((2 * count + tile) / (2 * tile), open / tile) * tile;
    int sought = rows > count ? 1 : 2; // whose best are taken: the others', or the chosen's
    int64_t take = rows > count ? rows - count : rows;
    for (int64_t t = 0; t < padded; t++) key[t] = t < tokens && state[t * experts] == sought ? key_of(select[t * experts]) : INT32_MIN;
    uint32_t edge = 0; // from below, its sign turned
    for (uint32_t bit = 1u << 31; bit; bit >>= 1)
        if (at_least(key, padded, (int32_t)((edge | bit) ^ 1u << 31)) >= take) edge |= bit;
    int32_t last = (int32_t)(edge ^ 1u << 31);
    int64_t room = take - (last == INT32_MAX ? 0 : at_least(key, padded, last + 1)); // for those on the edge, the first ones
    for (int64_t t = 0; t < tokens; t++) {
        int taken = key[t] > last || (key[t] == last && room-- > 0);
        chosen[t * experts] = taken || (sought == 1 && state[t * experts] == 2);
    }
}

// Returns 0, or 1 if out of memory.
int zoo_round_tokens(int64_t tokens, int64_t experts, int64_t tile, int64_t threads, const float *select, const uint8_t *state, uint8_t *chosen) {
    int failed = 0;
    (void)threads; // without OpenMP
#pragma omp parallel num_threads(threads)
    {
        int32_t *key = malloc(4 * (tokens + VL));
        if (!key) failed = 1;
#pragma omp barrier
#pragma omp for schedule(static)
        for (int64_t e = 0; e < experts; e++)
            if (!failed) round_expert(tokens, experts, tile, select + e, state + e, chosen + e, key);
        free(key);
    }
    return failed;
}
