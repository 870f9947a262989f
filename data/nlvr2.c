/* nlvr2.c -- NLVR2's statements about two images, JSON lines (Suhr et al. 2019).
 *
 * Official lines have identifier, sentence and label ("True" or "False"); images are named after the identifier
 * without its last part, "<split>-<set>-<pair>-img0.png" (left) and "-img1.png", in images/train/<directory>/ for
 * the training split and images/<split>/ for the others. Ours may name them ("left", "right", in images/) and bring "program" and
 * "type". The official images are PNG: convert them to JPEG under the same name, what they contain is looked at.
 */
#include "data/dataset.h"

#include <strings.h>

/* The official name of image `side`; the split is the identifier's first part. */
static bool official_path(char *out, size_t size, const char *id, const json_t *o, int side, Error *e) {
    const char *last = strrchr(id, '-'), *first = strchr(id, '-');
    const json_t *dir = json_object_get(o, "directory");
    char bucket[64] = "";
    if (!last || first == last || strlen(id) > 200 || strchr(id, '/'))
        return fail_as(e, FAIL_DATA, "identifier \"%.80s\" is not split-set-pair-sentence", id);
    if (json_is_integer(dir))
        snprintf(bucket, sizeof bucket, "%" JSON_INTEGER_FORMAT "/", json_integer_value(dir));
    else if (json_is_string(dir)) snprintf(bucket, sizeof bucket, "%.60s/", json_string_value(dir));
    snprintf(out, size, "images/%.*s/%s%.*s-img%d.png", (int)(first - id), id, bucket, (int)(last - id), id,
             side);
    return true;
}

static bool read_statement(Dataset *d, const json_t *o, Error *e) {
    static const char *const sides[2] = {"left", "right"};
    bool ok = true;
    char path[600];
    const json_t *label = json_object_get(o, "label");
    Sample s = {.nimages = 2};
    s.id = json_text(o, "identifier", &ok, e);
    s.question = json_text(o, "sentence", &ok, e);
    s.program = json_text(o, "program", &ok, e);
    s.type = json_text(o, "type", &ok, e);
    if (!ok) return false;
    if (!s.id || !s.question)
        return fail_as(e, FAIL_DATA, "\"%s\" is missing", s.id ? "sentence" : "identifier");
    if (json_is_boolean(label)) s.answer = json_is_true(label) ? "True" : "False";
    else s.answer = json_text(o, "label", &ok, e);
    if (!ok || (s.answer && strcasecmp(s.answer, "True") && strcasecmp(s.answer, "False")))
        return fail_as(e, FAIL_DATA, "\"label\" is neither \"True\" nor \"False\"");
    if (s.answer) s.answer = strcasecmp(s.answer, "True") ? "False" : "True";
    for (int i = 0; i < 2; i++) {
        const char *name = json_text(o, sides[i], &ok, e);
        if (!ok) return false;
        if (name && strlen(name) > 500)
            return fail_as(e, FAIL_DATA, "the name of the %s image is too long", sides[i]);
        if (name) snprintf(path, sizeof path, "images/%s", name);
        else if (!official_path(path, sizeof path, s.id, o, i, e)) return false;
        if (!dataset_image(d, path, &s.image[i], e)) return false;
    }
    return dataset_add(d, &s, e);
}

static bool nlvr2_read(Dataset *d, const MappedFile *m, Error *e) {
    JsonLines w;
    int got;
    bool ok = true;
    json_lines_begin(&w, m);
    while (ok && !dataset_full(d) && (got = json_lines_next(&w, e))) {
        if (got > 0 && read_statement(d, w.value, e)) continue;
        if (got > 0) fail_in(e, "%s:%" PRId64, m->path, w.line);
        ok = dataset_bad(d, e);
    }
    json_lines_end(&w);
    return ok;
}

const DatasetType dataset_nlvr2 = {"nlvr2", {"%s_nlvr.jsonl", "%s.json", "data/%s.json"}, nlvr2_read};
