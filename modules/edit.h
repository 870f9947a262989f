/* edit.h -- what COLORPOP, BGBLUR, EMOJI and TAG do to pixels: as VisProg does it with Pillow, to the last bit.
 *
 * Pictures are 8-bit RGB without gaps between rows. Objects are rectangles in pixels of the picture: this build has no
 * network that gives masks, so an object's mask is its box. Which boxes, and where the pixels live, is steps.c.
 *
 * (The reference first "refines" each mask by GrabCut, started from a mask that calls every pixel surely foreground or
 * surely background. GrabCut changes only pixels that are called probably one or the other, so it changes nothing.)
 */
#pragma once
#include "data/font.h"
#include "kernels/rect.h"

/* Colour stays on the objects, all else becomes gray (Pillow's mode L). out may not be in. */
void edit_colorpop(uint8_t *out, const uint8_t *in, int w, int h, const Rect *object, int n);

/* The objects stay sharp, all else is blurred: radius 2, and the border between both softened by radius 5. out may not be in.
 * Takes edit_bgblur_bytes of `scratch` and gives them back. */
void edit_bgblur(uint8_t *out, const uint8_t *in, int w, int h, const Rect *object, int n, Arena *scratch);
size_t edit_bgblur_bytes(int w, int h);

/* Pillow's GaussianBlur(radius): three passes of an extended box blur, along rows and then along columns. Of `channels` 1 or 3,
 * in place; scratch: two copies of the picture, given back. */
void edit_gaussian_blur(uint8_t *p, int w, int h, int channels, float radius, Arena *scratch);

/* The sticker over a box [x1, y1, x2, y2]: 1/1.5 of the box's height high, its left upper corner so that a square one would
 * be in the middle (AugLy's overlay_emoji as VisProg calls it). */
void edit_emoji(uint8_t *rgb, int w, int h, const Sticker *s, const double box[4], Arena *scratch);

/* A green frame, 4 pixels thick, inside the box, whose last column and row are box.x1 and box.y1. (Pillow's frame leaves a box
 * of less than 4 pixels.) */
void edit_frame(uint8_t *rgb, int w, int h, Rect box);
/* White letters on green, under the box or, where that would leave the picture, on its lower edge. `text` has its extent from
 * font_text. */
void edit_label(uint8_t *rgb, int w, int h, Rect box, const TextMask *text);

/* The character of an emoji that AugLy knows by this name ("winking_face"), 0: none. */
uint32_t emoji_code(const char *name, int n);
/* All names, for error sentences. */
extern const char *const emoji_names[];
extern const int nemoji_names;
