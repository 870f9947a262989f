/* ckpt.c -- checkpoints of a run. See ckpt.h. */
#include "engine/ckpt.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

/* state.json goes first: what is left of an interrupted removal is not taken for a whole checkpoint. */
static void remove_checkpoint(const char *path) {
    char state[PATH_MAX];
    if (snprintf(state, sizeof state, "%s/state.json", path) < (int)sizeof state) unlink(state);
    remove_tree(path);
}

/* The unfinished folders of runs that were killed while they saved. One run at a time writes to a folder, so all of them. */
static void remove_unfinished(const char *out) {
    char path[PATH_MAX];
    DIR *d = opendir(out);
    if (!d) return;
    for (struct dirent *f; (f = readdir(d));)
        if (!strncmp(f->d_name, "tmp-checkpoint.", 15) &&
            snprintf(path, sizeof path, "%s/%s", out, f->d_name) < (int)sizeof path)
            remove_tree(path);
    closedir(d);
}

/* "checkpoint-000500" -> 500, anything else -> -1. */
static int64_t step_of(const char *name) {
    char *end;
    if (strncmp(name, "checkpoint-", 11) || name[11] < '0' || name[11] > '9') return -1;
    int64_t step = strtoll(name + 11, &end, 10);
    return *end ? -1 : step;
}

static bool whole(const char *out, const char *name) {
    char path[PATH_MAX];
    return snprintf(path, sizeof path, "%s/%s/state.json", out, name) < (int)sizeof path &&
           !access(path, R_OK);
}

bool ckpt_latest(const char *out, char *path, size_t size, int64_t *step) {
    DIR *d = opendir(out);
    if (!d) return false;
    *step = -1;
    for (struct dirent *f; (f = readdir(d));) {
        int64_t s = step_of(f->d_name);
        if (s <= *step || !whole(out, f->d_name)) continue;
        *step = s;
        snprintf(path, size, "%s/%s", out, f->d_name);
    }
    closedir(d);
    return *step >= 0;
}

bool ckpt_agree(Comm *c, const char *out, char *path, size_t size, int64_t *step) {
    if (c->rank || !ckpt_latest(out, path, size, step)) *step = -1;
    comm_broadcast(c, "checkpoint to resume", step, sizeof *step);
    if (c->rank && *step >= 0) snprintf(path, size, "%s/checkpoint-%06" PRId64, out, *step);
    return *step >= 0;
}

/* Removes the oldest checkpoints until `keep` are left. */
static void prune(const char *out, int keep) {
    for (;;) {
        DIR *d = opendir(out);
        if (!d) return;
        int n = 0;
        int64_t oldest = INT64_MAX;
        char victim[PATH_MAX] = "";
        for (struct dirent *f; (f = readdir(d));) {
            int64_t s = step_of(f->d_name);
            if (s < 0) continue;
            n++;
            if (s < oldest) {
                oldest = s;
                snprintf(victim, sizeof victim, "%s/%s", out, f->d_name);
            }
        }
        closedir(d);
        if (n <= keep) return;
        remove_checkpoint(victim);
        if (!access(victim, F_OK)) return; /* not ours to remove */
    }
}

static bool save_parts(const char *dir, int64_t step, const CkptPart *part, int n, const CkptFile *file,
                       const char *config, Error *e) {
    char path[PATH_MAX];
    for (int i = 0; i < n; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, part[i].name);
        if (!module_save(part[i].module, path, e)) return false;
        snprintf(path, sizeof path, "%s/%s.moments.safetensors", dir, part[i].name);
        if (!params_save_moments(module_learns(part[i].module), path, e)) return false;
        snprintf(path, sizeof path, "%s/%s.adapters.safetensors", dir, part[i].name);
        if (part[i].module->lora.rank && !params_save(&part[i].module->lora.params, path, e)) return false;
    }
    if (file) {
        snprintf(path, sizeof path, "%s/%s", dir, file->name);
        if (!file->save(file->self, path, e)) return false;
    }
    json_t *state = json_pack("{s:I, s:s}", "step", (json_int_t)step, "config", config);
    char *text = state ? json_dumps(state, JSON_INDENT(1) | JSON_SORT_KEYS) : NULL;
    json_decref(state);
    if (!text) return fail_as(e, FAIL_OTHER, "%s: the configuration is not UTF-8", dir);
    snprintf(path, sizeof path, "%s/state.json", dir);
    bool ok =
        file_write_atomic(path, text, strlen(text), e); /* last: its presence says that the rest is there */
    free(text);
    return ok;
}

bool ckpt_save(const char *out, int64_t step, const CkptPart *part, int n, const CkptFile *file, const char *config,
               int keep, Error *e) {
    char tmp[PATH_MAX], final[PATH_MAX];
    if (comm_world()->rank) {
        for (int i = 0; i < n; i++) params_send_moments(module_learns(part[i].module));
        if (file) file->send(file->self);
        return true;
    }
    snprintf(tmp, sizeof tmp, "%s/tmp-checkpoint.%d", out, (int)getpid());
    snprintf(final, sizeof final, "%s/checkpoint-%06" PRId64, out, step);
    remove_unfinished(out);
    if (!make_dirs(tmp, e) || !save_parts(tmp, step, part, n, file, config, e)) {
        remove_tree(tmp);
        return fail_in(e, "checkpoint at step %" PRId64, step);
    }
    if (!access(final, F_OK)) remove_checkpoint(final); /* the same step again, or what is left of one */
    if (rename(tmp, final)) {
        fail_as(e, FAIL_DISK, "%s: cannot rename the finished checkpoint: %s", final, strerror(errno));
        remove_tree(tmp);
        return false;
    }
    int d = open(out, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (d >= 0) {
        fsync(d);
        close(d);
    }
    if (keep > 0) prune(out, keep);
    return true;
}

bool ckpt_load(const char *path, const CkptPart *part, int n, Error *e) {
    for (int i = 0; i < n; i++) {
        char file[PATH_MAX];
        SafeTensors st;
        ParamSet *ps = module_learns(part[i].module);
        if (part[i].module->lora.rank) /* beside the folder, whose weights have them merged in */
            snprintf(file, sizeof file, "%s/%s.adapters.safetensors", path, part[i].name);
        else
            snprintf(file, sizeof file, "%s/%s/model.safetensors", path, part[i].name);
        if (!st_open(&st, file, e)) return false;
        bool ok = params_load(ps, &st, file, e);
        st_close(&st);
        snprintf(file, sizeof file, "%s/%s.moments.safetensors", path, part[i].name);
        if (!ok || !params_load_moments(ps, file, e)) return false;
    }
    return true;
}
