/* test_jpeg.c -- JPEG decoding: colour spaces, scaling, limits, and files that lie. */
#include "data/jpeg.h"
#include "tests/test.h"
#include <jpeglib.h>
#include <math.h>

static Arena arena;

/* Smooth colours, so that JPEG's own loss stays small. */
static ImageView picture(int w, int h) {
    uint8_t *p = arena_alloc(&arena, (size_t)w * h * 3);
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++) {
            uint8_t *q = p + ((int64_t)y * w + x) * 3;
            q[0] = (uint8_t)(40 + 180 * x / w);
            q[1] = (uint8_t)(200 - 150 * y / h);
            q[2] = (uint8_t)(60 + 120 * (x + y) / (w + h));
        }
    return (ImageView){p, w, h};
}

static double mean_error(ImageView a, ImageView b) {
    double sum = 0;
    for (int64_t i = 0; i < (int64_t)a.w * a.h * 3; i++) sum += abs(a.rgb[i] - b.rgb[i]);
    return sum / ((double)a.w * a.h * 3);
}

/* Encodes with libjpeg directly: the formats that jpeg_encode does not write. */
static unsigned char *encode(int w, int h, int ncomp, J_COLOR_SPACE in, J_COLOR_SPACE store,
                             const uint8_t *pixels, const jpeg_scan_info *scans, int nscans, size_t *size) {
    struct jpeg_compress_struct c;
    struct jpeg_error_mgr err;
    unsigned char *data = NULL;
    unsigned long n = 0;
    c.err = jpeg_std_error(&err);
    jpeg_create_compress(&c);
    jpeg_mem_dest(&c, &data, &n);
    c.image_width = (JDIMENSION)w, c.image_height = (JDIMENSION)h, c.input_components = ncomp,
    c.in_color_space = in;
    jpeg_set_defaults(&c);
    jpeg_set_colorspace(&c, store);
    jpeg_set_quality(&c, 95, TRUE);
    if (scans) c.scan_info = scans, c.num_scans = nscans;
    jpeg_start_compress(&c, TRUE);
    while (c.next_scanline < c.image_height) {
        JSAMPROW row = (JSAMPROW)(uintptr_t)(pixels + (int64_t)c.next_scanline * w * ncomp);
        jpeg_write_scanlines(&c, &row, 1);
    }
    jpeg_finish_compress(&c);
    jpeg_destroy_compress(&c);
    *size = n;
    return data;
}

static void begin(void) {
    if (!arena.size) arena_open(&arena, "test images", NULL, 64 << 20);
    arena_reset(&arena, 0);
}

TEST(jpeg_roundtrip) {
    begin();
    static const struct {
        int w, h, quality;
        double bound;
    } cases[] = {
        {1, 1, 92, 3},       {7, 5, 92, 6},      {16, 16, 92, 3},
        {192, 144, 92, 1.5}, {131, 77, 50, 3.5}, /* mean level error; 4:2:0 and odd edges */
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        Error e = {0};
        const ImageView in = picture(cases[i].w, cases[i].h);
        ImageView out = {0};
        unsigned char *jpg = NULL;
        size_t size = 0;
        int warnings = 0;
        JpegCause cause = JPEG_CAUSES;
        EXPECT(jpeg_encode(&in, cases[i].quality, &jpg, &size, &e), "%s", e.text);
        EXPECT(jpeg_decode(&arena, jpg, size, 0, &out, &warnings, &cause, &e), "%s", e.text);
        EXPECT(out.w == in.w && out.h == in.h && warnings == 0 && cause == JPEG_OK, "%d x %d, %d warnings",
               out.w, out.h, warnings);
        if (out.rgb) EXPECT_NEAR(mean_error(in, out), 0, cases[i].bound, "%d x %d", in.w, in.h);
        free(jpg);
    }
}

TEST(jpeg_scaling) {
    begin();
    static const struct {
        int w, h, min_side, want_w, want_h;
    } cases[] = {
        {640, 480, 0, 640, 480},   {640, 480, 480, 640, 480}, {640, 480, 241, 640, 480},
        {640, 480, 240, 320, 240}, {640, 480, 60, 80, 60},    {640, 480, 1, 80, 60},
        {641, 479, 240, 321, 240}, {30, 20, 384, 30, 20},     {3, 3, 1, 1, 1},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        begin();
        Error e = {0};
        const ImageView in = picture(cases[i].w, cases[i].h);
        ImageView out = {0};
        unsigned char *jpg = NULL;
        size_t size = 0;
        EXPECT(jpeg_encode(&in, 90, &jpg, &size, &e), "%s", e.text);
        EXPECT(jpeg_decode(&arena, jpg, size, cases[i].min_side, &out, NULL, NULL, &e), "%s", e.text);
        EXPECT(out.w == cases[i].want_w && out.h == cases[i].want_h, "min_side %d of %d x %d gives %d x %d",
               cases[i].min_side, cases[i].w, cases[i].h, out.w, out.h);
        free(jpg);
    }
}

TEST(jpeg_gray_and_cmyk) {
    begin();
    Error e = {0};
    enum { W = 40, H = 24 };
    uint8_t gray[W * H], cmyk[W * H * 4];
    size_t size;
    ImageView out = {0};
    for (int i = 0; i < W * H; i++) gray[i] = (uint8_t)(50 + i % W * 3);
    unsigned char *jpg = encode(W, H, 1, JCS_GRAYSCALE, JCS_GRAYSCALE, gray, NULL, 0, &size);
    EXPECT(jpeg_decode(&arena, jpg, size, 0, &out, NULL, NULL, &e), "%s", e.text);
    for (int i = 0; out.rgb && i < W * H; i++)
        EXPECT(abs(out.rgb[3 * i] - gray[i]) <= 6 && out.rgb[3 * i] == out.rgb[3 * i + 1] &&
                   out.rgb[3 * i] == out.rgb[3 * i + 2],
               "gray pixel %d: %d for %d", i, out.rgb[3 * i], gray[i]);
    free(jpg);
    /* libjpeg marks its CMYK as Adobe's, which stores 255 - ink: red = C * K / 255. */
    static const J_COLOR_SPACE stores[] = {JCS_CMYK, JCS_YCCK};
    for (int k = 0; k < 2; k++) {
        for (int i = 0; i < W * H; i++)
            cmyk[4 * i] = 220, cmyk[4 * i + 1] = 90, cmyk[4 * i + 2] = 40, cmyk[4 * i + 3] = 200;
        jpg = encode(W, H, 4, JCS_CMYK, stores[k], cmyk, NULL, 0, &size);
        EXPECT(jpeg_decode(&arena, jpg, size, 0, &out, NULL, NULL, &e), "%s", e.text);
        static const int want[3] = {220 * 200 / 255, 90 * 200 / 255, 40 * 200 / 255};
        for (int c = 0; c < 3; c++)
            EXPECT(abs(out.rgb[c] - want[c]) <= 5, "channel %d is %d, not %d", c, out.rgb[c], want[c]);
        free(jpg);
    }
}

TEST(jpeg_refuses_what_is_not_one) {
    begin();
    static const struct {
        const char *bytes;
        size_t n;
    } cases[] = {
        {"", 0},
        {"\xff", 1},
        {"\x89PNG\r\n\x1a\n", 8},
        {"GIF89a", 6},
        {"\xff\xd8", 2},
        {"\xff\xd8\xff\xd9", 4},
        {"\xff\xd8 hello", 8},
        {"\xff\xd8\xff\xc0\x00\x02", 6},
        {"\xff\xd8\xff\xc0\xff\xff", 6},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        Error e = {0};
        ImageView out;
        JpegCause cause = JPEG_OK;
        const size_t mark = arena_mark(&arena);
        EXPECT(!jpeg_decode(&arena, cases[i].bytes, cases[i].n, 0, &out, NULL, &cause, &e), "case %d decodes",
               i);
        EXPECT(cause == (i < 4 ? JPEG_NOT_JPEG : cause) && cause != JPEG_OK && e.status == FAIL_DATA &&
                   e.text[0],
               "case %d: %s", i, e.text);
        EXPECT(arena_mark(&arena) == mark, "case %d keeps %zu bytes", i, arena_mark(&arena) - mark);
    }
}

/* The SOF0 segment: height and width are its bytes 5..8. */
static unsigned char *find_sof(unsigned char *jpg, size_t size) {
    for (size_t i = 0; i + 9 < size; i++)
        if (jpg[i] == 0xff && (jpg[i + 1] == 0xc0 || jpg[i + 1] == 0xc2)) return jpg + i;
    return NULL;
}

TEST(jpeg_claims_60000_square) {
    begin();
    Error e = {0};
    const ImageView in = picture(64, 64);
    unsigned char *jpg;
    size_t size;
    EXPECT(jpeg_encode(&in, 90, &jpg, &size, &e), "%s", e.text);
    unsigned char *sof = find_sof(jpg, size);
    sof[5] = sof[7] = 60000 >> 8, sof[6] = sof[8] = 60000 & 255;
    ImageView out;
    JpegCause cause;
    const size_t mark = arena_mark(&arena), peak = arena.peak;
    EXPECT(!jpeg_decode(&arena, jpg, size, 64, &out, NULL, &cause, &e), "it decodes");
    EXPECT(cause == JPEG_TOO_LARGE && strstr(e.text, "60000 x 60000") && e.status == FAIL_DATA, "%s", e.text);
    EXPECT(arena_mark(&arena) == mark && arena.peak == peak, "memory was taken");
    /* Within the limit, but not within this arena: refused as well, not a crash. */
    sof[5] = sof[7] = 8000 >> 8, sof[6] = sof[8] = 8000 & 255;
    EXPECT(!jpeg_decode(&arena, jpg, size, 0, &out, NULL, &cause, &e), "it decodes");
    EXPECT(cause == JPEG_TOO_LARGE && strstr(e.text, "test images"), "%s", e.text);
    free(jpg);
}

TEST(jpeg_truncated) {
    begin();
    Error e = {0};
    const ImageView in = picture(192, 144);
    unsigned char *jpg;
    size_t size;
    EXPECT(jpeg_encode(&in, 92, &jpg, &size, &e), "%s", e.text);
    const size_t mark = arena_mark(&arena);
    int decoded = 0, refused = 0, last_refused = 0;
    for (size_t n = 2; n + 2 < size;
         n += 7) { /* any prefix either decodes with a warning or is refused as truncated */
        ImageView out = {0};
        JpegCause cause = JPEG_OK;
        int warnings = 0;
        unsigned char *part = xcalloc(n, 1); /* its own block: the sanitizer sees a read past the end */
        memcpy(part, jpg, n);
        if (jpeg_decode(&arena, part, n, 0, &out, &warnings, &cause, &e)) {
            decoded++;
            EXPECT(cause == JPEG_TRUNCATED && warnings > 0 && out.w == 192,
                   "prefix %zu: cause %d, %d warnings", n, cause, warnings);
        } else {
            refused++, last_refused = (int)n;
            EXPECT(cause == JPEG_TRUNCATED || cause == JPEG_CORRUPT, "prefix %zu: cause %d", n, cause);
            EXPECT(arena_mark(&arena) == mark, "prefix %zu keeps memory", n);
        }
        arena_reset(&arena, mark);
        free(part);
    }
    EXPECT(decoded > 10 && refused > 10, "%d prefixes decode, %d do not", decoded, refused);
    EXPECT(last_refused < (int)size * 4 / 5, "a prefix of %d bytes of %zu is refused", last_refused, size);
    free(jpg);
}

TEST(jpeg_progressive_scans) {
    begin();
    enum { W = 48, H = 48 };
    const ImageView in = picture(W, H);
    jpeg_scan_info scan[1 + 3 * 63];
    int n = 0;
    scan[n++] = (jpeg_scan_info){.comps_in_scan = 3, .component_index = {0, 1, 2}};
    for (int c = 0; c < 3; c++)
        for (int k = 1; k < 64; k++)
            scan[n++] = (jpeg_scan_info){.comps_in_scan = 1, .component_index = {c}, .Ss = k, .Se = k};
    /* 64 scans leave out all detail of the colours, 100 some of it: the bound is on a picture without it. */
    static const struct {
        int scans;
        bool ok;
    } cases[] = {{64, true}, {JPEG_MAX_SCANS, true}, {JPEG_MAX_SCANS + 1, false}, {190, false}};
    for (int i = 0; i < COUNT_OF(cases); i++) {
        Error e = {0};
        size_t size;
        ImageView out = {0};
        JpegCause cause;
        unsigned char *jpg = encode(W, H, 3, JCS_RGB, JCS_YCbCr, in.rgb, scan, cases[i].scans, &size);
        const bool ok = jpeg_decode(&arena, jpg, size, 0, &out, NULL, &cause, &e);
        EXPECT(ok == cases[i].ok && cause == (ok ? JPEG_OK : JPEG_TOO_MANY_SCANS), "%d scans: cause %d, %s",
               cases[i].scans, cause, e.text);
        if (ok) EXPECT_NEAR(mean_error(in, out), 0, 6, "%d scans", cases[i].scans);
        free(jpg);
    }
}

/* Every file that differs from a good one in a few bytes decodes or is refused; nothing else happens (run it
 * with SAN=1). */
TEST(jpeg_survives_mutations) {
    begin();
    Error e = {0};
    const ImageView in = picture(96, 64);
    jpeg_scan_info scan[3] = {{.comps_in_scan = 3, .component_index = {0, 1, 2}, .Al = 1},
                              {.comps_in_scan = 1, .component_index = {0}, .Ss = 1, .Se = 63},
                              {.comps_in_scan = 3, .component_index = {0, 1, 2}, .Ah = 1}};
    for (int progressive = 0; progressive < 2; progressive++) {
        size_t size;
        unsigned char *jpg =
            encode(96, 64, 3, JCS_RGB, JCS_YCbCr, in.rgb, progressive ? scan : NULL, 3, &size);
        unsigned char *bad = xcalloc(size, 1);
        uint64_t state = 7;
        const size_t mark = arena_mark(&arena);
        int decoded = 0;
        for (int t = 0; t < 1500; t++) {
            memcpy(bad, jpg, size);
            for (int k = 0; k < 1 + t % 4; k++) {
                state = state * 6364136223846793005u + 1442695040888963407u;
                const size_t at = t % 2 ? (state >> 33) % size
                                        : (state >> 33) % MIN(size, 650); /* half of them in the headers */
                bad[at] = (unsigned char)(state >> 25);
            }
            ImageView out;
            decoded += jpeg_decode(&arena, bad, size, 32 * (t % 3), &out, NULL, NULL, &e);
            arena_reset(&arena, mark);
        }
        EXPECT(decoded > 100, "only %d of 1500 decode", decoded);
        free(bad);
        free(jpg);
    }
}
