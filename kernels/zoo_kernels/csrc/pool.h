// Large buffers that are reused: touching a fresh page costs more than computing what goes into it.
#ifndef ZOO_POOL_H
#define ZOO_POOL_H
#include <stddef.h>
void *pool_get(size_t bytes);  // 64-byte aligned, contents undefined; NULL if out of memory
void pool_put(void *buffer);   // NULL is fine
#endif
