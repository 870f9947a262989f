/* images.c -- the resampler as a filter, for tests/parity/compare_images.py.
 *
 *   parity-images     cases on standard input, each "W H X0 Y0 X1 Y1 FILTER OW OH\n" (FILTER 0 bilinear, 1 bicubic) and W*H*3
 *                     bytes; OW*OH*3 bytes each on standard output
 */
#include "kernels/cpu/image.h"

#include "engine/base.h"

int main(void) {
    ImageView im = {0};
    Rect r;
    int filter, ow, oh;
    for (int row = 0; scanf("%d %d %d %d %d %d %d %d %d", &im.w, &im.h, &r.x0, &r.y0, &r.x1, &r.y1, &filter,
                            &ow, &oh) == 9;
         row++) {
        const size_t n = (size_t)im.w * (size_t)im.h * 3, m = (size_t)ow * (size_t)oh * 3;
        uint8_t *in = xcalloc(n, 1), *out = xcalloc(m, 1);
        if (getchar() != '\n' || fread(in, 1, n, stdin) != n) die(FAIL_DATA, "case %d is cut off", row);
        im.rgb = in;
        image_resize_u8(out, ow, oh, &im, r, filter ? BICUBIC : BILINEAR);
        fwrite(out, 1, m, stdout);
        free(in);
        free(out);
    }
}
