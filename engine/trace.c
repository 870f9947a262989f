/* trace.c -- writing the record of a distillation. See trace.h.
 *
 * The lines are written by hand and not as JSON trees: a distillation writes some thousand per update.
 */
#include "engine/trace.h"

#include <errno.h>
#include <math.h>
#include <unistd.h>

enum { TRACE_BUFFER = 1 << 20 };

/* ---- JSON, piece by piece ------------------------------------------------------------------------- */

int utf8_length(const char *s, size_t n) {
    const uint8_t *b = (const uint8_t *)s;
    if (b[0] < 0x80) return 1;
    int k = b[0] >= 0xc2 && b[0] < 0xe0 ? 2 : (b[0] & 0xf0) == 0xe0 ? 3 : b[0] >= 0xf0 && b[0] < 0xf5 ? 4 : 0;
    if (!k || (size_t)k > n) return 0;
    for (int i = 1; i < k; i++)
        if ((b[i] & 0xc0) != 0x80) return 0;
    /* Too long, surrogate, beyond U+10FFFF. */
    if ((b[0] == 0xe0 && b[1] < 0xa0) || (b[0] == 0xed && b[1] >= 0xa0) || (b[0] == 0xf0 && b[1] < 0x90) || (b[0] == 0xf4 && b[1] >= 0x90)) return 0;
    return k;
}

void json_put_string(FILE *f, const char *s, size_t n) {
    if (!s) {
        fputs("null", f);
        return;
    }
    putc_unlocked('"', f);
    for (size_t i = 0; i < n;) {
        const unsigned char c = (unsigned char)s[i];
        const int k = utf8_length(s + i, n - i);
        if (!k) {
            fputs("\xef\xbf\xbd", f);
            i++;
            continue;
        }
        if (c == '"' || c == '\\') fprintf(f, "\\%c", c);
        else if (c == '\n') fputs("\\n", f);
        else if (c < 0x20 || c == 0x7f) fprintf(f, "\\u%04x", c);
        else fwrite(s + i, 1, (size_t)k, f);
        i += (size_t)k;
    }
    putc_unlocked('"', f);
}

static void put_text(FILE *f, const char *s) { json_put_string(f, s, s ? strlen(s) : 0); }

void json_put_float(FILE *f, float x) {
    char text[32];
    if (!isfinite(x)) {
        fputs("null", f);
        return;
    }
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)x);
        if (strtof(text, NULL) == x) break;
    }
    fputs(text, f);
}

void json_put_rect(FILE *f, Rect r) { fprintf(f, "[%d,%d,%d,%d]", r.x0, r.y0, r.x1, r.y1); }

static void put_boxes(FILE *f, const Boxes *b, bool strict) {
    const char *comma = "";
    putc_unlocked('[', f);
    for (int i = 0; i < b->n; i++) {
        Rect r;
        if (!trace_box(&r, b, i, strict)) continue;
        fprintf(f, "%s[%d,%d,%d,%d,", comma, r.x0, r.y0, r.x1, r.y1);
        json_put_float(f, b->box[i].score);
        if (b->classes) {
            putc_unlocked(',', f);
            json_put_string(f, b->classes[i].name.s, (size_t)b->classes[i].name.n);
            fprintf(f, ",%.1f", b->classes[i].score);
        }
        putc_unlocked(']', f);
        comma = ",";
    }
    putc_unlocked(']', f);
}

void json_put_value(FILE *f, const Value *v, bool strict) {
    switch (v->kind) {
    case VAL_BOOL: fputs(v->b ? "true" : "false", f); return;
    case VAL_INT: fprintf(f, "%" PRId64, v->i); return;
    case VAL_FLOAT:
        if (isfinite(v->f)) {
            char text[FLOAT_TEXT];
            float_text(text, v->f);
            fputs(text, f);
            return;
        }
        fputs("null", f);
        return;
    case VAL_STR: json_put_string(f, v->str.s, (size_t)v->str.n); return;
    case VAL_IMAGE: json_put_rect(f, v->image.rect); return;
    case VAL_BOXES:
    case VAL_OBJECTS: put_boxes(f, v->boxes, strict); return;
    case VAL_LIST:
        putc_unlocked('[', f);
        for (int i = 0; i < v->list.n; i++) {
            if (i) putc_unlocked(',', f);
            json_put_value(f, &v->list.at[i], strict);
        }
        putc_unlocked(']', f);
        return;
    default: fputs("null", f);
    }
}

/* ---- boxes and probabilities ----------------------------------------------------------------------- */

bool box_rect(Rect *out, const Box *b, bool exact, int w, int h, bool strict) {
    const Rect r = b->rect;
    const int last = strict ? 0 : 1; /* the reference's boxes end at their last pixel */
    *out = (Rect){MAX(r.x0, 0), MAX(r.y0, 0), MIN(r.x1, w - last) + last, MIN(r.y1, h - last) + last};
    if (exact && r.x1 < w - last) out->x1 = r.x1; /* but the middle of a side (LEFT, TOP) is where the half ends */
    if (exact && r.y1 < h - last) out->y1 = r.y1;
    return out->x0 < out->x1 && out->y0 < out->y1;
}

bool trace_box(Rect *out, const Boxes *b, int i, bool strict) {
    Rect in;
    const bool there = box_rect(&in, &b->box[i], b->exact, rect_w(b->of), rect_h(b->of), strict);
    *out = (Rect){b->of.x0 + in.x0, b->of.y0 + in.y0, b->of.x0 + in.x1, b->of.y0 + in.y1};
    return there;
}

int trace_boxes(Rect *out, const Boxes *b, bool strict) {
    int n = 0;
    for (int i = 0; i < b->n; i++) n += trace_box(&out[n], b, i, strict);
    return n;
}

int top_probs(int *index, int k, const float *p, int n, float floor) {
    int m = 0;
    for (int i = 0; i < n; i++) {
        if (!(p[i] > floor) || (m == k && !(p[i] > p[index[m - 1]]))) continue;
        int at = m < k ? m++ : m - 1;
        for (; at > 0 && p[i] > p[index[at - 1]]; at--) index[at] = index[at - 1];
        index[at] = i;
    }
    return m;
}

/* ---- the file ------------------------------------------------------------------------------------- */

static bool disk_failed(const Trace *t, Error *e) {
    return fail_as(e, FAIL_DISK, "%s: cannot write the trace: %s", t->path, strerror(errno));
}

static bool make_parent(const char *path, Error *e) {
    char *dir = xstrdup(path), *slash = strrchr(dir, '/');
    if (slash) *slash = 0;
    const bool ok = !slash || slash == dir || make_dirs(dir, e);
    free(dir);
    return ok;
}

static bool open_mode(Trace *t, const char *path, const char *mode, Error *e) {
    *t = (Trace){0};
    if (!make_parent(path, e)) return false;
    t->path = xstrdup(path);
    t->f = fopen(path, mode);
    if (t->f && !setvbuf(t->f, NULL, _IOFBF, TRACE_BUFFER)) return true;
    disk_failed(t, e);
    trace_close(t, NULL);
    return false;
}

bool trace_open(Trace *t, const char *path, Error *e) { return open_mode(t, path, "we", e); }

/* Where the lines before `update` end. Every whole line begins with its update. */
static bool find_end(FILE *f, const char *path, int64_t update, off_t *end, Error *e) {
    char *line = NULL;
    size_t cap = 0;
    int64_t number = 0, u;
    *end = 0;
    for (ssize_t n; (n = getline(&line, &cap, f)) > 0 && line[n - 1] == '\n'; *end += n) {
        number++;
        if (sscanf(line, "{\"update\":%" SCNd64 ",", &u) != 1) {
            free(line);
            return fail_as(e, FAIL_DATA, "%s:%" PRId64 ": not a line of a trace; name another file, or remove it", path, number);
        }
        if (u >= update) break;
    }
    free(line);
    return true;
}

bool trace_resume(Trace *t, const char *path, int64_t update, Error *e) {
    *t = (Trace){0};
    off_t end;
    FILE *f = fopen(path, "re");
    if (!f && errno == ENOENT) return trace_open(t, path, e);
    if (!f) return fail_as(e, FAIL_DATA, "%s: %s", path, strerror(errno));
    const bool ok = find_end(f, path, update, &end, e);
    fclose(f);
    if (!ok) return false;
    if (truncate(path, end)) return fail_as(e, FAIL_DISK, "%s: cannot cut off the lines of update %" PRId64 " and later: %s", path, update, strerror(errno));
    return open_mode(t, path, "ae", e);
}

static void put_key(FILE *f, const char *key, const char *s) {
    if (!s) return;
    fprintf(f, ",\"%s\":", key);
    put_text(f, s);
}

static void put_soft(FILE *f, const TraceStep *s) {
    const char *comma = "";
    fputs(",\"soft\":{", f);
    for (int i = 0; i < s->nsoft; i++) {
        if (!(s->soft_prob[i] >= 0 && s->soft_prob[i] <= 1.001f)) continue;
        fputs(comma, f);
        put_text(f, s->soft_answer[i]);
        putc_unlocked(':', f);
        json_put_float(f, MIN(s->soft_prob[i], 1)); /* a softmax may round to just above */
        comma = ",";
    }
    putc_unlocked('}', f);
}

bool trace_step(Trace *t, const TraceStep *s, Error *e) {
    FILE *f = t->f;
    CHECK(f && s->image && s->module && s->query, "trace: file %p, image %p, module %p, query %p", (void *)f, (const void *)s->image,
          (const void *)s->module, (const void *)s->query);
    const bool loc = !strcmp(s->module, "LOC");
    fprintf(f, "{\"update\":%" PRId64, s->update);
    put_key(f, "image", s->image);
    fputs(",\"rect\":", f);
    json_put_rect(f, s->rect);
    put_key(f, "module", s->module);
    put_key(f, "query", s->query);
    if (loc) {
        fputs(",\"boxes\":[", f);
        for (int i = 0; i < s->nboxes; i++) {
            if (i) putc_unlocked(',', f);
            json_put_rect(f, s->boxes[i]);
        }
        putc_unlocked(']', f);
    } else {
        put_key(f, "answer", s->answer);
        if (s->nsoft) put_soft(f, s);
    }
    fputs(",\"weight\":", f);
    json_put_float(f, s->weight);
    const Value *const said[] = {s->student, s->teacher};
    static const char *const names[] = {",\"student\":", ",\"teacher\":"};
    for (int i = 0; i < 2; i++) {
        if (!said[i]) continue;
        fputs(names[i], f);
        json_put_value(f, said[i], s->strict);
    }
    fputs(s->kept ? ",\"kept\":true,\"why\":" : ",\"kept\":false,\"why\":", f);
    put_text(f, s->why);
    put_key(f, "program", s->program);
    put_key(f, "question", s->question);
    fprintf(f, ",\"step\":%d}\n", s->step);
    t->lines++;
    return ferror(f) ? disk_failed(t, e) : true;
}

bool trace_flush(Trace *t, Error *e) { return !fflush(t->f) && !ferror(t->f) ? true : disk_failed(t, e); }

bool trace_close(Trace *t, Error *e) {
    bool ok = true;
    if (t->f) {
        ok = trace_flush(t, e);
        if (fsync(fileno(t->f)) && errno != EINVAL && errno != EROFS) ok = ok && disk_failed(t, e); /* EINVAL: a pipe or a device */
        if (fclose(t->f)) ok = ok && disk_failed(t, e);
    }
    free(t->path);
    *t = (Trace){0};
    return ok;
}
