/* test_ops.c -- every op has a test, and every device does what device.h says. */
#include "tests/kernels/kernels.h"

COVERS(elsewhere, image_patches) /* test_image.c */

TEST(every_op_is_covered) {
#define X(name)                                                                                              \
    EXPECT(kernels_covered(#name), "no test file COVERS op " #name " (tests/kernels/kernels.h)");            \
    EXPECT(ops_cpu.name == cpu_##name && ops_emu.name == emu_##name, "a table's " #name " is another function");
    OPS(X)
#undef X
#ifdef WITH_CUDA
#define X(name) EXPECT(ops_cuda.name == cuda_##name, "cuda's " #name " is another function");
    OPS(X)
#undef X
#endif
    EXPECT(!kernels_covered("no_such_op") && !kernels_covered("add"), "the registry takes parts of names");
}

DEVICE_TEST(device_memory) {
    const size_t size = dev->reserves ? (size_t)64 << 30 : 3 << 20; /* address space alone costs nothing */
    unsigned char *p = dev->alloc(dev, size), there[5], from[5] = {1, 2, 3, 4, 5};
    dev->upload(dev, p + size - 6, from, 5);
    dev->download(dev, there, p + size - 6, 5);
    EXPECT(!memcmp(there, from, 5), "a round trip changed the bytes");
    dev->zero(dev, p + size - 5, 3);
    dev->download(dev, there, p + size - 6, 5);
    EXPECT(there[0] == 1 && !there[1] && !there[3] && there[4] == 5, "zero");
    dev->upload(dev, p, from, 0);
    dev->zero(dev, p, 0);
    dev->sync(dev);
    dev->release(dev, p, size);
    dev->release(dev, dev->alloc(dev, 0), 0);
    size_t available = 0, total = 0;
    dev->memory(dev, &available, &total);
    EXPECT(available && available <= total, "%zu of %zu bytes are free", available, total);
}

TEST(device_cpu_threads) {
    Device *d = device_cpu(0);
    EXPECT(!strcmp(d->name, "cpu") && d->ops == &ops_cpu && d->nthreads >= 1, "%s, %d threads", d->name, d->nthreads);
    EXPECT(device_cpu(3)->nthreads == 3 && device_cpu(0)->nthreads >= 1, "threads");
}

/* The source of an upload belongs to its owner again when the call returns, whatever size it has. */
DEVICE_TEST(device_upload_takes_a_copy) {
    enum { N = 10000000 };
    unsigned char *host = xcalloc(N, 1), *back = xcalloc(N, 1), *p = dev->alloc(dev, 3 * N);
    for (int round = 0; round < 3; round++) {
        memset(host, round + 1, N);
        host[N - 1] = (unsigned char)(round + 101);
        dev->upload(dev, p + (size_t)round * N, host, N - (size_t)(round == 1)); /* the second: an odd size */
    }
    memset(host, 0, N);
    for (int round = 0; round < 3; round++) {
        dev->download(dev, back, p + (size_t)round * N, N - 1);
        EXPECT(back[0] == round + 1 && back[N / 2] == round + 1 && back[N - 2] == round + 1, "upload %d: %d %d %d", round, back[0],
               back[N / 2], back[N - 2]);
    }
    dev->release(dev, p, 3 * N);
    free(host);
    free(back);
}

/* 1 + 1 + ... on another stream, more than can be done by the time main gets there: main sees it when it comes after. */
DEVICE_TEST(device_after) {
    enum { N = 1 << 16, TIMES = 50 };
    static float one[N], sum[N];
    for (int i = 0; i < N; i++) one[i] = 1, sum[i] = 0;
    float *x = dev->alloc(dev, sizeof one), *y = dev->alloc(dev, sizeof sum);
    dev->upload(dev, x, one, sizeof one);
    dev->zero(dev, y, sizeof sum);
    dev->after(dev, dev->copy, dev->main);
    for (int i = 0; i < TIMES; i++) op->accumulate(dev->copy, F32, y, F32, x, N);
    dev->after(dev, dev->main, dev->copy);
    op->accumulate(S, F32, y, F32, x, N);
    dev->download(dev, sum, y, sizeof sum);
    EXPECT(sum[0] == TIMES + 1 && sum[N - 1] == TIMES + 1, "%g, %g", (double)sum[0], (double)sum[N - 1]);
    dev->release(dev, x, sizeof one);
    dev->release(dev, y, sizeof sum);
}
