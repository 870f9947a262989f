/* device.h -- what the engine knows of a machine that computes: memory, copies, and its Ops table.
 *
 * All work is queued on a Stream. On the CPU a stream is nothing: an op has finished when it returns.
 * Next: ops.h, the contract of each op.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>

typedef struct Stream Stream;
typedef struct Ops Ops;

typedef struct Device {
    const char *name;                 /* "cpu" */
    const Ops *ops;
    Stream *main;                     /* NULL on the CPU */
    int nthreads;                     /* workers of one op */

    /* Address space for `bytes`, zero-filled, backed by memory when first touched. Dies with sizes when refused. */
    void *(*alloc)(struct Device *d, size_t bytes);
    void (*release)(struct Device *d, void *p, size_t bytes);
    void (*upload)(struct Device *d, void *dst, const void *src, size_t bytes);       /* host to device, queued */
    void (*download)(struct Device *d, void *dst, const void *src, size_t bytes);     /* device to host, waits */
    void (*zero)(struct Device *d, void *p, size_t bytes);                            /* queued */
    void (*sync)(struct Device *d);
} Device;

/* The CPU device: `nthreads` OpenMP threads, 0 = all cores this process may use. Valid until exit. */
Device *device_cpu(int nthreads);
