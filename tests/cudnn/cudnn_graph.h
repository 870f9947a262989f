/* cudnn_graph.h -- a stand-in for cuDNN's header, with its own numbers: what is compiled against it can
 * open the real library, and does in test_cudnn.c. Everything of kernels/cuda that is compiled so gets
 * names of its own, and the emulated card for its kernels. Next: standin.c, the library. */
#pragma once
#include "kernels/cuda/stream.h" /* whose streams these are not */
#include "tests/cudnn/numbers.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define X(name, number) name = number,
enum { CUDNN_NUMBERS(X) };
#undef X

typedef int cudnnStatus_t, cudnnDataType_t, cudnnBackendDescriptorType_t, cudnnBackendAttributeName_t,
    cudnnBackendAttributeType_t, cudnnPointwiseMode_t, cudnnReduceTensorOp_t, cudnnConvolutionMode_t,
    cudnnBackendHeurMode_t, cudnnBackendNumericalNote_t;
typedef struct cudnnContext *cudnnHandle_t;
typedef void *cudnnBackendDescriptor_t;

size_t cudnnGetVersion(void);
const char *cudnnGetErrorString(cudnnStatus_t status);
void cudnnGetLastErrorString(char *message, size_t max_size);
cudnnStatus_t cudnnCreate(cudnnHandle_t *handle);
cudnnStatus_t cudnnDestroy(cudnnHandle_t handle);
cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream);
cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t *d);
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t d);
cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t n, const void *values);
cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t wanted, int64_t *n,
                                       void *values);
cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t d);
cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                                  cudnnBackendDescriptor_t pack);

/* ---- kernels/cuda on the emulated card ---- */

void *emu_scratch(struct Stream *s, size_t bytes);
#undef STREAM_QUEUE
#undef STREAM_CARD
#define STREAM_QUEUE(s)       ((cudaStream_t)(s))
#define STREAM_CARD(s)        ((void)(s), 0)
#define ops_cuda              ops_emu
#define cuda_scratch          emu_scratch
#define cuda_attention_fwd    emu_attention_fwd
#define cuda_attention_bwd    emu_attention_bwd
#define cuda_attention_order  emu_attention_order
#define cuda_attention_pack   emu_attention_pack
#define cuda_attention_unpack emu_attention_unpack
#define cuda_attention_fill   emu_attention_fill
#define cuda_attention_blind  emu_attention_blind
#define cuda_attention_stats  emu_attention_stats

#define cudnn_open             emulated_cudnn_open
#define cudnn_use_card         emulated_cudnn_use_card
#define cudnn_has_attention    emulated_cudnn_has_attention
#define cudnn_close            emulated_cudnn_close
#define cudnn_version          emulated_cudnn_version
#define cudnn_path             emulated_cudnn_path
#define graph_tensor           emulated_graph_tensor
#define graph_number           emulated_graph_number
#define graph_virtual          emulated_graph_virtual
#define graph_virtual_strided  emulated_graph_virtual_strided
#define graph_pointwise        emulated_graph_pointwise
#define graph_index            emulated_graph_index
#define graph_matmul           emulated_graph_matmul
#define graph_reduce           emulated_graph_reduce
#define graph_reshape          emulated_graph_reshape
#define graph_convolve         emulated_graph_convolve
#define graph_plan             emulated_graph_plan
#define graph_plan_close       emulated_graph_plan_close
#define graph_run              emulated_graph_run
#define cudnn_forget_attention emulated_cudnn_forget_attention
#define cudnn_forget_conv      emulated_cudnn_forget_conv
#define cudnn_attention_plan   emulated_cudnn_attention_plan
#define cudnn_attention_fwd    emulated_cudnn_attention_fwd
#define cudnn_attention_bwd    emulated_cudnn_attention_bwd
#define cudnn_conv_plan        emulated_cudnn_conv_plan
#define cudnn_has_patches      emulated_cudnn_has_patches
#define cudnn_patches          emulated_cudnn_patches
#define device_use_cudnn       emulated_device_use_cudnn
#define device_find_cudnn      emulated_device_find_cudnn

/* ---- of the stand-in itself: found in it by dlsym ---- */

typedef struct Standin {
    /* Where work is queued: fn(arg) of `bytes` runs when the stream gets there. */
    void (*queue)(cudaStream_t s, void (*fn)(void *), const void *arg, size_t bytes);
    size_t version;
    bool refuses;        /* no engine takes any graph */
    int64_t alive;       /* descriptors and handles */
    int64_t runs;        /* graphs */
    char complaint[256]; /* the first thing that was wrong with a call */
} Standin;
#define STANDIN "cudnn_standin"
