/* test_resume.c -- a training run that is killed and resumed ends in the same bytes as one that never stopped.
 *
 * The command is started in folders of its own with the same relative run.out, so that the configuration in the
 * checkpoints is the same, too. It is killed (SIGKILL: no handler runs) at random times, and at the moment its
 * temporary checkpoint folder appears, that is, in the middle of a save.
 */
#include "tests/engine/child.h"

#include <dirent.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *folder(const char *name) {
    static char dir[300];
    Error e = {0};
    snprintf(dir, sizeof dir, "%s/%s", test_dir(), name);
    remove_tree(dir);
    CHECK(make_dirs(dir, &e), "%s", e.text);
    return dir;
}

static bool has_unfinished(const char *out) {
    DIR *d = opendir(out);
    bool found = false;
    if (!d) return false;
    for (struct dirent *f; (f = readdir(d));) found |= !strncmp(f->d_name, "tmp-checkpoint.", 15);
    closedir(d);
    return found;
}

static void sleep_ms(double ms) { nanosleep(&(struct timespec){(time_t)(ms / 1000), (long)(ms * 1e6) % 1000000000}, NULL); }

/* Starts the run in dir and kills it after `ms`, or (ms < 0) when the -ms'th save is seen. True when it was killed. */
static bool run_and_kill(Child *c, const char *dir, const char *line, double ms) {
    char out[400];
    snprintf(out, sizeof out, "%s/out", dir);
    command_start(c, dir, NULL, line);
    if (ms >= 0) {
        sleep_ms(ms);
    } else {
        int saves = 0;
        bool was = false;
        const double began = now_s();
        while (saves < -ms && now_s() - began < 60) {
            const bool is = has_unfinished(out);
            saves += is && !was;
            was = is;
            siginfo_t ended = {0};
            if (waitid(P_PID, (id_t)c->pid, &ended, WEXITED | WNOHANG | WNOWAIT) || ended.si_pid) break;
            sleep_ms(0.2);
        }
    }
    kill(c->pid, SIGKILL);
    return command_wait(c) == -SIGKILL;
}

/* `parts` of run.out (folders, or a file) must hold the same bytes in a run that was killed and one that was not. */
static void check_resume(const char *what, const char *line, const char *const *parts, int nparts, int kills, uint64_t seed) {
    static Child c;
    char whole[300], cut[300], a[400], b[400], why[1300];
    strcpy(whole, folder("whole"));
    strcpy(cut, folder("cut"));
    double began = now_s();
    command_start(&c, whole, NULL, line);
    EXPECT(command_wait(&c) == 0, "%s: status %d: %s", what, c.status, c.text);
    const double length_ms = 1000 * (now_s() - began);
    int killed = 0, in_save = 0;
    char points[200] = "";
    for (int i = 0; i < kills; i++) {
        const uint64_t r = hash_bytes(&i, sizeof i, seed);
        const bool save = i % 2;
        /* Each part runs for a share of the whole, so that all parts together do not reach the end too early. */
        const double ms = save ? -1.0 - (double)(r % 2) : length_ms * (0.05 + 0.5 * (double)(r % 1000) / 1000);
        if (!run_and_kill(&c, cut, line, ms)) break; /* it was through */
        snprintf(a, sizeof a, "%s/out", cut);
        killed++;
        in_save += has_unfinished(a);
        snprintf(points + strlen(points), sizeof points - strlen(points), " %s%.0f", save ? "save" : "ms ", save ? -ms : ms);
    }
    command_start(&c, cut, NULL, line);
    EXPECT(command_wait(&c) == 0, "%s: status %d: %s", what, c.status, c.text);
    EXPECT(killed > 0, "%s: it was never killed", what);
    fprintf(stderr, "    %s: killed %d times (%s ), %d of them in a save\n", what, killed, points, in_save);
    for (int i = 0; i < nparts; i++) {
        snprintf(a, sizeof a, "%s/out/%s", whole, parts[i]);
        snprintf(b, sizeof b, "%s/out/%s", cut, parts[i]);
        EXPECT(same_folders(a, b, why, sizeof why), "%s: %s", what, why);
    }
    snprintf(a, sizeof a, "%s/out", cut);
    EXPECT(!has_unfinished(a), "%s: a temporary checkpoint is left", what);
}

static void check_train(const char *what, const char *options, int kills, uint64_t seed) {
    static const char *const parts[] = {"checkpoint-000030", "model", "checkpoint-000028"};
    char line[2000];
    snprintf(line, sizeof line,
             "train data.kind=steps data.dir=%s model.vqa=%s/configs/models/tiny-vilt model.loc=%s/configs/models/tiny-owlvit "
             "train.from_scratch=true train.steps=30 train.batch=8 train.save_every=4 run.out=out run.threads=2 %s",
             tiny_scenes(), repository(), repository(), options);
    check_resume(what, line, parts, COUNT_OF(parts), kills, seed);
}

TEST(resume_vqa) {
    if (vpdistill())
        for (uint64_t seed = 1; seed <= 2; seed++) check_train("VQA", "train.module=vqa", 4, seed);
}

TEST(resume_vqa_accumulating) {
    if (vpdistill()) check_train("VQA, accumulating, augmented", "train.module=vqa train.accumulate=2 train.augment=0.5 train.schedule=cosine", 3, 3);
}

TEST(resume_vqa_bf16) {
    if (vpdistill()) check_train("VQA in bf16", "train.module=vqa run.precision=bf16", 3, 6);
}

TEST(resume_vqa_adapters) {
    if (vpdistill()) check_train("VQA, adapters", "train.module=vqa train.lora_rank=4 train.lora_alpha=8", 3, 6);
}

TEST(resume_loc) {
    if (vpdistill()) check_train("LOC", "train.module=loc", 3, 4);
}

/* Two students, a teacher and the trace: what an update wrote after the last checkpoint is cut off and written again. */
static void check_distill(const char *what, const char *options, int kills, uint64_t seed) {
    static const char *const parts[] = {"checkpoint-000008", "checkpoint-000006", "vqa", "loc", "trace"};
    char line[2000];
    if (!vpdistill()) return;
    snprintf(line, sizeof line,
             "distill data.dir=%s model.vqa=%s/configs/models/demo-vqa model.loc=%s/configs/models/demo-loc "
             "model.teacher=%s/configs/models/demo-teacher model.loc_threshold=0.4 distill.steps=8 distill.programs=3 distill.lr_vqa=0.001 "
             "distill.lr_loc=0.001 distill.reuse=2 distill.lag=2 distill.replay_dir=%s train.save_every=2 eval.limit=4 run.out=out trace.path=out/trace/lines.jsonl run.threads=2 %s",
             tiny_scenes(), repository(), repository(), repository(), tiny_scenes(), options);
    check_resume(what, line, parts, COUNT_OF(parts), kills, seed);
}

TEST(resume_distill) { check_distill("distillation", "", 4, 5); }
TEST(resume_distill_bf16) { check_distill("distillation in bf16", "run.precision=bf16", 2, 8); }

/* Kills come from anywhere: also a run that is asked to end politely leaves whole checkpoints. */
TEST(resume_after_sigterm) {
    static Child c;
    char line[1500], cut[300], why[1300], a[400], b[400];
    if (!vpdistill()) return;
    strcpy(cut, folder("terminated"));
    snprintf(line, sizeof line, "train data.kind=steps data.dir=%s model.vqa=%s/configs/models/tiny-vilt train.from_scratch=true train.steps=20 "
             "train.batch=8 train.save_every=5 run.out=out", tiny_scenes(), repository());
    command_start(&c, cut, NULL, line);
    sleep_ms(400);
    kill(c.pid, SIGTERM);
    const int status = command_wait(&c);
    EXPECT(status == -SIGTERM || status == 143 || status == 0, "status %d: %s", status, c.text);
    for (int i = 0; i < 2; i++) {
        command(&c, cut, "%s%s", line, i ? " run.out=other" : "");
        EXPECT(c.status == 0, "status %d: %s", c.status, c.text);
    }
    snprintf(a, sizeof a, "%s/out/model", cut);
    snprintf(b, sizeof b, "%s/other/model", cut);
    EXPECT(same_folders(a, b, why, sizeof why), "%s", why);
}
