// Expert FFN, forward and backward (SonicMoE, arXiv 2512.14080: x, the pre-activation and the plan are all that is kept).
// The sorted rows are cut into `groups` contiguous ranges of equal cost; a group owns its outputs, and what groups share
// (y, dx, the weight gradient of an expert on a cut) is summed in the order of the groups: the result depends on the
// number of groups, never on the threads or on time.
#include "activation.h"
#include "pool.h"
#include "small.h"
#include <math.h>

typedef struct {
    int64_t tokens, experts, model, inner, width; // T, E, D, F, W; of the widest expert if they differ
    int64_t threads, groups, kind, mode;
    int64_t bits;                           // of the weights' codes: 8, 2 (ternary, packed) or 0: w_in, w_out are floats
    int64_t in_turned, out_turned;          // the weights lie as (E, D, W) and (E, F, D), and so do their gradients
    float limit;
    const float *x, *weight;                // (T, D), (N,) in original pair order
    const int64_t *token, *pair, *offset;   // the plan
    const int64_t *start;                   // (E + 1): expert e has inner units start[e] to start[e + 1]; NULL: F each
    const float *w_in, *w_out, *b_in, *b_out, *scale_in, *scale_out;
    float *hidden;                          // (N, W) or NULL
    float *y;                               // forward: (T, D)
    const float *dy;                        // backward from here
    float *dx, *dweight, *dw_in, *dw_out, *db_in, *db_out;
} ffn;

enum { ROWS = 512 }; // rows of one expert taken at a time
enum { ROW_COST = 16 }; // an expert costs as much as this many rows more: its weights are read

typedef struct {
    float *dw_in, *dw_out, *db_in, *db_out;
} grads;

typedef struct {
    int64_t first, stop, expert; // sorted rows, expert of the first row
    float *sum;                  // this group's share of y or dx
    float *memory;               // all that follows
    float *pack, *hidden, *act, *dact, *dhidden, *scale;
    grads partial; // of `expert`, if it began in an earlier group
} group;

static void gemm(int64_t m, int64_t n, int64_t depth, operand a, operand b, result c, float *workspace, const operand *then) {
    if (small_gemm(m, n, depth, &a, &b, &c)) return;
    if (b.bits) {
        widen(&b, n, depth, workspace + PACK);
        b = floats(workspace + PACK, depth, NULL, 0), then = NULL;
    }
    packed_gemm(m, n, depth, a, b, c, workspace, then);
}

// inner units of the experts before e, and of e; the pre-activation is once or twice as wide
static int64_t units_before(const ffn *s, int64_t e) { return s->start ? s->start[e] : e * s->inner; }
static int64_t inner_of(const ffn *s, int64_t e) { return s->start ? s->start[e + 1] - s->start[e] : s->inner; }
static int64_t twice(const ffn *s, int64_t units) { return s->mode == UNGATED ? units : 2 * units; }
static int64_t width_of(const ffn *s, int64_t e) { return twice(s, inner_of(s, e)); }

// one expert's weights, rows x depth, or the codes of a quantised one; k_major if the product runs over the rows
static operand weights_of(const ffn *s, const float *all, int64_t before, const float *scales, int64_t rows, int64_t depth,
                          int turned, int k_major) {
    if (s->bits) return (operand){(const float *)((const char *)all + before * s->bits / 8), depth, NULL, 0, (int)s->bits, scales, 0};
    operand m = turned ? floats(all + before, rows, NULL, !k_major) : floats(all + before, depth, NULL, k_major);
    m.size = rows * depth;
    return m;
}
static operand w_in_of(const ffn *s, int64_t e, int k_major) {
    int64_t before = twice(s, units_before(s, e));
    return weights_of(s, s->w_in, before * s->model, s->bits ? s->scale_in + before : NULL, width_of(s, e), s->model, s->in_turned, k_major);
}
static operand w_out_of(const ffn *s, int64_t e, int k_major) {
    return weights_of(s, s->w_out, units_before(s, e) * s->model, s->bits ? s->scale_out + e * s->model : NULL,
                      s->model, inner_of(s, e), s->out_turned, k_major);
}

static int64_t expert_of(const ffn *s, int64_t row) {
    int64_t low = 0, high = s->experts - 1; // the last expert whose segment starts at or before the row, and is not empty
    while (low < high) {
        int64_t mid = (low + high + 1) / 2;
        if (s->offset[mid] <= row) low = mid;
        else high = mid - 1;
    }
    return low;
}

// of an expert with rows, in rows of one inner unit
static int64_t cost_of(const ffn *s, int64_t e) {
    int64_t rows = s->offset[e + 1] - s->offset[e];
    return rows ? (rows + ROW_COST) * inner_of(s, e) : 0;
}

// Cuts where the running cost passes g / groups of the total, at the nearest expert boundary if that is close enough.
static void cut(const ffn *s, group *groups) {
    int64_t used = s->offset[s->experts], total = 0, seen = 0, g = 1;
    for (int64_t e = 0; e < s->experts; e++) total += cost_of(s, e);
    double share = (double)total / s->groups, slack = 0.01 * share;
    groups[0].first = 0;
    for (int64_t e = 0; e < s->experts; e++) {
        int64_t rows = s->offset[e + 1] - s->offset[e], cost = cost_of(s, e);
        if (!cost) continue;
        for (; g < s->groups && seen + cost > g * share - slack; g++) {
            double into = g * share - seen;
            double past = cost - into;
            int64_t row;
            if (into < slack || (rows < 4 * MR && into < past)) row = s->offset[e];
            else if (past < slack || rows < 4 * MR) row = s->offset[e + 1];
            else row = s->offset[e] + (int64_t)fmin(fmax(into / inner_of(s, e) - ROW_COST, 0), (double)rows);
            groups[g].first = row > groups[g - 1].first ? row : groups[g - 1].first;
        }
        seen += cost;
    }
    for (; g < s->groups; g++) groups[g].first = used;
    for (g = 0; g < s->groups; g++) {
        groups[g].stop = g + 1 < s->groups ? groups[g + 1].first : used;
        groups[g].expert = used ? expert_of(s, groups[g].first) : 0;
    }
}

static float *take(float **memory, int64_t count) {
    float *here = *memory;
    *memory += (count + 15) / 16 * 16;
    return here;
}

// Lays the group's workspace out; with memory NULL only measures it (in floats).
static int64_t lay_out(const ffn *s, group *g, int index, float *memory) {
    float *next = memory;
    int back = s->dy != NULL;
    int64_t rows = min64(ROWS, g->stop - g->first);
    g->memory = memory;
    g->pack = take(&next, PACK + (s->bits ? s->width * s->model : 0)); // widened codes behind it
    g->scale = take(&next, rows);
    g->hidden = take(&next, s->hidden ? 0 : rows * s->width);
    g->act = take(&next, rows * s->inner);
    g->dact = take(&next, back ? rows * s->inner : 0);
    g->dhidden = take(&next, back ? rows * s->width : 0);
    g->sum = index ? take(&next, s->tokens * s->model) : back ? s->dx : s->y;
    if (back && g->first < g->stop && g->first > s->offset[g->expert]) {
        g->partial.dw_in = take(&next, s->width * s->model);
        g->partial.dw_out = take(&next, s->model * s->inner);
        g->partial.db_in = take(&next, s->width);
        g->partial.db_out = take(&next, s->model);
    }
    return next - memory;
}

static void add_to(float *out, const float *in, int64_t count) {
    for (int64_t i = 0; i < count; i += VL) store_n(out + i, load_n(out + i, count - i) + load_n(in + i, count - i), count - i);
}

static void axpy(float *out, float scale, const float *in, int64_t count) {
    for (int64_t i = 0; i < count; i += VL)
        store_n(out + i, load_n(out + i, count - i) + scale * load_n(in + i, count - i), count - i);
}

static float dot(const float *a, const float *b, int64_t count) {
    vec total = {0};
    for (int64_t i = 0; i < count; i += VL) total += load_n(a + i, count - i) * load_n(b + i, count - i);
    return sum(total);
}

static int64_t next_expert(const ffn *s, int64_t e) { // whose weights come next: the one after e that has rows, or e
    for (int64_t n = e + 1; n < s->experts; n++)
        if (s->offset[n + 1] > s->offset[n]) return n;
    return e;
}

// pre-activation of `rows` sorted rows from `row`
static void up(const ffn *s, const group *g, int64_t e, int64_t row, int64_t rows, float *hidden, const operand *then) {
    int64_t width = width_of(s, e);
    gemm(rows, width, s->model, floats(s->x, s->model, s->token + row, 0),
         w_in_of(s, e, 0), (result){hidden, s->width, NULL, NULL, 0, 0}, g->pack, then);
    if (s->b_in)
        for (int64_t i = 0; i < rows; i++) add_to(hidden + i * s->width, s->b_in + twice(s, units_before(s, e)), width);
}

#define EVERY_MODE(KIND, CALL) \
    case KIND * 3 + UNGATED: CALL(KIND, UNGATED); break; \
    case KIND * 3 + HALVES: CALL(KIND, HALVES); break; \
    case KIND * 3 + PAIRS: CALL(KIND, PAIRS); break;
#define EVERY_KIND(CALL) \
    switch (s->kind * 3 + s->mode) { \
        EVERY_MODE(SILU, CALL) EVERY_MODE(GELU, CALL) EVERY_MODE(RELU, CALL) \
        EVERY_MODE(CLAMPED, CALL) EVERY_MODE(TANH, CALL) EVERY_MODE(RELU2, CALL) \
    }

static void forward_rows(const ffn *s, const group *g, int64_t e, int64_t row, int64_t rows) {
    float *hidden = s->hidden ? s->hidden + row * s->width : g->hidden;
    int64_t inner = inner_of(s, e);
    operand w_out = w_out_of(s, e, 0), next = w_in_of(s, next_expert(s, e), 0);
    up(s, g, e, row, rows, hidden, &w_out);
#define CALL(KIND, MODE) \
    for (int64_t i = 0; i < rows; i++) \
        forward_row(KIND, MODE, inner, s->limit, hidden + i * s->width, g->act + i * s->inner)
    EVERY_KIND(CALL)
#undef CALL
    for (int64_t i = 0; i < rows; i++) g->scale[i] = s->weight[s->pair[row + i]];
    gemm(rows, s->model, inner, floats(g->act, s->inner, NULL, 0), w_out,
         (result){g->sum, s->model, s->token + row, g->scale, 1, 0}, g->pack, &next);
    if (s->b_out)
        for (int64_t i = 0; i < rows; i++) axpy(g->sum + s->token[row + i] * s->model, g->scale[i], s->b_out + e * s->model, s->model);
}

static void weight_gradient(int64_t m, int64_t n, int64_t rows, operand left, operand right, float *out, int turned, int add,
                            int last, float *workspace, const operand *then) {
    if (turned) gemm(n, m, rows, right, left, (result){out, m, NULL, NULL, add, last}, workspace, then);
    else gemm(m, n, rows, left, right, (result){out, n, NULL, NULL, add, last}, workspace, then);
}

static void backward_rows(const ffn *s, const group *g, int64_t e, int64_t row, int64_t rows, grads d, int add, int last) {
    const int64_t *token = s->token + row, inner = inner_of(s, e), width = width_of(s, e);
    operand w_in = w_in_of(s, e, 1), w_out = w_out_of(s, e, 1);
    operand next_out = w_out_of(s, next_expert(s, e), 1), next_in = w_in_of(s, next_expert(s, e), 1);
    float *hidden = s->hidden ? s->hidden + row * s->width : g->hidden;
    if (!s->hidden) up(s, g, e, row, rows, hidden, &w_out);
    gemm(rows, inner, s->model, floats(s->dy, s->model, token, 0), w_out,
         (result){g->dact, s->inner, NULL, NULL, 0, 0}, g->pack, rows > 2 * MR ? &w_in : NULL);
#define CALL(KIND, MODE) \
    for (int64_t i = 0; i < rows; i++) { \
        int64_t pair = s->pair[row + i]; \
        s->dweight[pair] = backward_row(KIND, MODE, inner, s->limit, s->weight[pair], hidden + i * s->width, \
                                        g->dact + i * s->inner, g->dhidden + i * s->width, g->act + i * s->inner); \
    }
    EVERY_KIND(CALL)
#undef CALL
    gemm(rows, s->model, width, floats(g->dhidden, s->width, NULL, 0), w_in,
         (result){g->sum, s->model, token, NULL, 1, 0}, g->pack, rows > 2 * MR ? NULL : &next_out);
    operand x = floats(s->x, s->model, token, 1), dhidden = floats(g->dhidden, s->width, NULL, 1);
    operand dy = floats(s->dy, s->model, token, 1), act = floats(g->act, s->inner, NULL, 1);
    weight_gradient(width, s->model, rows, dhidden, x, d.dw_in, s->in_turned, add, last, g->pack, rows > 2 * MR ? &next_out : &next_in);
    weight_gradient(s->model, inner, rows, dy, act, d.dw_out, s->out_turned, add, last, g->pack, NULL);
    if (s->b_in) {
        if (!add) memset(d.db_in, 0, 4 * width);
        for (int64_t i = 0; i < rows; i++) add_to(d.db_in, g->dhidden + i * s->width, width);
    }
    if (s->b_out) {
        if (!add) memset(d.db_out, 0, 4 * s->model);
        for (int64_t i = 0; i < rows; i++) {
            const float *dy = s->dy + token[i] * s->model;
            int64_t pair = s->pair[row + i];
            s->dweight[pair] += dot(dy, s->b_out + e * s->model, s->model);
            axpy(d.db_out, s->weight[pair], dy, s->model);
        }
    }
}

static grads of_expert(const ffn *s, int64_t e) {
    int64_t units = units_before(s, e);
    return (grads){s->dw_in + twice(s, units) * s->model, s->dw_out + units * s->model,
                   s->b_in ? s->db_in + twice(s, units) : NULL, s->b_out ? s->db_out + e * s->model : NULL};
}

static void run_group(const ffn *s, const group *g, int64_t index) {
    memset(g->sum, 0, 4 * s->tokens * s->model);
    for (int64_t e = g->expert, row = g->first; row < g->stop; e++) {
        int64_t stop = min64(s->offset[e + 1], g->stop), begin = row;
        if (row == stop) continue;
        int64_t chunks = (stop - row + ROWS - 1) / ROWS;
        grads d = {0};
        if (s->dy) d = row > s->offset[e] ? g->partial : of_expert(s, e);
        for (int64_t c = 1; c <= chunks; c++) {
            int64_t end = begin + (stop - begin) * c / chunks;
            if (s->dy) backward_rows(s, g, e, row, end - row, d, row > begin, c == chunks);
            else forward_rows(s, g, e, row, end - row);
            row = end;
        }
    }
    fence();
    if (!s->dy) return;
    for (int64_t e = index; e < s->experts; e += s->groups) { // experts without rows
        if (s->offset[e] != s->offset[e + 1]) continue;
        grads d = of_expert(s, e);
        memset(d.dw_in, 0, 4 * width_of(s, e) * s->model);
        memset(d.dw_out, 0, 4 * s->model * inner_of(s, e));
        if (s->b_in) memset(d.db_in, 0, 4 * width_of(s, e));
        if (s->b_out) memset(d.db_out, 0, 4 * s->model);
    }
}

// Forward if dy is NULL, else backward. Returns 0, or 1 if out of memory.
int zoo_ffn(const ffn *s) {
    if (s->groups > 64) return 1;
    group groups[64] = {{0}};
    cut(s, groups);
    int failed = 0;
    for (int64_t g = 0; g < s->groups; g++) {
        float *memory = pool_get(4 * lay_out(s, &groups[g], (int)g, NULL));
        if (memory) lay_out(s, &groups[g], (int)g, memory);
        else failed = 1;
    }
    if (!failed) {
        int64_t count = s->groups, out = s->tokens * s->model;
        float *total = groups[0].sum;
#pragma omp parallel for schedule(static, 1) num_threads(s->threads)
        for (int64_t g = 0; g < count; g++) run_group(s, &groups[g], g);
#pragma omp parallel for schedule(static) num_threads(s->threads)
        for (int64_t block = 0; block < (out + 4095) / 4096; block++)
            for (int64_t g = 1; g < count; g++)
                add_to(total + block * 4096, groups[g].sum + block * 4096, min64(4096, out - block * 4096));
        for (int64_t g = 1; g < count; g++)
            if (groups[g].partial.dw_in) {
                int64_t e = groups[g].expert;
                grads d = of_expert(s, e);
                add_to(d.dw_in, groups[g].partial.dw_in, width_of(s, e) * s->model);
                add_to(d.dw_out, groups[g].partial.dw_out, s->model * inner_of(s, e));
                if (s->b_in) add_to(d.db_in, groups[g].partial.db_in, width_of(s, e));
                if (s->b_out) add_to(d.db_out, groups[g].partial.db_out, s->model);
            }
    }
    for (int64_t g = 0; g < s->groups; g++) pool_put(groups[g].memory);
    return failed;
}
