// What one core can multiply and add in fp32, and nothing else: no product of matrices is faster.
// gcc -O2 -march=native benchmarks/fma_peak.c -o fma_peak && ./fma_peak
#include <stdio.h>
#include <time.h>

enum { LANES = 16, CHAINS = 16, STEPS = 200000000 }; // enough chains to hide the latency of an addition
typedef float vec __attribute__((vector_size(4 * LANES)));

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

int main(void) {
    vec sum[CHAINS];
    for (int i = 0; i < CHAINS; i++) sum[i] = (vec){0} + 1e-3f * i; // no two alike, or one would stand for all
    const vec a = (vec){0} + 0.999f, b = (vec){0} + 1e-4f;
    double start = seconds();
    for (long k = 0; k < STEPS; k++) {
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++) sum[i] = sum[i] * a + b;
    }
    double took = seconds() - start, flops = 2.0 * STEPS * CHAINS * LANES;
    float seen = 0; // so that nothing is left out
    for (int i = 0; i < CHAINS; i++) seen += sum[i][i];
    printf("%.1f GFLOP/s (%g)\n", flops / took * 1e-9, seen);
    return 0;
}
