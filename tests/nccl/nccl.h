/* nccl.h -- a stand-in for the calls of NCCL that comm_nccl.c makes. Names carry a prefix, so that a test binary may link the
 * library, too. Next: standin.c. */
#pragma once
#include <cuda_runtime_api.h>
#include <stdbool.h>

#define ncclGetUniqueId       standin_ncclGetUniqueId
#define ncclCommInitRankConfig standin_ncclCommInitRankConfig
#define ncclCommGetAsyncError standin_ncclCommGetAsyncError
#define ncclAllReduce         standin_ncclAllReduce
#define ncclSend              standin_ncclSend
#define ncclRecv              standin_ncclRecv
#define ncclGroupStart        standin_ncclGroupStart
#define ncclGroupEnd          standin_ncclGroupEnd
#define ncclCommFinalize      standin_ncclCommFinalize
#define ncclCommDestroy       standin_ncclCommDestroy
#define ncclCommAbort         standin_ncclCommAbort
#define ncclGetErrorString    standin_ncclGetErrorString
#define ncclGetLastError      standin_ncclGetLastError

typedef struct StandinComm *ncclComm_t;
typedef struct { char internal[128]; } ncclUniqueId;
typedef enum { ncclSuccess, ncclUnhandledCudaError, ncclSystemError, ncclInternalError, ncclInvalidArgument, ncclInvalidUsage,
               ncclRemoteError, ncclInProgress } ncclResult_t;
typedef enum { ncclFloat32 = 7 } ncclDataType_t;
typedef enum { ncclSum } ncclRedOp_t;
typedef struct { int blocking; } ncclConfig_t;
#define NCCL_CONFIG_INITIALIZER {1}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id);
ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t *config);
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error);
ncclResult_t ncclAllReduce(const void *send, void *recv, size_t n, ncclDataType_t t, ncclRedOp_t op, ncclComm_t comm, cudaStream_t s);
ncclResult_t ncclSend(const void *send, size_t n, ncclDataType_t t, int peer, ncclComm_t comm, cudaStream_t s);
ncclResult_t ncclRecv(void *recv, size_t n, ncclDataType_t t, int peer, ncclComm_t comm, cudaStream_t s);
ncclResult_t ncclGroupStart(void);
ncclResult_t ncclGroupEnd(void);
ncclResult_t ncclCommFinalize(ncclComm_t comm);
ncclResult_t ncclCommDestroy(ncclComm_t comm);
ncclResult_t ncclCommAbort(ncclComm_t comm);
const char *ncclGetErrorString(ncclResult_t r);
const char *ncclGetLastError(ncclComm_t comm);

/* ---- of the stand-in itself ---- */

/* A stream is a thread that takes its work in order, late by up to two milliseconds each: whoever forgets to wait reads what is
 * not there yet. */
cudaStream_t standin_stream(unsigned seed);
void standin_queue(cudaStream_t s, void (*fn)(void *), const void *arg, size_t bytes); /* arg is copied */
void standin_after(cudaStream_t s, cudaStream_t other); /* as Device.after */
void standin_sync(cudaStream_t s);
/* The next `after` all-reduces succeed, then this rank's communicator has an error of its own. */
extern int standin_fail_after;
