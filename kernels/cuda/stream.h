/* stream.h -- a Stream on a CUDA device: one queue of the card, and the memory that belongs to it. Implemented in device.c.
 *
 * All of a stream's work runs in the order it was queued. Two streams wait for each other only where Device.after says so.
 */
#pragma once
#include "kernels/device.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Pinned host memory through which uploads go, so that their source may be reused at once. A ring of slots: a slot fills with
 * one upload after another, and is written again only when the copies out of it are done. */
enum { STAGING_SLOTS = 4, STAGING_SLOT_BYTES = 4 << 20 };

typedef struct Staging {
    char *slot[STAGING_SLOTS];
    cudaEvent_t copied[STAGING_SLOTS]; /* recorded when the slot was left */
    int now;
    size_t used; /* of slot `now` */
} Staging;

struct Stream {
    const char *name; /* "compute", "copy", "comm": also in messages */
    int card;
    cudaStream_t cuda;
    cudaEvent_t reached; /* Device.after: a place in this stream that another waits for */
    void *scratch;
    size_t scratch_bytes;
    void *workspace; /* cuBLASLt's, see gemm.c */
    size_t workspace_bytes;
    float *sum; /* gemm.c's, too: it outlives calls for scratch */
    size_t sum_bytes;
    Staging staging;
};

/* The queue and the card of a stream, for files that the tests run on streams of another kind (tests/cudnn). */
#define STREAM_QUEUE(s) ((s)->cuda)
#define STREAM_CARD(s)  ((s)->card)

/* Device memory of the stream, undefined contents, 256-byte aligned. It grows and stays: valid until the next call on the same
 * stream, for work queued on that stream (whatever was queued before still finds its own). */
void *cuda_scratch(Stream *s, size_t bytes);
/* Host to device, queued; src may be reused when it returns. Device to host: waits for the stream. */
void cuda_upload(Stream *s, void *dst, const void *src, size_t bytes);
void cuda_download(Stream *s, void *dst, const void *src, size_t bytes);

/* A call of the CUDA runtime: dies with file, line, call and the library's words. */
#define CUDA_CHECK(call) cuda_check((call), #call, __FILE__, __LINE__)
void cuda_check(cudaError_t status, const char *call, const char *file, int line);

#ifdef __cplusplus
}
#endif
