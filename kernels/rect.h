/* rect.h -- pixels and rectangles: the two things an image value of a program is made of. */
#pragma once
#include <stdint.h>

/* Half-open: columns x0 <= x < x1, rows y0 <= y < y1, in pixels of the original image. */
typedef struct Rect { int x0, y0, x1, y1; } Rect;

/* 8-bit RGB, interleaved, rows without gaps. Borrowed: whoever decoded the image owns the pixels. */
typedef struct ImageView { const uint8_t *rgb; int w, h; } ImageView;

static inline int rect_w(Rect r) { return r.x1 - r.x0; }
static inline int rect_h(Rect r) { return r.y1 - r.y0; }
