/* fuzz_jpeg.c -- libFuzzer target: any bytes as a JPEG; every pixel of what is decoded must be ours to read. */
#include "data/jpeg.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static Arena arena;
    if (!arena.size) arena_open(&arena, "fuzz", NULL, 64 << 20);
    arena_reset(&arena, 0);
    if (size < 1) return 0;
    ImageView v = {0};
    int warnings = 0;
    JpegCause cause = JPEG_OK;
    Error e = {0};
    uint8_t *copy = xcalloc(size - 1, 1);
    memcpy(copy, data + 1, size - 1);
    if (jpeg_decode(&arena, copy, size - 1, data[0] & 1 ? 0 : data[0], &v, &warnings, &cause, &e)) {
        CHECK(v.w > 0 && v.h > 0 && (size_t)v.w * (size_t)v.h * 3 <= arena.used, "%d x %d in %zu bytes", v.w, v.h, arena.used);
        volatile uint64_t sum = hash_bytes(v.rgb, (size_t)v.w * (size_t)v.h * 3, 0);
        (void)sum;
    } else {
        CHECK(*e.text && cause != JPEG_OK && arena.used == 0, "cause %d, %zu bytes in use", cause, arena.used);
    }
    free(copy);
    return 0;
}
