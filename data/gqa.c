/* gqa.c -- GQA's question files: one JSON object, question id -> entry (Hudson & Manning 2019).
 *
 * Read besides the official fields: "program" (VisProg text) and "type". An entry without "type" takes
 * types.structural, else types.detailed. Test and challenge entries have no answer. Images are images/<imageId>.jpg.
 */
#include "data/dataset.h"

/* imageId is a file name without folder or extension; the folder check of dataset_image does the rest. */
static bool image_path(char *out, size_t size, const char *id, Error *e) {
    if (!*id || strlen(id) > 200 || strchr(id, '/'))
        return fail_as(e, FAIL_DATA, "imageId \"%.80s\" is not the name of an image", id);
    snprintf(out, size, "images/%s.jpg", id);
    return true;
}

static bool read_question(Dataset *d, const char *id, const json_t *o, Error *e) {
    bool ok = true;
    char path[256];
    Sample s = {.id = id, .nimages = 1, .image = {0, -1}};
    const json_t *types = json_object_get(o, "types");
    const char *image = json_text(o, "imageId", &ok, e);
    s.question = json_text(o, "question", &ok, e);
    s.answer = json_text(o, "answer", &ok, e);
    s.program = json_text(o, "program", &ok, e);
    s.type = json_text(o, "type", &ok, e);
    if (!s.type) s.type = json_text(types, "structural", &ok, e);
    if (!s.type) s.type = json_text(types, "detailed", &ok, e);
    if (!ok) return false;
    if (!json_is_object(o) || !s.question || !image)
        return fail_as(e, FAIL_DATA, "%s",
                       json_is_object(o) ? (image ? "\"question\" is missing" : "\"imageId\" is missing")
                                         : "not an object");
    return image_path(path, sizeof path, image, e) && dataset_image(d, path, &s.image[0], e) &&
           dataset_add(d, &s, e);
}

static bool gqa_read(Dataset *d, const MappedFile *m, Error *e) {
    JsonWalk w;
    int got = 0;
    json_walk_begin(&w, m);
    while (!dataset_full(d) && (got = json_walk_next(&w, e)) == 1) {
        if (dataset_find(d, w.key) >= 0) { /* not a bad record but a damaged or doubly merged file */
            fail_as(e, FAIL_DATA, "%s:%" PRId64 ": the id \"%.80s\" is there twice", m->path,
                    file_line(m, w.value_at), w.key);
            got = -1;
            break;
        }
        if (read_question(d, w.key, w.value, e)) continue;
        fail_in(e, "%s:%" PRId64 ": question %.80s", m->path, file_line(m, w.value_at), w.key);
        if (!dataset_bad(d, e)) {
            got = -1;
            break;
        }
    }
    json_walk_end(&w);
    return got >= 0;
}

const DatasetType dataset_gqa = {
    "gqa",
    {"%s_questions.json", "questions/%s_balanced_questions.json", "%s_balanced_questions.json"},
    gqa_read};
