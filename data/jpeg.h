/* jpeg.h -- JPEG to RGB and back, safe against hostile files. */
#pragma once
#include "engine/arena.h"
#include "kernels/rect.h"

/* What went wrong with a file, so that a run can count by cause. */
typedef enum JpegCause {
    JPEG_OK,
    JPEG_NOT_JPEG,  /* does not begin with FF D8 */
    JPEG_TRUNCATED, /* ends too early */
    JPEG_CORRUPT,   /* libjpeg refuses it, or decoded it with warnings */
    JPEG_TOO_LARGE, /* claims more pixels than JPEG_MAX_PIXELS, or more than the arena has room for */
    JPEG_TOO_MANY_SCANS,
    JPEG_CAUSES,
} JpegCause;
extern const char *const jpeg_cause_names[JPEG_CAUSES];

/* width * height that a header may claim, before scaling; twice what a 30 megapixel camera makes. */
#define JPEG_MAX_PIXELS (64 * 1024 * 1024)
/* A progressive file is decoded once per scan: 100 tiny scans over a huge image are a denial of service. */
#define JPEG_MAX_SCANS 100
/* libjpeg's own working memory: a progressive image keeps all its coefficients, 2 bytes each. */
#define JPEG_MAX_MEMORY (512 * 1024 * 1024)

/* Decodes a JPEG (baseline, extended or progressive; gray, YCbCr, RGB, CMYK or YCCK) to RGB in the arena.
 *   min_side   > 0: scaled down in the decoder by 1/2, 1/4 or 1/8, as far as both sides stay >= min_side;
 *              an image smaller than that stays as it is
 *   warnings   may be NULL; number of libjpeg's warnings is added
 *   cause      may be NULL; on success JPEG_OK, or JPEG_TRUNCATED / JPEG_CORRUPT when there were warnings
 * A truncated file decodes when at least half of its rows (or one whole scan) are there; the rest is what
 * libjpeg fills in. False (FAIL_DATA, the arena as before) otherwise. Nothing is allocated from the arena for
 * a file that is refused by its header. Thread safe. */
bool jpeg_decode(Arena *a, const void *data, size_t size, int min_side, ImageView *out, int *warnings,
                 JpegCause *cause, Error *e);

/* Encodes at `quality` 1..100, 4:2:0. *out is malloc'ed; the caller frees it (on failure nothing is left).
 * The same bytes with and without libjpeg-turbo's SIMD. */
bool jpeg_encode(const ImageView *img, int quality, unsigned char **out, size_t *size, Error *e);
