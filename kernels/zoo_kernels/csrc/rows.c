// Expand and combine: the rows of tokens in plan order, and each token's weighted sum of its rows, in the order of the plan.
#include "vec.h"
#include <stdlib.h>

typedef struct {
    int64_t tokens, pairs, used, model, threads; // T, N, of which used, D
    const int64_t *token, *pair;
    const float *x, *rows, *weight; // (T, D), (N, D), (N,) in original pair order or NULL for ones
    float *out, *dweight;           // (N, D) or (T, D); (N,) or NULL
} row_call;

// out[i] = weight x[token[i]], 0 if unused; dweight[pair[i]] = <x[token[i]], rows[i]>
int zoo_expand(const row_call *s) {
#pragma omp parallel for schedule(static) num_threads(s->threads)
    for (int64_t i = 0; i < s->pairs; i++) {
        const float *x = s->x + s->token[i] * s->model, *rows = s->rows + i * s->model;
        float *out = s->out + i * s->model;
        if (i >= s->used) memset(out, 0, 4 * s->model);
        else if (!s->weight) memcpy(out, x, 4 * s->model);
        else {
            vec inner = {0};
            for (int64_t j = 0; j < s->model; j += VL) {
                vec here = load_n(x + j, s->model - j);
                inner += here * load_n(rows + j, s->model - j);
                store_n(out + j, s->weight[s->pair[i]] * here, s->model - j);
            }
            s->dweight[s->pair[i]] = sum(inner);
            continue;
        }
        if (s->dweight) s->dweight[s->pair[i]] = 0;
    }
    return 0;
}

// out[t] = sum over the used pairs of token t of weight rows[i]. Returns 0, or 1 if out of memory.
int zoo_combine(const row_call *s) {
    int64_t *start = calloc((size_t)(s->tokens + 2), 8), *order = malloc(8 * (size_t)(s->used + 1));
    int failed = !start || !order;
    if (!failed) { // a counting sort by token
        for (int64_t i = 0; i < s->used; i++) start[s->token[i] + 2]++;
        for (int64_t t = 0; t < s->tokens; t++) start[t + 2] += start[t + 1];
        for (int64_t i = 0; i < s->used; i++) order[start[s->token[i] + 1]++] = i;
#pragma omp parallel for schedule(static) num_threads(s->threads)
        for (int64_t t = 0; t < s->tokens; t++) {
            float *out = s->out + t * s->model;
            memset(out, 0, 4 * s->model);
            for (int64_t n = start[t]; n < start[t + 1]; n++) {
                const float *row = s->rows + order[n] * s->model;
                float weight = s->weight ? s->weight[s->pair[order[n]]] : 1.0f;
                for (int64_t j = 0; j < s->model; j += VL)
                    store_n(out + j, load_n(out + j, s->model - j) + weight * load_n(row + j, s->model - j), s->model - j);
            }
        }
    }
    free(start);
    free(order);
    return failed;
}
