/* device.h -- what the engine knows of a machine that computes: memory, copies, streams, and its Ops table.
 *
 * All work is queued on a Stream. On the CPU a stream is nothing: an op has finished when it returns. Device memory is not
 * for the host to touch: upload and download are the only ways in and out, on the CPU too.
 * Next: ops.h, the contract of each op.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct Error Error; /* engine/base.h */
typedef struct Stream Stream;
typedef struct Ops Ops;

typedef struct Device {
    const char *name; /* "cpu", "cuda" */
    char description[160];
    const Ops *ops;
    Stream *main, *copy, *comm; /* computing, moving data beside it, collectives; NULL on the CPU */
    int nthreads;               /* CPU: workers of one op */
    bool reserves;              /* alloc reserves address space only: memory is taken when first touched */

    /* `bytes` of memory for any type, contents undefined. Dies with the sizes when there is not so much. */
    void *(*alloc)(struct Device *d, size_t bytes);
    void (*release)(struct Device *d, void *p, size_t bytes);
    /* How much there is, in bytes, and how much of it is free now. */
    void (*memory)(struct Device *d, size_t *free, size_t *total);
    /* Copies and zeros are queued on the main stream. After upload returns `src` may be reused at once; download waits. */
    void (*upload)(struct Device *d, void *dst, const void *src, size_t bytes);
    void (*download)(struct Device *d, void *dst, const void *src, size_t bytes);
    void (*zero)(struct Device *d, void *p, size_t bytes);
    /* What is queued on `s` from now on begins when all that is queued on `other` so far is done. The host goes on. */
    void (*after)(struct Device *d, Stream *s, Stream *other);
    void (*sync)(struct Device *d); /* waits for all streams */
} Device;

/* The CPU device: `nthreads` OpenMP threads, 0 = all cores this process may use. Valid until exit. */
Device *device_cpu(int nthreads);
/* Graphics card number `index`, opened once and valid until exit. NULL when there is none, or this binary was built without
 * CUDA: e says so. */
Device *device_cuda(int index, Error *e);
/* Lets cuDNN, opened now, compute attention on this card, where it can. False: the device is no card, or cuDNN cannot be used. */
bool device_use_cudnn(Device *d, Error *e);
/* "9.19.0, FILE" of the cuDNN that it would be, opened for it. False: why there is none. */
bool device_find_cudnn(char *text, size_t size, Error *e);
/* How many cards there are; 0 without CUDA or a driver, then e says why. */
int device_cuda_count(Error *e);
