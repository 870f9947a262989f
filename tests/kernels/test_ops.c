/* test_ops.c -- every op has a test, and the device does what device.h says. */
#include "tests/kernels/kernels.h"

COVERS(elsewhere, image_patches) /* test_image.c */

TEST(every_op_is_covered) {
#define X(name)                                                                                              \
    EXPECT(kernels_covered(#name), "no test file COVERS op " #name " (tests/kernels/kernels.h)");            \
    EXPECT(ops_cpu.name == cpu_##name, "the table's " #name " is another function");
    OPS(X)
#undef X
    EXPECT(!kernels_covered("no_such_op") && !kernels_covered("add"), "the registry takes parts of names");
}

TEST(device_memory) {
    Device *d = device_cpu(0);
    EXPECT(!strcmp(d->name, "cpu") && d->ops == &ops_cpu && d->nthreads >= 1, "%s, %d threads", d->name, d->nthreads);
    const size_t size = (size_t)64 << 30; /* address space only: much more than this test may use */
    unsigned char *p = d->alloc(d, size), there[5], from[5] = {1, 2, 3, 4, 5};
    p[size - 1] = 1;
    d->upload(d, p + 1000, from, 5);
    d->download(d, there, p + 1000, 5);
    EXPECT(!memcmp(there, from, 5), "a round trip changed the bytes");
    d->zero(d, p + 1001, 3);
    EXPECT(p[1000] == 1 && p[1001] == 0 && p[1003] == 0 && p[1004] == 5, "zero");
    d->sync(d);
    d->release(d, p, size);
    d->release(d, d->alloc(d, 0), 0);
    EXPECT(device_cpu(3)->nthreads == 3 && device_cpu(0)->nthreads >= 1, "threads");
}
