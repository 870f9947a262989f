/* fuzz_jpeg.c -- libFuzzer target: any bytes as a JPEG; every pixel of what is decoded must be ours to read.
 *
 * libjpeg is not instrumented, so nothing would lead from random bytes to a picture: the mutator now and then begins anew with
 * a small one, of the kinds that are met: baseline, progressive, grey, CMYK, with restart markers.
 */
#include <stdio.h>

#include <jpeglib.h>

#include "data/jpeg.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed);

/* A picture as an input (its first byte is min_side), or 0 when it does not fit. */
static size_t make_picture(uint8_t *out, size_t max, unsigned seed) {
    struct jpeg_compress_struct c;
    struct jpeg_error_mgr err;
    unsigned char *jpg = NULL;
    unsigned long n = 0;
    c.err = jpeg_std_error(&err);
    jpeg_create_compress(&c);
    jpeg_mem_dest(&c, &jpg, &n);
    c.image_width = 1 + seed % 40;
    c.image_height = 1 + seed / 40 % 40;
    c.input_components = (int[]){3, 1, 4, 3}[seed / 1600 % 4];
    c.in_color_space = (J_COLOR_SPACE[]){JCS_RGB, JCS_GRAYSCALE, JCS_CMYK, JCS_RGB}[seed / 1600 % 4];
    jpeg_set_defaults(&c);
    jpeg_set_quality(&c, (int)(seed / 6400 % 100), TRUE);
    if (seed / 640000 % 2) jpeg_simple_progression(&c);
    c.restart_in_rows = (int)(seed / 1280000 % 2);
    jpeg_start_compress(&c, TRUE);
    while (c.next_scanline < c.image_height) {
        uint8_t line[40 * 4];
        for (unsigned i = 0; i < sizeof line; i++) line[i] = (uint8_t)(i * 5 + c.next_scanline * 11);
        jpeg_write_scanlines(&c, &(JSAMPROW){line}, 1);
    }
    jpeg_finish_compress(&c);
    jpeg_destroy_compress(&c);
    const bool fits = n + 1 <= max;
    if (fits) {
        out[0] = (uint8_t)seed;
        memcpy(out + 1, jpg, n);
    }
    free(jpg);
    return fits ? n + 1 : 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed) {
    size_t n = seed % 16 && size > 20 ? 0 : make_picture(data, max, seed / 16);
    return n ? n : LLVMFuzzerMutate(data, size, max);
}

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
