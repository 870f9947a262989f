/* augment.h -- photometric augmentation of training images: the pixels change, where things are does not. */
#pragma once
#include "kernels/rect.h"

/* out (w*h*3 bytes) = in, changed as a function of seed alone. No flips and no crops (they would change answers).
 *   ground    0..1, the share of images that are put on another ground: what has the image's commonest colour is painted
 *             over with textures and scribbles (domain randomisation, for images with a plain ground)
 *   strength  0..1 scales the rest: gain per channel, brightness and contrast, a smooth or striped tint laid over the
 *             whole image, blur, noise; hues stay within what a colour cast does. 0: none of it
 *   scratch   another w*h*3 bytes, overwritten */
void augment_image(uint8_t *out, ImageView in, uint64_t seed, float strength, float ground, uint8_t *scratch);
