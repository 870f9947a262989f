/* test_clip.c -- CLIP against transformers: cosines, contrastive loss, every gradient, ten updates; its towers; its folders. */
#include <math.h>
#include <unistd.h>

#include "modules/clip.h"
#include "tests/kernels/kernels.h"
#include "tests/modules/golden_model.h"

#define FOLDER "tests/golden/tiny-clip"

DEVICE_TEST(clip_outputs) { golden_check_outputs(FOLDER, 1e-5); }

DEVICE_TEST(clip_gradients) { golden_check_gradients(FOLDER, 1e-4); }

DEVICE_TEST(clip_bf16) { golden_check_bf16(FOLDER); }
TEST(clip_bf16_ten_updates) { golden_train_bf16(FOLDER); }

DEVICE_TEST(clip_ten_updates) { golden_check_updates(FOLDER, 1e-3); }

/* 16 pairs are 4 pictures and 4 texts, however they are asked. */
TEST(clip_towers_once) {
    ModelCase g;
    if (!golden_open(&g, FOLDER)) return;
    case_begin(&g, false);
    Outputs two;
    module_forward(g.m, &g.c, g.ask + 9, 2, &two);
    EXPECT(g.m->image_rows == 1 && g.m->text_rows == 2, "%" PRId64 " images, %" PRId64 " texts", g.m->image_rows, g.m->text_rows);
    case_forward(&g);
    EXPECT(g.m->image_rows == 4 && g.m->text_rows == 4, "%" PRId64 " images, %" PRId64 " texts", g.m->image_rows, g.m->text_rows);
    golden_compare(&g, g.out.logits, "logits", 1e-5);
    case_close(&g);
}

/* One side of the loss alone: SELECT's, where a text without its picture costs nothing. Against the plain formula. */
TEST(clip_loss_one_side) {
    ModelCase g;
    if (!golden_open(&g, FOLDER)) return;
    enum { N = 4 };
    static const int32_t image_of[N] = {2, -1, 0, 3};
    static const float weight[N] = {0.5f, 1, 0.25f, 2};
    case_begin(&g, false);
    case_forward(&g);
    const float *cosine = to_host(&g.c, g.out.logits);
    double want = 0, scale = exp(3); /* the golden model's logit_scale */
    for (int j = 0; j < N; j++) {
        double sum = 0;
        for (int i = 0; i < N; i++) sum += exp(scale * (double)cosine[i * N + j]);
        if (image_of[j] >= 0) want += (double)weight[j] * (log(sum) - scale * (double)cosine[image_of[j] * N + j]);
    }
    EXPECT_NEAR(clip_loss(g.m, &g.c, &g.out, N, N, NULL, NULL, image_of, weight), want, 1e-5 * want, "loss");
    case_close(&g);
}

/* Crops of any shape give a cosine, a strip of one pixel's height too. */
TEST(clip_long_crops) {
    ModelCase g;
    if (!golden_open(&g, FOLDER)) return;
    static uint8_t rgb[3000 * 2 * 3];
    for (int k = 0; k < (int)sizeof rgb; k++) rgb[k] = (uint8_t)hash_bytes(&k, sizeof k, 1);
    const ImageView image = {rgb, 3000, 2};
    const Ask ask[] = {{image, 77, {0, 0, 3000, 1}, "box"}, {image, 77, {5, 0, 6, 2}, "box"}};
    case_begin(&g, false);
    Outputs out;
    module_forward(g.m, &g.c, ask, 2, &out);
    const float *cosine = to_host(&g.c, out.logits);
    for (int i = 0; i < 2; i++) EXPECT(fabsf(cosine[i]) <= 1.0001f, "cosine %g", (double)cosine[i]);
    case_close(&g);
}
