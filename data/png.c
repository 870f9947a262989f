/* png.c -- libpng's simplified writer. See png.h. */
#include "data/png.h"

#include <png.h>

bool png_write(const char *path, const ImageView *img, Rect r, Error *e) {
    png_image p = {.version = PNG_IMAGE_VERSION, .width = (png_uint_32)rect_w(r), .height = (png_uint_32)rect_h(r), .format = PNG_FORMAT_RGB};
    png_alloc_size_t size = PNG_IMAGE_PNG_SIZE_MAX(p);
    void *data = xcalloc(size, 1); /* an upper bound, so the picture is compressed once */
    bool ok = png_image_write_to_memory(&p, data, &size, 0, img->rgb + ((int64_t)r.y0 * img->w + r.x0) * 3, img->w * 3, NULL);
    if (!ok) fail_as(e, FAIL_OTHER, "%s: PNG encoder: %s", path, p.message);
    ok = ok && file_write_atomic(path, data, size, e);
    free(data);
    return ok;
}
