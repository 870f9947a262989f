/* image.h -- Pillow-exact resizing to u8, for whoever wants pixels and not patches (thumbnails of a trace). */
#pragma once
#include "kernels/ops.h"

/* out (oh, ow, 3) = the rectangle of `im` resized to ow x oh, as Pillow's Image.crop(rect).resize((ow, oh)) gives it,
 * bit for bit: pixels of the rectangle outside the image are black. out may not overlap the image.
 * ow, oh >= 1, the rectangle not empty; all four sides at most IMAGE_MAX_SIDE. */
#define IMAGE_MAX_SIDE (1 << 20)
void image_resize_u8(uint8_t *out, int ow, int oh, const ImageView *im, Rect rect, Filter filter);
