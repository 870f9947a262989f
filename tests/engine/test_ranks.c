/* test_ranks.c -- whole runs of 1, 2 and 4 ranks: the same gradient, with run.reproducible the same bits,
 * and one goes on where another number stopped. How they end is in test_lost.c, the same over MPI in
 * test_mpi.c. */
#include "tests/engine/ranks.h"

#include <unistd.h>

#include "data/safetensors.h"

/* ---- the gradient --------------------------------------------------------------------------------- */

/* N ranks' gradient is that of one with the whole batch to 1e-6 of its norm. What is left is f32: other
 * batch sizes round the forward pass otherwise, sums over rows are cut in other places. It is no bound for
 * single parameters, some of which are all cancellation: keys' biases (0 in real numbers), the text
 * tower's queries and keys (another by 8e-6 of their own norm, which is 5e-4 of the whole at most). Equal
 * to the bit it is with run.reproducible. */
#define BOUND 1e-6

void gradient_of_train(void) {
    char out[3][300];
    static const char *const modules[] = {"vqa", "loc"};
    for (int m = 0; m < 2; m++) {
        char more[1000];
        outs(out, "gradient");
        /* Trained weights: a fresh LOC starts with a class loss of 14, whose gradient is mostly
         * cancellation. */
        snprintf(more, sizeof more,
                 "train.module=%s train.from_scratch=false train.clip=0 train.accumulate=2 "
                 "model.vqa=%s/configs/models/demo-vqa model.loc=%s/configs/models/demo-loc",
                 modules[m], repository(), repository());
        for (int i = 0; i < 3; i++) run_ranks(1 << i, train_line(out[i], 1, more));
        for (int i = 1; i < 3; i++)
            EXPECT_NEAR(moments_difference(out[0], out[i], 1, modules[m]), 0, BOUND, "%s, %d ranks",
                        modules[m], 1 << i);
    }
}

/* 32 programs of 8 images over 4 ranks: some ranks have no question for a module, some questions are put
 * by two ranks. */
void gradient_of_distill(void) {
    char out[3][300];
    outs(out, "distil");
    for (int i = 0; i < 3; i++) run_ranks(1 << i, distill_line(out[i], 1, "train.clip=0"));
    for (int i = 1; i < 3; i++) {
        EXPECT_NEAR(moments_difference(out[0], out[i], 1, "vqa"), 0, BOUND, "VQA, %d ranks", 1 << i);
        EXPECT_NEAR(moments_difference(out[0], out[i], 1, "loc"), 0, BOUND, "LOC, %d ranks", 1 << i);
    }
}

/* What two checkpoints keep to be learnt again: the same questions in the same order. The numbers come out
 * of other batches. */
static void check_same_lessons(const char *a, const char *b, int step) {
    static const char *const exact[] = {"batches", "text"};
    char path[2][600];
    SafeTensors x, y;
    Error e = {0};
    snprintf(path[0], sizeof path[0], "%s/checkpoint-%06d/lessons.safetensors", a, step);
    snprintf(path[1], sizeof path[1], "%s/checkpoint-%06d/lessons.safetensors", b, step);
    CHECK(st_open(&x, path[0], &e) && st_open(&y, path[1], &e), "%s", e.text);
    for (int i = 0; i < COUNT_OF(exact); i++) {
        const StTensor *t = st_find(&x, exact[i]), *u = st_find(&y, exact[i]);
        EXPECT(t && u && t->bytes && t->bytes == u->bytes && !memcmp(t->data, u->data, t->bytes),
               "%s: other %s", path[1], exact[i]);
    }
    st_close(&x);
    st_close(&y);
}

/* Two steps of which the second learns the first's lessons again. At learning rate 0 the weights stay, so
 * that the moments are a weighted sum of three gradients. First one image a step: all ranks but one have
 * nothing to learn and nothing to repeat. */
void gradient_of_lessons(void) {
    char out[3][300];
    for (int programs = 4; programs <= 32; programs *= 8) {
        char more[200];
        snprintf(more, sizeof more,
                 "train.clip=0 distill.reuse=1 distill.lag=1 distill.lr_vqa=0 distill.lr_loc=0 "
                 "distill.programs=%d",
                 programs);
        outs(out, "lessons");
        for (int i = 0; i < 3; i++) run_ranks(1 << i, distill_line(out[i], 2, more));
        for (int i = 1; i < 3; i++) {
            EXPECT_NEAR(moments_difference(out[0], out[i], 2, "vqa"), 0, BOUND, "VQA, %d programs, %d ranks",
                        programs, 1 << i);
            EXPECT_NEAR(moments_difference(out[0], out[i], 2, "loc"), 0, BOUND, "LOC, %d programs, %d ranks",
                        programs, 1 << i);
            check_same_lessons(out[0], out[i], 2);
        }
    }
}

TEST(ranks_gradient_of_train) {
    if (vpdistill()) gradient_of_train();
}

TEST(ranks_gradient_of_distill) {
    if (vpdistill()) gradient_of_distill();
}

TEST(ranks_gradient_of_lessons) {
    if (vpdistill()) gradient_of_lessons();
}

/* ---- bits ----------------------------------------------------------------------------------------- */

/* One folder for all, so that the configuration in the checkpoints is the same, too. */
static void check_reproducible(const char *what, int steps, LineFn *line, const char *more) {
    char out[300], kept[3][300], why[1300];
    snprintf(out, sizeof out, "%s/repro", test_dir());
    outs(kept, what);
    for (int i = 0; i < 3; i++) {
        run_ranks(1 << i, line(out, steps, more));
        EXPECT(!rename(out, kept[i]), "rename");
        char report[400]; /* holds times */
        snprintf(report, sizeof report, "%s/report.json", kept[i]);
        unlink(report);
        if (i) EXPECT(same_folders(kept[0], kept[i], why, sizeof why), "%s, %d ranks: %s", what, 1 << i, why);
    }
}

void bits_of_train(void) {
    check_reproducible("train", 4, train_line,
                       "run.reproducible=true train.module=vqa train.accumulate=2 train.augment=0.5");
    check_reproducible("train", 4, train_line,
                       "run.reproducible=true run.shard_optimizer=true train.module=loc");
    /* A rank's AdamW rounds its own share to bf16; the others' come with the gathered weights. */
    check_reproducible("train", 3, train_line,
                       "run.reproducible=true run.shard_optimizer=true run.precision=bf16 train.module=vqa");
}

void bits_of_distill(void) {
    check_reproducible("distill", 2, distill_line, "run.reproducible=true");
    check_reproducible("distill", 4, distill_line,
                       "run.reproducible=true distill.reuse=2 distill.lag=1 distill.programs=8");
}

TEST(ranks_bits_of_train) {
    if (!vpdistill()) return;
    bits_of_train();
    check_reproducible("train", 4, train_line, "run.reproducible=true run.comm=tcp train.module=vqa");
}

TEST(ranks_bits_of_distill) {
    if (vpdistill()) bits_of_distill();
}

/* Ranks of one host sum in shared memory; over sockets the bits are the same, run.reproducible or not. */
TEST(ranks_bits_of_shared_memory) {
    char out[3][300], more[100];
    if (!vpdistill()) return;
    for (int n = 2; n <= 4; n++) {
        outs(out, "comm");
        for (int i = 0; i < 2; i++) {
            snprintf(more, sizeof more, "train.accumulate=2 train.module=vqa run.comm=%s",
                     i ? "tcp" : "auto");
            run_ranks(n, train_line(out[i], 4, more));
        }
        EXPECT(moments_difference(out[0], out[1], 4, "vqa") == 0, "%d ranks: other bits over sockets", n);
    }
}

static bool same_bytes(const char *a, const char *b, const char *file) {
    char path[2][600], *text[2] = {NULL};
    size_t n[2];
    Error e = {0};
    bool same = true;
    for (int i = 0; i < 2; i++) {
        snprintf(path[i], sizeof path[i], "%s/checkpoint-000004/%s", i ? b : a, file);
        same &= file_read(path[i], &text[i], &n[i], (size_t)1 << 30, &e);
    }
    same = same && n[0] == n[1] && !memcmp(text[0], text[1], n[0]);
    free(text[0]);
    free(text[1]);
    return same;
}

/* A rank's share of the moments gives the same weights as all of them, to the bit, whatever the order of
 * the sums before. */
TEST(ranks_sharded_optimizer) {
    static const char *const files[] = {"loc/model.safetensors", "loc.moments.safetensors"};
    if (!vpdistill()) return;
    for (int n = 2; n <= 4; n++) {
        char out[3][300];
        outs(out, "shard");
        for (int i = 0; i < 2; i++)
            run_ranks(n, train_line(out[i], 4,
                                    i ? "run.shard_optimizer=true train.module=loc"
                                      : "run.shard_optimizer=false train.module=loc"));
        for (int i = 0; i < COUNT_OF(files); i++)
            EXPECT(same_bytes(out[0], out[1], files[i]), "%d ranks: %s differs", n, files[i]);
    }
}

/* ---- going on ------------------------------------------------------------------------------------- */

/* A third of the steps by two ranks, the next by one, the last by four: the same as by one, to the bit. */
static void check_resume(int steps, LineFn *line, const char *more) {
    static const int ranks[] = {2, 1, 4};
    char out[300], whole[300], why[1300], a[400], b[400];
    snprintf(out, sizeof out, "%s/resume", test_dir());
    snprintf(whole, sizeof whole, "%s/resume-whole", test_dir());
    remove_tree(out);
    remove_tree(whole);
    run_ranks(1, line(out, steps, more));
    EXPECT(!rename(out, whole), "rename");
    for (int i = 0; i < 3; i++) run_ranks(ranks[i], line(out, steps / 3 * (i + 1), more));
    snprintf(a, sizeof a, "%s/checkpoint-%06d", whole, steps);
    snprintf(b, sizeof b, "%s/checkpoint-%06d", out, steps);
    EXPECT(same_folders(a, b, why, sizeof why), "%s", why);
}

void resume_train(void) {
    check_resume(12, train_line, "run.reproducible=true run.shard_optimizer=true train.schedule=constant");
}

/* Each step but the first learns again what steps of another number of ranks were taught. */
void resume_lessons(void) {
    check_resume(6, distill_line,
                 "run.reproducible=true train.schedule=constant train.warmup=0 distill.reuse=2 distill.lag=2 "
                 "distill.programs=8");
}

TEST(ranks_resume_train) {
    if (vpdistill()) resume_train();
}

TEST(ranks_resume_lessons) {
    if (vpdistill()) resume_lessons();
}
