/* cuda_runtime_api.h -- a stand-in: what kernels/cuda/stream.h names, for comm_nccl.c on machines without CUDA. See standin.c. */
#pragma once
#include <stddef.h>

typedef int cudaError_t;
typedef struct StandinStream *cudaStream_t;
typedef struct StandinEvent *cudaEvent_t;
