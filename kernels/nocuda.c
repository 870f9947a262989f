/* nocuda.c -- in place of cuda/device.c in a binary built without CUDA: says so to whoever asks for a card. */
#include "engine/base.h"
#include "kernels/device.h"

int device_cuda_count(Error *e) {
    fail_as(e, FAIL_CONFIG, "this binary was built without CUDA (make CUDA=1 builds build/cuda/vpdistill; run.device=cpu computes without)");
    return 0;
}

Device *device_cuda(int index, Error *e) {
    (void)index;
    device_cuda_count(e);
    return NULL;
}

bool device_use_cudnn(Device *d, Error *e) {
    return fail_as(e, FAIL_CONFIG, "cuDNN computes on graphics cards, this run on the %s (run.device=cuda, or run.attention=own)", d->name);
}

bool device_find_cudnn(char *text, size_t size, Error *e) {
    (void)text, (void)size;
    device_cuda_count(e);
    return false;
}
