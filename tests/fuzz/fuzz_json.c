/* fuzz_json.c -- libFuzzer target: any bytes as a GQA, NLVR2 or step file, or as the scene graphs of a fixed dataset.
 *
 * The first byte chooses the reader and how many bad records it may skip. What is accepted must hold together.
 */
#include "data/steps.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_dataset(const Dataset *d) {
    for (int64_t i = 0; i < dataset_items(d); i++) {
        int image[2];
        const int n = dataset_item_images(d, i, image);
        for (int k = 0; k < n; k++) CHECK(image[k] >= 0 && image[k] < d->images.n, "image %d of %d", image[k], d->images.n);
    }
    for (int i = 0; i < d->images.n; i++)
        CHECK(d->images.path[i][0] != '/' && strncmp(d->images.path[i], "../", 3) && !strstr(d->images.path[i], "/../"), "path %s",
              d->images.path[i]);
    for (int64_t i = 0; i < d->nsteps; i++) {
        const StepSample *s = &d->step[i];
        CHECK(s->query && s->weight >= 0 && (s->is_loc || s->answer || s->nsoft), "step %" PRId64, i);
        for (int k = 0; k < s->nboxes; k++) CHECK(rect_w(s->boxes[k]) > 0 && rect_h(s->boxes[k]) > 0, "box %d", k);
        for (int k = 0; k < s->nsoft; k++) CHECK(s->soft_answer[k] && s->soft_prob[k] >= 0 && s->soft_prob[k] <= 1, "soft %d", k);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const types[4] = {"gqa", "nlvr2", "steps", "gqa"};
    static const char question[] = "{\"1\": {\"imageId\": \"1\", \"question\": \"q\"}}";
    if (size < 1) return 0;
    const int kind = data[0] & 3;
    char *copy = xcalloc(size - 1, 1); /* of exactly this size, for the sanitizer */
    memcpy(copy, data + 1, size - 1);
    MappedFile m, fixed;
    Dataset d;
    Error e = {0};
    file_map_memory(&m, copy, size - 1, "fuzz");
    file_map_memory(&fixed, question, sizeof question - 1, "question");
    const DatasetConfig c = {.type = types[kind], .dir = "d", .split = "s", .max_bad = data[0] >> 2 & 7, .limit = data[0] >> 5};
    const bool ok = dataset_open_mapped(&d, &c, kind == 3 ? &fixed : &m, &e);
    if (ok && kind == 3) {
        SceneGraphs g;
        if (scenegraphs_open_mapped(&g, &d, &m, &e)) {
            const SceneGraph *one = scenegraphs_find(&g, 0);
            for (int i = 0; one && i < one->nobjects; i++)
                for (int k = 0; k < one->object[i].nrelations; k++)
                    CHECK(one->object[i].relation[k].object >= 0 && one->object[i].relation[k].object < one->nobjects, "relation %d", k);
            scenegraphs_close(&g);
        } else {
            CHECK(*e.text && e.status == FAIL_DATA, "no sentence, status %d", e.status);
        }
    } else if (!ok) {
        CHECK(*e.text && e.status == FAIL_DATA, "no sentence, status %d", e.status);
    }
    if (ok) check_dataset(&d);
    dataset_close(&d);
    free(copy);
    return 0;
}
