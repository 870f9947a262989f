/* steps.c -- reads module calls with labels from JSON lines. Format and meaning: steps.h. */
#include "data/steps.h"

#include <math.h>

static bool read_boxes(Dataset *d, StepSample *s, const json_t *boxes, Error *e) {
    if (!boxes) return true;
    if (!json_is_array(boxes)) return fail_as(e, FAIL_DATA, "\"boxes\" is not a list");
    Rect *to = dataset_alloc(d, json_array_size(boxes) * sizeof *to);
    const json_t *v;
    size_t i;
    json_array_foreach(boxes, i, v) {
        if (!json_rect(v, &to[i], e)) return fail_in(e, "box %zu", i);
        if (rect_w(to[i]) < 1 || rect_h(to[i]) < 1) return fail_as(e, FAIL_DATA, "box %zu is empty", i);
    }
    s->nboxes = (int)i;
    s->boxes = to;
    return true;
}

static bool read_soft(Dataset *d, StepSample *s, json_t *soft, Error *e) {
    if (!soft || json_is_null(soft)) return true;
    if (!json_is_object(soft))
        return fail_as(e, FAIL_DATA, "\"soft\" is not an object of answers and probabilities");
    const size_t n = json_object_size(soft);
    const char **answer = dataset_alloc(d, n * sizeof *answer);
    float *prob = dataset_alloc(d, n * sizeof *prob);
    const char *key;
    json_t *v;
    json_object_foreach(soft, key, v) {
        const double p = json_number_value(v);
        if (!json_is_number(v) || !(p >= 0 && p <= 1))
            return fail_as(e, FAIL_DATA, "the probability of \"%.40s\" is not a number in [0, 1]", key);
        answer[s->nsoft] = dataset_string(d, key);
        prob[s->nsoft++] = (float)p;
    }
    s->soft_answer = answer;
    s->soft_prob = prob;
    return true;
}

static bool read_step(Dataset *d, StepSample *s, const json_t *o, Error *e) {
    bool ok = true;
    const char *image = json_text(o, "image", &ok, e), *module = json_text(o, "module", &ok, e);
    const char *query = json_text(o, "query", &ok, e), *answer = json_text(o, "answer", &ok, e);
    const json_t *rect = json_object_get(o, "rect"), *weight = json_object_get(o, "weight");
    if (!ok) return false;
    if (!image || !query || !module)
        return fail_as(e, FAIL_DATA, "\"%s\" is missing", !image ? "image" : !module ? "module" : "query");
    s->is_loc = !strcmp(module, "LOC");
    if (!s->is_loc && strcmp(module, "VQA"))
        return fail_as(e, FAIL_DATA, "module \"%.40s\" is neither VQA nor LOC", module);
    if (rect && !json_is_null(rect)) {
        if (!json_rect(rect, &s->rect, e)) return fail_in(e, "\"rect\"");
        if (rect_w(s->rect) < 1 || rect_h(s->rect) < 1)
            return fail_as(e, FAIL_DATA, "\"rect\" is empty (leave it out for the whole image)");
    }
    s->weight = 1;
    if (weight) {
        const double v = json_number_value(weight);
        if (!json_is_number(weight) || !(v >= 0 && v <= 1e6))
            return fail_as(e, FAIL_DATA, "\"weight\" is not a number >= 0");
        s->weight = (float)v;
    }
    if (s->is_loc ? !read_boxes(d, s, json_object_get(o, "boxes"), e)
                  : !read_soft(d, s, json_object_get(o, "soft"), e))
        return false;
    if (!s->is_loc && !answer && !s->nsoft)
        return fail_as(e, FAIL_DATA, "a VQA step needs \"answer\" or \"soft\"");
    s->query = dataset_string(d, query);
    s->answer = s->is_loc ? NULL : dataset_string(d, answer);
    return dataset_image(d, image, &s->image, e);
}

static bool steps_read(Dataset *d, const MappedFile *m, Error *e) {
    JsonLines w;
    int got;
    bool ok = true;
    json_lines_begin(&w, m);
    while (ok && !dataset_full(d) && (got = json_lines_next(&w, e))) {
        if (got > 0 && json_is_false(json_object_get(w.value, "kept"))) {
            d->nleft_out++;
            continue;
        }
        StepSample s = {0};
        if (got > 0 && read_step(d, &s, w.value, e)) {
            GROW(d->step, d->cap_steps, d->nsteps + 1);
            d->step[d->nsteps++] = s;
            continue;
        }
        if (got > 0) fail_in(e, "%s:%" PRId64, m->path, w.line);
        ok = dataset_bad(d, e);
    }
    json_lines_end(&w);
    return ok;
}

const DatasetType dataset_steps = {"steps", {"%s_steps.jsonl"}, steps_read};
