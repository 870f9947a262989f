/* jpeg.c -- libjpeg-turbo behind one call each way.
 *
 * libjpeg reports an error by never returning from error_exit, so every call into it runs under one setjmp
 * and whatever must survive is in the Session. Limits come first: a file is judged by its header before
 * any memory is taken for its pixels. Cropping and resizing: the image op in kernels/ops.h.
 */
#include "data/jpeg.h"
#include <setjmp.h>
#include <jpeglib.h>
#include <jerror.h>

const char *const jpeg_cause_names[JPEG_CAUSES] = {"ok",      "not a JPEG", "truncated",
                                                   "corrupt", "too large",  "too many scans"};

typedef struct Session {
    struct jpeg_error_mgr err; /* first: libjpeg hands us a pointer to it */
    struct jpeg_progress_mgr progress;
    jmp_buf back;
    char words[JMSG_LENGTH_MAX];
    int warnings, fatal; /* fatal: the message code of the error that ended it */
    bool ended;          /* the data ran out ... */
    int end_scan;        /* ... in this scan ... */
    JDIMENSION end_row;  /* ... in this row of blocks */
    bool too_many;
} Session;

static void on_error(j_common_ptr c) {
    Session *s = (Session *)c->err;
    s->fatal = c->err->msg_code;
    c->err->format_message(c, s->words);
    longjmp(s->back, 1);
}

static void on_message(j_common_ptr c, int level) {
    Session *s = (Session *)c->err;
    if (level >= 0) return; /* traces */
    s->warnings++;
    if (!s->words[0]) c->err->format_message(c, s->words);
    if (c->err->msg_code == JWRN_JPEG_EOF && c->is_decompressor && !s->ended) {
        s->ended = true;
        s->end_scan = ((j_decompress_ptr)c)->input_scan_number;
        s->end_row = ((j_decompress_ptr)c)->input_iMCU_row;
    }
}

static void on_progress(j_common_ptr c) {
    Session *s = (Session *)c->err;
    if (((j_decompress_ptr)c)->input_scan_number <= JPEG_MAX_SCANS) return;
    s->too_many = true;
    longjmp(s->back, 1);
}

static void session_open(Session *s, struct jpeg_decompress_struct *d) {
    memset(s, 0, sizeof *s);
    memset(d, 0, sizeof *d);
    d->err = jpeg_std_error(&s->err);
    s->err.error_exit = on_error;
    s->err.emit_message = on_message;
    s->progress.progress_monitor = on_progress;
}

/* Were at least half of the rows, or one whole scan, there before the data ran out? */
static bool enough(const Session *s, const struct jpeg_decompress_struct *d) {
    return !s->ended || s->end_scan > 1 || s->end_row * 2 >= d->total_iMCU_rows;
}

static void set_scale(struct jpeg_decompress_struct *d, int min_side) {
    const int64_t side = MIN(d->image_width, d->image_height);
    d->scale_num = 1;
    d->scale_denom = 1;
    if (min_side <= 0) return;
    /* Powers of two have SIMD transforms. A side becomes ceil(side / denom). */
    while (d->scale_denom < 8 && (side + 2 * d->scale_denom - 1) / (2 * d->scale_denom) >= min_side)
        d->scale_denom *= 2;
}

/* CMYK to RGB without a colour profile. Adobe writes the inks inverted. */
static void cmyk_to_rgb(uint8_t *rgb, const uint8_t *cmyk, int w, bool inverted) {
    const int flip = inverted ? 0 : 255;
    for (int x = 0; x < w; x++) {
        const int k = cmyk[4 * x + 3] ^ flip; /* x ^ 255 = 255 - x */
        for (int c = 0; c < 3; c++) rgb[3 * x + c] = (uint8_t)(((cmyk[4 * x + c] ^ flip) * k + 127) / 255);
    }
}

static void read_rows(struct jpeg_decompress_struct *d, uint8_t *rgb) {
    const int w = (int)d->output_width;
    JSAMPARRAY inks = NULL;
    if (d->out_color_space == JCS_CMYK)
        inks = d->mem->alloc_sarray((j_common_ptr)d, JPOOL_IMAGE, d->output_width * 4, 1);
    while (d->output_scanline < d->output_height) {
        uint8_t *row = rgb + (int64_t)d->output_scanline * w * 3;
        jpeg_read_scanlines(d, inks ? inks : &row, 1);
        if (inks) cmyk_to_rgb(row, inks[0], w, d->saw_Adobe_marker);
    }
}

static bool give_up(Session *s, struct jpeg_decompress_struct *d, JpegCause *cause, Error *e) {
    jpeg_destroy_decompress(d);
    if (s->too_many) {
        *cause = JPEG_TOO_MANY_SCANS;
        return fail_as(e, FAIL_DATA, "a progressive JPEG of more than %d scans", JPEG_MAX_SCANS);
    }
    *cause = s->ended ? JPEG_TRUNCATED : JPEG_CORRUPT;
    if (s->fatal == JERR_NO_BACKING_STORE || s->fatal == JERR_OUT_OF_MEMORY) *cause = JPEG_TOO_LARGE;
    return fail_as(e, FAIL_DATA, "%s JPEG: %s", jpeg_cause_names[*cause], s->words);
}

static bool decode(Arena *a, const void *data, size_t size, int min_side, ImageView *out, int *warnings,
                   JpegCause *cause, Error *e) {
    const size_t mark = arena_mark(a);
    Session s;
    struct jpeg_decompress_struct d;
    session_open(&s, &d);
    if (setjmp(s.back)) { /* nothing that changed after setjmp is read here, but for s and d, which live in
                             memory */
        arena_reset(a, mark);
        return give_up(&s, &d, cause, e);
    }
    jpeg_create_decompress(&d);
    d.progress = &s.progress;
    d.mem->max_memory_to_use = JPEG_MAX_MEMORY;
    jpeg_mem_src(&d, data, size);
    jpeg_read_header(&d, TRUE);

    const int64_t claimed = (int64_t)d.image_width * d.image_height; /* both below 65536 in this format */
    if (claimed > JPEG_MAX_PIXELS) {
        *cause = JPEG_TOO_LARGE;
        fail_as(e, FAIL_DATA, "the JPEG claims %u x %u pixels, more than the %d that we decode",
                d.image_width, d.image_height, JPEG_MAX_PIXELS);
        jpeg_destroy_decompress(&d);
        return false;
    }
    set_scale(&d, min_side);
    d.dct_method = JDCT_ISLOW;
    d.out_color_space = d.jpeg_color_space == JCS_CMYK || d.jpeg_color_space == JCS_YCCK ? JCS_CMYK : JCS_RGB;
    jpeg_calc_output_dimensions(&d);
    const size_t bytes = (size_t)d.output_width * d.output_height * 3;
    if (a->size - a->used < bytes + 64) {
        *cause = JPEG_TOO_LARGE;
        fail_as(e, FAIL_DATA, "the JPEG decodes to %u x %u pixels, %zu bytes; the %s arena has %zu left",
                d.output_width, d.output_height, bytes, a->name, a->size - a->used);
        jpeg_destroy_decompress(&d);
        return false;
    }
    jpeg_start_decompress(&d);
    uint8_t *rgb = arena_alloc(a, bytes);
    read_rows(&d, rgb);
    if (!enough(&s, &d)) {
        *cause = JPEG_TRUNCATED;
        fail_as(e, FAIL_DATA, "truncated JPEG: ends in row %u of %u rows of blocks", s.end_row,
                d.total_iMCU_rows);
        jpeg_destroy_decompress(&d);
        arena_reset(a, mark);
        return false;
    }
    *out = (ImageView){.rgb = rgb, .w = (int)d.output_width, .h = (int)d.output_height};
    /* No jpeg_finish_decompress: it would read on to the end-of-image marker, and we have every row. */
    jpeg_destroy_decompress(&d);
    if (warnings) *warnings += s.warnings;
    *cause = s.ended ? JPEG_TRUNCATED : s.warnings ? JPEG_CORRUPT : JPEG_OK;
    return true;
}

bool jpeg_decode(Arena *a, const void *data, size_t size, int min_side, ImageView *out, int *warnings,
                 JpegCause *cause, Error *e) {
    JpegCause unasked;
    const uint8_t *head = data;
    if (!cause) cause = &unasked;
    if (size >= 2 && head[0] == 0xff && head[1] == 0xd8)
        return decode(a, data, size, min_side, out, warnings, cause, e);
    *cause = JPEG_NOT_JPEG;
    if (size < 2) return fail_as(e, FAIL_DATA, "not a JPEG: %zu bytes", size);
    return fail_as(e, FAIL_DATA, "not a JPEG: begins with %02x %02x, a JPEG with ff d8%s", head[0], head[1],
                   head[0] == 0x89 && head[1] == 'P' ? " (this is a PNG)" : "");
}

bool jpeg_encode(const ImageView *img, int quality, unsigned char **out, size_t *size, Error *e) {
    CHECK(img->w > 0 && img->h > 0 && quality >= 1 && quality <= 100, "image %d x %d, quality %d", img->w,
          img->h, quality);
    if (img->w > JPEG_MAX_DIMENSION || img->h > JPEG_MAX_DIMENSION)
        return fail_as(e, FAIL_DATA, "an image of %d x %d cannot be a JPEG, whose sides end at %ld", img->w,
                       img->h, (long)JPEG_MAX_DIMENSION);
    Session s;
    struct jpeg_compress_struct c;
    struct {
        unsigned char *data;
        unsigned long size;
    } *mem = xcalloc(1, sizeof *mem); /* survives the longjmp */
    memset(&s, 0, sizeof s);
    memset(&c, 0, sizeof c);
    c.err = jpeg_std_error(&s.err);
    s.err.error_exit = on_error;
    s.err.emit_message = on_message;
    if (setjmp(s.back)) {
        jpeg_destroy_compress(&c);
        free(mem->data);
        free(mem);
        return fail_as(e, FAIL_OTHER, "JPEG encoder: %s", s.words);
    }
    jpeg_create_compress(&c);
    jpeg_mem_dest(&c, &mem->data, &mem->size);
    c.image_width = (JDIMENSION)img->w;
    c.image_height = (JDIMENSION)img->h;
    c.input_components = 3;
    c.in_color_space = JCS_RGB;
    jpeg_set_defaults(&c);
    jpeg_set_quality(&c, quality, TRUE);
    c.dct_method = JDCT_ISLOW;
    jpeg_start_compress(&c, TRUE);
    while (c.next_scanline < c.image_height) {
        JSAMPROW row = (JSAMPROW)(uintptr_t)(img->rgb + (int64_t)c.next_scanline * img->w * 3);
        jpeg_write_scanlines(&c, &row, 1);
    }
    jpeg_finish_compress(&c);
    jpeg_destroy_compress(&c);
    *out = mem->data;
    *size = mem->size;
    free(mem);
    return true;
}
