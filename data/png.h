/* png.h -- RGB to PNG: results of programs, to the last bit. Reading images is jpeg.h. */
#pragma once
#include "engine/base.h"
#include "kernels/rect.h"

/* Writes a rectangle of the image as a file of 8-bit RGB, whole or not at all. FAIL_DISK with the path. */
bool png_write(const char *path, const ImageView *img, Rect r, Error *e);
