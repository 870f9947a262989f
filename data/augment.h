/* augment.h -- photometric augmentation of training images: the pixels change, where things are does not. */
#pragma once
#include "kernels/rect.h"

/* out (w*h*3 bytes) = in, changed as a function of seed alone: gain per channel, brightness and contrast, a smooth or
 * striped tint laid over the whole image, blur, noise. strength 0..1 scales all of it; 0 copies. No flips and no crops
 * (they would change answers), hues stay within what a colour cast does. */
void augment_image(uint8_t *out, ImageView in, uint64_t seed, float strength);
