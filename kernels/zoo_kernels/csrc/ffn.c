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
    int64_t type, weight_type;              // of x, hidden, y and their gradients; of the weights and theirs
    int64_t in_turned, out_turned;          // the weights lie as (E, D, W) and (E, F, D), and so do their gradients
    float limit;
    const char *x;                          // (T, D)
    const float *weight;                    // (N,) in original pair order
    const int64_t *token, *pair, *offset;   // the plan
    const int64_t *start;                   // (E + 1): expert e has inner units start[e] to start[e + 1]; NULL: F each
    const char *w_in, *w_out;
    const float *b_in, *b_out, *scale_in, *scale_out; // scales of codes
    char *hidden;                           // (N, W) or NULL
    char *y;                                // forward: (T, D)
    const char *dy;                         // backward from here
    char *dx;
    float *dweight;
    char *dw_in, *dw_out;
    float *db_in, *db_out;
} ffn;

enum { ROWS = 512 }; // rows of one expert taken at a time
enum { ROW_COST = 16 }; // an expert costs as much as this many rows more: its weights are read

typedef struct {
    char *dw_in, *dw_out;
    float *db_in, *db_out;
    int type;
} grads;

// hidden, act and dhidden hold what `kept_as` says, the rest floats.
typedef struct {
    int64_t first, stop, expert; // sorted rows, expert of the first row
    float *sum;                  // this group's share of y or dx
    float *memory;               // all that follows
    float *pack, *codes, *hidden, *act, *dact, *dhidden, *scale, *row; // row: one of each but dact, as floats
    grads partial; // of `expert`, if it began in an earlier group
    grads wide;    // of an expert whose gradient takes several steps, as floats, if they are kept otherwise
} group;

static int is_code(int type) { return type == INT8 || type == TERNARY; }

// in which type a pre-activation or activation waits for the next product: as bf16 if that multiplies pairs of them
static int kept_as(const ffn *s) { return HAVE_DOT && s->weight_type == BF16 ? BF16 : F32; }

static void gemm(int64_t m, int64_t n, int64_t depth, operand a, operand b, result c, const group *g, const operand *then) {
    if (small_gemm(m, n, depth, a, b, &c, g->pack)) return;
    if (is_code(b.type)) {
        widen(&b, n, depth, g->codes);
        b = matrix(g->codes, F32, depth, NULL, 0), then = NULL;
    }
    packed_gemm(m, n, depth, a, b, c, g->pack, then);
}

// inner units of the experts before e, and of e; the pre-activation is once or twice as wide
static int64_t units_before(const ffn *s, int64_t e) { return s->start ? s->start[e] : e * s->inner; }
static int64_t inner_of(const ffn *s, int64_t e) { return s->start ? s->start[e + 1] - s->start[e] : s->inner; }
static int64_t twice(const ffn *s, int64_t units) { return s->mode == UNGATED ? units : 2 * units; }
static int64_t width_of(const ffn *s, int64_t e) { return twice(s, inner_of(s, e)); }

// one expert's weights, rows x depth; k_major if the product runs over the rows
static operand weights_of(const ffn *s, const char *all, int64_t before, const float *scales, int64_t rows, int64_t depth,
                          int turned, int k_major) {
    const int type = (int)s->weight_type;
    operand m = matrix(all + bytes_of(type, before), type, turned ? rows : depth, NULL, turned ? !k_major : k_major);
    if (is_code(type)) m.scale = scales;
    else m.size = bytes_of(type, rows * depth);
    return m;
}
static operand w_in_of(const ffn *s, int64_t e, int k_major) {
    int64_t before = twice(s, units_before(s, e));
    return weights_of(s, s->w_in, before * s->model, s->scale_in ? s->scale_in + before : NULL, width_of(s, e), s->model, s->in_turned, k_major);
}
static operand w_out_of(const ffn *s, int64_t e, int k_major) {
    return weights_of(s, s->w_out, units_before(s, e) * s->model, s->scale_out ? s->scale_out + e * s->model : NULL, s->model,
                      inner_of(s, e), s->out_turned, k_major);
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

static grads take_grads(const ffn *s, float **next) {
    char *dw_in = (char *)take(next, s->width * s->model), *dw_out = (char *)take(next, s->model * s->inner);
    return (grads){dw_in, dw_out, take(next, s->width), take(next, s->model), F32};
}

// Lays the group's workspace out; with memory NULL only measures it (in floats).
static int64_t lay_out(const ffn *s, group *g, int index, float *memory) {
    float *next = memory;
    int back = s->dy != NULL, own = index || s->type != F32;
    int64_t rows = min64(ROWS, g->stop - g->first), deepest = s->width > s->model ? s->width : s->model;
    g->memory = memory;
    g->pack = take(&next, pack_floats(deepest > ROWS ? deepest : ROWS));
    g->codes = take(&next, is_code((int)s->weight_type) ? s->width * s->model : 0);
    g->scale = take(&next, rows);
    g->row = take(&next, 2 * s->width + s->inner + s->model);
    g->hidden = take(&next, s->hidden ? 0 : rows * s->width);
    g->act = take(&next, rows * s->inner);
    g->dact = take(&next, back ? rows * s->inner : 0);
    g->dhidden = take(&next, back ? rows * s->width : 0);
    g->sum = own ? take(&next, s->tokens * s->model) : (float *)(back ? s->dx : s->y);
    if (!back || g->first == g->stop) return next - memory;
    if (g->first > s->offset[g->expert]) g->partial = take_grads(s, &next);
    if (s->weight_type != F32) g->wide = take_grads(s, &next);
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
static void up(const ffn *s, const group *g, int64_t e, int64_t row, int64_t rows, char *hidden, int type, const operand *then) {
    const float *bias = s->b_in ? s->b_in + twice(s, units_before(s, e)) : NULL;
    gemm(rows, width_of(s, e), s->model, matrix(s->x, (int)s->type, s->model, s->token + row, 0), w_in_of(s, e, 0),
         (result){hidden, s->width, NULL, NULL, bias, type, 0, 0}, g, then);
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
    const int waits = kept_as(s), type = s->hidden ? (int)s->type : waits;
    char *hidden = s->hidden ? s->hidden + bytes_of(type, row * s->width) : (char *)g->hidden, *act = (char *)g->act;
    int64_t inner = inner_of(s, e), width = width_of(s, e);
    operand w_out = w_out_of(s, e, 0), next = w_in_of(s, next_expert(s, e), 0);
    up(s, g, e, row, rows, hidden, type, &w_out);
#define CALL(KIND, MODE) \
    for (int64_t i = 0; i < rows; i++) { \
        const float *h = widened(type, hidden + bytes_of(type, i * s->width), width, g->row); \
        char *out = act + bytes_of(waits, i * s->inner); \
        float *wide = waits == F32 ? (float *)out : g->row + s->width; \
        forward_row(KIND, MODE, inner, s->limit, h, wide); \
        narrow(waits, wide, inner, out); \
    }
    EVERY_KIND(CALL)
#undef CALL
    for (int64_t i = 0; i < rows; i++) g->scale[i] = s->weight[s->pair[row + i]];
    gemm(rows, s->model, inner, matrix(act, waits, s->inner, NULL, 0), w_out,
         (result){(char *)g->sum, s->model, s->token + row, g->scale, NULL, F32, 1, 0}, g, &next);
    if (s->b_out)
        for (int64_t i = 0; i < rows; i++) axpy(g->sum + s->token[row + i] * s->model, g->scale[i], s->b_out + e * s->model, s->model);
}

static void weight_gradient(int64_t m, int64_t n, int64_t rows, operand left, operand right, char *out, int type, int turned, int add,
                            int last, const group *g, const operand *then) {
    result d = {out, turned ? m : n, NULL, NULL, NULL, type, add, last};
    if (turned) gemm(n, m, rows, right, left, d, g, then);
    else gemm(m, n, rows, left, right, d, g, then);
}

static void backward_rows(const ffn *s, const group *g, int64_t e, int64_t row, int64_t rows, grads d, int add, int last) {
    const int64_t *token = s->token + row, inner = inner_of(s, e), width = width_of(s, e);
    const int waits = kept_as(s), type = s->hidden ? (int)s->type : waits;
    operand w_in = w_in_of(s, e, 1), w_out = w_out_of(s, e, 1);
    operand next_out = w_out_of(s, next_expert(s, e), 1), next_in = w_in_of(s, next_expert(s, e), 1);
    char *hidden = s->hidden ? s->hidden + bytes_of(type, row * s->width) : (char *)g->hidden;
    if (!s->hidden) up(s, g, e, row, rows, hidden, type, &w_out);
    gemm(rows, inner, s->model, matrix(s->dy, (int)s->type, s->model, token, 0), w_out,
         (result){(char *)g->dact, s->inner, NULL, NULL, NULL, F32, 0, 0}, g, rows > 2 * MR ? &w_in : NULL);
    if (s->b_in && !add) memset(d.db_in, 0, 4 * width);
#define CALL(KIND, MODE) \
    for (int64_t i = 0; i < rows; i++) { \
        int64_t pair = s->pair[row + i]; \
        char *dhidden = (char *)g->dhidden + bytes_of(waits, i * s->width), *act = (char *)g->act + bytes_of(waits, i * s->inner); \
        const float *h = widened(type, hidden + bytes_of(type, i * s->width), width, g->row); \
        float *wide_dh = waits == F32 ? (float *)dhidden : g->row + s->width; \
        float *wide_act = waits == F32 ? (float *)act : g->row + 2 * s->width; \
        s->dweight[pair] = backward_row(KIND, MODE, inner, s->limit, s->weight[pair], h, g->dact + i * s->inner, wide_dh, wide_act); \
        if (s->b_in) add_to(d.db_in, wide_dh, width); \
        narrow(waits, wide_dh, width, dhidden); \
        narrow(waits, wide_act, inner, act); \
    }
    EVERY_KIND(CALL)
#undef CALL
    gemm(rows, s->model, width, matrix(g->dhidden, waits, s->width, NULL, 0), w_in,
         (result){(char *)g->sum, s->model, token, NULL, NULL, F32, 1, 0}, g, rows > 2 * MR ? NULL : &next_out);
    operand x = matrix(s->x, (int)s->type, s->model, token, 1), dhidden = matrix(g->dhidden, waits, s->width, NULL, 1);
    operand dy = matrix(s->dy, (int)s->type, s->model, token, 1), act = matrix(g->act, waits, s->inner, NULL, 1);
    weight_gradient(width, s->model, rows, dhidden, x, d.dw_in, d.type, s->in_turned, add, last, g, rows > 2 * MR ? &next_out : &next_in);
    weight_gradient(s->model, inner, rows, dy, act, d.dw_out, d.type, s->out_turned, add, last, g, NULL);
    if (s->b_out) {
        if (!add) memset(d.db_out, 0, 4 * s->model);
        for (int64_t i = 0; i < rows; i++) {
            const float *dy = widened((int)s->type, s->dy + bytes_of((int)s->type, token[i] * s->model), s->model, g->row);
            int64_t pair = s->pair[row + i];
            s->dweight[pair] += dot(dy, s->b_out + e * s->model, s->model);
            axpy(d.db_out, s->weight[pair], dy, s->model);
        }
    }
}

static grads of_expert(const ffn *s, int64_t e) {
    const int64_t units = units_before(s, e), type = s->weight_type;
    return (grads){s->dw_in + bytes_of((int)type, twice(s, units) * s->model), s->dw_out + bytes_of((int)type, units * s->model),
                   s->b_in ? s->db_in + twice(s, units) : NULL, s->b_out ? s->db_out + e * s->model : NULL, (int)type};
}

// Rounds an expert's gradients, which are biases' too, to where they belong.
static void finish(const ffn *s, int64_t e, const grads *wide) {
    grads d = of_expert(s, e);
    narrow(d.type, (float *)wide->dw_in, width_of(s, e) * s->model, d.dw_in);
    narrow(d.type, (float *)wide->dw_out, s->model * inner_of(s, e), d.dw_out);
    if (s->b_in) memcpy(d.db_in, wide->db_in, 4 * width_of(s, e));
    if (s->b_out) memcpy(d.db_out, wide->db_out, 4 * s->model);
}

static void run_group(const ffn *s, const group *g, int64_t index) {
    memset(g->sum, 0, 4 * s->tokens * s->model);
    for (int64_t e = g->expert, row = g->first; row < g->stop; e++) {
        int64_t stop = min64(s->offset[e + 1], g->stop), begin = row;
        if (row == stop) continue;
        int64_t chunks = (stop - row + ROWS - 1) / ROWS;
        int partial = row > s->offset[e], wide = !partial && s->weight_type != F32 && (chunks > 1 || stop < s->offset[e + 1]);
        grads d = {0};
        if (s->dy) d = partial ? g->partial : wide ? g->wide : of_expert(s, e);
        for (int64_t c = 1; c <= chunks; c++) {
            int64_t end = begin + (stop - begin) * c / chunks;
            if (s->dy) backward_rows(s, g, e, row, end - row, d, row > begin, c == chunks);
            else forward_rows(s, g, e, row, end - row);
            row = end;
        }
        if (s->dy && wide && stop == s->offset[e + 1]) finish(s, e, &g->wide);
    }
    fence();
    if (!s->dy) return;
    for (int64_t e = index; e < s->experts; e += s->groups) { // experts without rows
        if (s->offset[e] != s->offset[e + 1]) continue;
        grads d = of_expert(s, e);
        memset(d.dw_in, 0, bytes_of(d.type, width_of(s, e) * s->model));
        memset(d.dw_out, 0, bytes_of(d.type, s->model * inner_of(s, e)));
        if (s->b_in) memset(d.db_in, 0, 4 * width_of(s, e));
        if (s->b_out) memset(d.db_out, 0, 4 * s->model);
    }
}

// Adds up the gradients of the experts that were cut, in the order of the groups.
static void join(const ffn *s, const group *groups) {
    const grads *wide = NULL; // of the expert that was cut last, unless its gradients are floats already
    for (int64_t g = 1; g < s->groups; g++) {
        const group *here = &groups[g];
        int64_t e = here->expert;
        if (here->first == here->stop) continue;
        if (here->partial.dw_in) {
            if (s->weight_type != F32 && !wide) { // the group in which the expert began
                int64_t before = g - 1;
                while (groups[before].first == groups[before].stop) before--;
                wide = &groups[before].wide;
            }
            grads d = wide ? *wide : of_expert(s, e);
            add_to((float *)d.dw_in, (float *)here->partial.dw_in, width_of(s, e) * s->model);
            add_to((float *)d.dw_out, (float *)here->partial.dw_out, s->model * inner_of(s, e));
            if (s->b_in) add_to(d.db_in, here->partial.db_in, width_of(s, e));
            if (s->b_out) add_to(d.db_out, here->partial.db_out, s->model);
            if (wide && here->stop >= s->offset[e + 1]) finish(s, e, wide), wide = NULL;
        }
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
        for (int64_t block = 0; block < (out + 4095) / 4096; block++) {
            int64_t first = block * 4096, size = min64(4096, out - first);
            for (int64_t g = 1; g < count; g++) add_to(total + first, groups[g].sum + first, size);
            narrow((int)s->type, total + first, size, (s->dy ? s->dx : s->y) + bytes_of((int)s->type, first));
        }
        if (s->dy) join(s, groups);
    }
    for (int64_t g = 0; g < s->groups; g++) pool_put(groups[g].memory);
    return failed;
}

int zoo_has_fp16(void) { return HAVE_F16; }
