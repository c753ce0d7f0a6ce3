#include "pool.h"
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { SLOTS = 64, HEADER = 64 };
#define HUGE_PAGE ((size_t)2 << 20)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct { void *buffer; uint64_t last_use; } idle[SLOTS];
static uint64_t clock_now;
static size_t idle_bytes, idle_limit = (size_t)1 << 30;

static size_t *size_of(void *buffer) { return (size_t *)((char *)buffer - HEADER); }
static void release(void *buffer) { free((char *)buffer - HEADER); }

void *pool_get(size_t bytes) {
    if (bytes == 0) bytes = 1;
    int best = -1;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < SLOTS; i++) {
        if (!idle[i].buffer) continue;
        size_t size = *size_of(idle[i].buffer);
        if (size >= bytes && size / 2 <= bytes && (best < 0 || size < *size_of(idle[best].buffer))) best = i;
    }
    void *buffer = best < 0 ? NULL : idle[best].buffer;
    if (buffer) idle[best].buffer = NULL, idle_bytes -= *size_of(buffer);
    pthread_mutex_unlock(&lock);
    if (buffer) return buffer;
    size_t total = bytes + HEADER, align = total >= HUGE_PAGE ? HUGE_PAGE : 64;
    total = (total + align - 1) / align * align;
    char *base = aligned_alloc(align, total);
    if (!base) return NULL;
#ifdef MADV_HUGEPAGE
    if (align == HUGE_PAGE) madvise(base, total, MADV_HUGEPAGE);
#endif
    *(size_t *)base = total - HEADER;
    return base + HEADER;
}

void pool_put(void *buffer) {
    if (!buffer) return;
    if (*size_of(buffer) > idle_limit) {
        release(buffer);
        return;
    }
    void *drop[SLOTS];
    int dropped = 0;
    pthread_mutex_lock(&lock);
    int slot = -1;
    while (slot < 0) { // makes room by dropping what was idle longest
        int oldest = -1, empty = -1;
        for (int i = 0; i < SLOTS; i++) {
            if (!idle[i].buffer) empty = i;
            else if (oldest < 0 || idle[i].last_use < idle[oldest].last_use) oldest = i;
        }
        if (empty >= 0 && (oldest < 0 || idle_bytes + *size_of(buffer) <= idle_limit)) slot = empty;
        else {
            idle_bytes -= *size_of(idle[oldest].buffer);
            drop[dropped++] = idle[oldest].buffer;
            idle[oldest].buffer = NULL;
        }
    }
    idle[slot].buffer = buffer;
    idle[slot].last_use = ++clock_now;
    idle_bytes += *size_of(buffer);
    pthread_mutex_unlock(&lock);
    while (dropped) release(drop[--dropped]);
}

void zoo_pool_limit(int64_t bytes) { // of what may lie idle; frees all that does now
    pthread_mutex_lock(&lock);
    idle_limit = (size_t)bytes;
    for (int i = 0; i < SLOTS; i++)
        if (idle[i].buffer) release(idle[i].buffer), idle[i].buffer = NULL;
    idle_bytes = 0;
    pthread_mutex_unlock(&lock);
}
int64_t zoo_pool_idle(void) { return (int64_t)idle_bytes; }
// a fork while another thread held the lock would leave it locked for ever in the child
void zoo_pool_after_fork(void) { pthread_mutex_init(&lock, NULL); }

// DLPack (v0, the layout every framework reads): a tensor that owns a pooled buffer and gives it back when it dies
typedef struct managed {
    struct {
        void *data;
        struct { int32_t type, id; } device;
        int32_t ndim;
        struct { uint8_t code, bits; uint16_t lanes; } dtype;
        int64_t *shape, *strides;
        uint64_t byte_offset;
    } tensor;
    void *context;
    void (*deleter)(struct managed *);
    int64_t dims[4];
} managed;

static void delete_managed(managed *self) {
    pool_put(self->tensor.data);
    free(self);
}

managed *zoo_tensor(int ndim, const int64_t *dims, int code, int bits) { // DLPack's names of the type
    managed *self = calloc(1, sizeof *self);
    size_t bytes = (size_t)bits / 8;
    for (int i = 0; i < ndim; i++) bytes *= (size_t)dims[i];
    void *data = self ? pool_get(bytes) : NULL;
    if (!data) {
        free(self);
        return NULL;
    }
    self->tensor.data = data;
    self->tensor.device.type = 1; // CPU
    self->tensor.ndim = ndim;
    self->tensor.dtype.code = (uint8_t)code, self->tensor.dtype.bits = (uint8_t)bits, self->tensor.dtype.lanes = 1;
    for (int i = 0; i < ndim; i++) self->dims[i] = dims[i];
    self->tensor.shape = self->dims;
    self->deleter = delete_managed;
    return self;
}
