/* driver.c -- libcuda.so.1 of a machine without a card, for test_cudnn.c: what cuDNN asks of the driver
 * when it has compiled a kernel and readies the plan. Every module loads, nothing can be launched. */
#include <stddef.h>

enum { FAILS = 999 };

int cuLibraryLoadData(void **library, const void *code) { return (void)code, *library = library, 0; }
int cuLibraryGetKernel(void **kernel, void *library, const char *name) {
    return (void)library, (void)name, *kernel = kernel, 0;
}
int cuLibraryUnload(void *library) { return (void)library, 0; }
int cuKernelGetAttribute(int *value, int attribute) { return (void)attribute, *value = 128, 0; }
int cuKernelSetAttribute(void) { return 0; }
int cuOccupancyMaxPotentialClusterSize(int *size) { return *size = 1, 0; }
int cuDeviceGetCount(int *n) { return *n = 1, 0; }
int cuDeviceGet(int *device) { return *device = 0, 0; }
int cuDriverGetVersion(int *version) { return *version = 13000, 0; }
int cuGetErrorName(int error, const char **name) { return (void)error, *name = "no driver", 0; }
int cuGetErrorString(int error, const char **text) {
    return (void)error, *text = "the tests' driver runs nothing", 0;
}

#define NOTHING(name)                                                                                        \
    int name(void) { return FAILS; }
NOTHING(cuCtxGetCurrent)
NOTHING(cuCtxGetLimit)
NOTHING(cuCtxPopCurrent)
NOTHING(cuCtxPushCurrent)
NOTHING(cuStreamGetCtx)
NOTHING(cuLinkCreate)
NOTHING(cuLinkAddData)
NOTHING(cuLinkComplete)
NOTHING(cuLinkDestroy)
NOTHING(cuLaunchKernel)
NOTHING(cuLaunchKernelEx)
NOTHING(cuLaunchCooperativeKernel)
NOTHING(cuLibraryLoadFromFile)
