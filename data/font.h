/* font.h -- letters and emoji as pixels: FreeType behind two calls.
 *
 * A font is a file that the caller names. It is opened when first used and stays open; one thread at a time may call.
 */
#pragma once
#include "engine/arena.h"

/* One line of text: how much of each pixel the letters cover, rows without gaps. */
typedef struct TextMask {
    int w, h;          /* of the pixels that the line touches or advances over */
    int top;           /* rows from the top of the font's line down to the first of them */
    uint8_t *coverage; /* (h, w) */
} TextMask;

/* `s`, n bytes of UTF-8, at `px` pixels per em: the same extent and pixels as Pillow's ImageFont gives. The mask belongs to
 * `a`. Bytes that are not UTF-8 are drawn as U+FFFD. False (FAIL_CONFIG) when the font cannot be read. */
bool font_text(TextMask *out, Arena *a, const char *font, int px, const char *s, int n, Error *e);

/* The largest picture that a colour font (CBDT, as Noto Color Emoji) has of a character: *rgba (h, w, 4), not premultiplied. */
typedef struct Sticker { int w, h; uint8_t *rgba; } Sticker;
bool font_emoji(Sticker *out, Arena *a, const char *font, uint32_t code, Error *e);
