// Counting sort of pairs by expert: stable, unused pairs last.
#include <stdint.h>
#include <stdlib.h>

// offset has experts + 1 entries. Returns 0, 1 if out of memory, 2 + position of an expert index that is out of range.
int64_t zoo_sort_pairs(int64_t pairs, int64_t experts, const int64_t *expert, const uint8_t *used, int64_t *pair, int64_t *offset) {
    int64_t *next = calloc((size_t)experts + 2, sizeof *next);
    if (!next) return 1;
    for (int64_t i = 0; i < pairs; i++) {
        if (expert[i] < 0 || expert[i] >= experts) {
            free(next);
            return 2 + i;
        }
        next[(used && !used[i] ? experts : expert[i]) + 1]++;
    }
    for (int64_t e = 0; e <= experts; e++) {
        next[e + 1] += next[e];
        offset[e] = next[e];
    }
    for (int64_t i = 0; i < pairs; i++) pair[next[used && !used[i] ? experts : expert[i]]++] = i;
    free(next);
    return 0;
}
