/* dataset.c -- the table of items and images, and walking JSON files of any size. See dataset.h.
 *
 * GQA's training questions are one JSON object of over a gigabyte. So a file is mapped, its top-level object is
 * walked member by member, and only one member at a time is a tree in memory: first its end is found by counting
 * brackets, then jansson parses exactly those bytes. Strings are kept once each: answers, types and many questions
 * repeat.
 */
#include "data/dataset.h"
#include "data/steps.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const DatasetType *const types[] = {&dataset_gqa, &dataset_nlvr2, &dataset_steps};

/* ---- memory and names ---------------------------------------------------------------------------------------- */

enum { BLOCK_BYTES = 1 << 20 };
struct DatasetBlock { struct DatasetBlock *next; size_t used, size; max_align_t data[]; };

void *dataset_alloc(Dataset *d, size_t bytes) {
    const size_t step = (bytes + 15) & ~(size_t)15;
    struct DatasetBlock *b = d->blocks;
    if (!b || step > b->size - b->used) {
        const size_t size = MAX(step, (size_t)BLOCK_BYTES);
        b = xcalloc(1, sizeof *b + size);
        b->size = size;
        b->next = d->blocks;
        d->blocks = b;
    }
    void *p = (char *)b->data + b->used;
    b->used += step;
    return p;
}

/* Open addressing; the slot of s, or the empty one where it belongs. */
static struct DatasetName *name_slot(const struct DatasetNames *t, const char *s) {
    uint64_t h = hash_bytes(s, strlen(s), 0);
    for (;; h++) {
        struct DatasetName *slot = &t->slot[h & (uint64_t)(t->size - 1)];
        if (!slot->s || !strcmp(slot->s, s)) return slot;
    }
}

static struct DatasetName *name_find(const struct DatasetNames *t, const char *s) {
    if (!t->size) return NULL;
    struct DatasetName *slot = name_slot(t, s);
    return slot->s ? slot : NULL;
}

/* s must live as long as the table and not be in it yet. */
static void name_add(struct DatasetNames *t, const char *s, int64_t value) {
    if (2 * (t->n + 1) > t->size) {
        struct DatasetNames bigger = {.n = t->n, .size = MAX(t->size * 2, 1024)};
        bigger.slot = xcalloc((size_t)bigger.size, sizeof *bigger.slot);
        for (int64_t i = 0; i < t->size; i++)
            if (t->slot[i].s) *name_slot(&bigger, t->slot[i].s) = t->slot[i];
        free(t->slot);
        *t = bigger;
    }
    *name_slot(t, s) = (struct DatasetName){s, value};
    t->n++;
}

const char *dataset_string(Dataset *d, const char *s) {
    if (!s) return NULL;
    const struct DatasetName *found = name_find(&d->strings, s);
    if (found) return found->s;
    const size_t n = strlen(s) + 1;
    const char *copy = memcpy(dataset_alloc(d, n), s, n);
    name_add(&d->strings, copy, 0);
    return copy;
}

static bool merge_programs(Dataset *d, const char *path, Error *e);

/* ---- the table ----------------------------------------------------------------------------------------------- */

static const DatasetType *find_type(const char *name, Error *e) {
    const char *names[COUNT_OF(types)];
    for (int i = 0; i < COUNT_OF(types); i++)
        if (!strcmp(names[i] = types[i]->name, name)) return types[i];
    const char *near = nearest(name, names, COUNT_OF(names));
    fail_as(e, FAIL_CONFIG, "unknown dataset type \"%s\" (%s%s)", name,
            near ? "did you mean " : "known are gqa, nlvr2, ", near ? near : "steps");
    return NULL;
}

/* The first layout of the type that exists. */
static bool find_file(char *path, size_t size, const DatasetType *t, const DatasetConfig *c, Error *e) {
    char name[512], tried[1200] = "";
    for (int i = 0; i < COUNT_OF(t->layout) && t->layout[i]; i++) {
        const char *mark = strstr(t->layout[i], "%s");
        snprintf(name, sizeof name, "%.*s%s%s", (int)(mark - t->layout[i]), t->layout[i], c->split, mark + 2);
        if (!path_join(path, size, c->dir, name, e)) return false;
        if (!access(path, F_OK)) return true;
        const size_t n = strlen(tried);
        snprintf(tried + n, sizeof tried - n, "%s%s", i ? ", " : "", name);
    }
    return fail_as(e, FAIL_DATA, "%s: the %s dataset's split \"%s\" is not there (looked for %s)", c->dir,
                   t->name, c->split, tried);
}

bool dataset_open_mapped(Dataset *d, const DatasetConfig *c, const MappedFile *m, Error *e) {
    *d = (Dataset){.type = find_type(c->type, e), .max_bad = c->max_bad, .limit = c->limit};
    if (!d->type) return false;
    d->images.dir = dataset_string(d, c->dir);
    bool ok = d->type->read(d, m, e) && (!c->programs || merge_programs(d, c->programs, e));
    if (ok && dataset_items(d) == 0)
        ok = fail_as(e, FAIL_DATA, "%s: there is no usable item%s%.800s", m->path,
                     d->first_bad ? "; the first of those skipped: " : "", d->first_bad ? d->first_bad : "");
    if (ok && d->nbad) warn("%" PRId64 " records skipped, the first: %s", d->nbad, d->first_bad);
    if (!ok) dataset_close(d);
    return ok;
}

bool dataset_open(Dataset *d, const DatasetConfig *c, Error *e) {
    char path[4096];
    MappedFile m;
    *d = (Dataset){0};
    const DatasetType *t = find_type(c->type, e);
    if (!t || (!c->file && !find_file(path, sizeof path, t, c, e)) ||
        !file_map(&m, c->file ? c->file : path, e))
        return false;
    const bool ok = dataset_open_mapped(d, c, &m, e);
    file_unmap(&m);
    return ok;
}

void dataset_close(Dataset *d) {
    for (struct DatasetBlock *b = d->blocks, *next; b; b = next) {
        next = b->next;
        free(b);
    }
    free(d->images.path);
    free(d->sample);
    free(d->step);
    free(d->first_bad);
    free(d->strings.slot);
    free(d->image_names.slot);
    free(d->sample_ids.slot);
    *d = (Dataset){0};
}

int64_t dataset_items(const Dataset *d) { return d->step ? d->nsteps : d->nsamples; }
bool dataset_full(const Dataset *d) { return d->limit > 0 && dataset_items(d) >= d->limit; }

int dataset_item_images(const Dataset *d, int64_t i, int image[2]) {
    CHECK(i >= 0 && i < dataset_items(d), "item %" PRId64 " of %" PRId64, i, dataset_items(d));
    image[0] = d->step ? d->step[i].image : d->sample[i].image[0];
    image[1] = d->step ? -1 : d->sample[i].image[1];
    return image[1] < 0 ? 1 : 2;
}

int64_t dataset_find(const Dataset *d, const char *id) {
    const struct DatasetName *found = name_find(&d->sample_ids, id);
    return found ? found->value : -1;
}

/* ---- by image ----------------------------------------------------------------------------------------------- */

typedef struct Grouped { int image[2]; int64_t item; } Grouped;

static int by_images(const void *a, const void *b) {
    const Grouped *x = a, *y = b;
    for (int k = 0; k < 2; k++)
        if (x->image[k] != y->image[k]) return x->image[k] < y->image[k] ? -1 : 1;
    return (x->item > y->item) - (x->item < y->item);
}

void image_groups_open(ImageGroups *g, const Dataset *d) {
    const int64_t n = d->nsamples;
    Grouped *list = xcalloc((size_t)n + 1, sizeof *list);
    *g = (ImageGroups){.group = {.type = d->type, .images = d->images}};
    g->group.sample = xcalloc((size_t)n + 1, sizeof *g->group.sample);
    g->first = xcalloc((size_t)n + 1, sizeof *g->first);
    g->item = xcalloc((size_t)n + 1, sizeof *g->item);
    for (int64_t i = 0; i < n; i++) list[i] = (Grouped){{d->sample[i].image[0], d->sample[i].image[1]}, i};
    qsort(list, (size_t)n, sizeof *list, by_images);
    for (int64_t i = 0; i < n; i++) {
        const Sample *s = &d->sample[g->item[i] = list[i].item];
        if (i && !memcmp(list[i].image, list[i - 1].image, sizeof list[i].image)) continue;
        g->first[g->group.nsamples] = i;
        g->group.sample[g->group.nsamples++] =
            (Sample){.image = {s->image[0], s->image[1]}, .nimages = s->nimages};
    }
    g->first[g->group.nsamples] = n;
    free(list);
}

void image_groups_close(ImageGroups *g) {
    free(g->group.sample);
    free(g->first);
    free(g->item);
    *g = (ImageGroups){0};
}

int image_groups_choose(const ImageGroups *g, int64_t at, int k, uint64_t seed, int64_t *out) {
    const int64_t *item = g->item + g->first[at];
    int64_t n = g->first[at + 1] - g->first[at], left = k && k < n ? k : n;
    int taken = 0;
    /* Selection sampling (Knuth, 3.4.2 S): each is taken with the chance left / what remains. */
    for (int64_t i = 0; i < n && taken < left; i++) {
        uint64_t key[2] = {(uint64_t)at, (uint64_t)i};
        if (hash_bytes(key, sizeof key, seed) % (uint64_t)(n - i) < (uint64_t)(left - taken))
            out[taken++] = item[i];
    }
    return taken;
}

/* A path from a file may only lead into the dataset's folder. */
static bool path_is_inside(const char *path) {
    if (!*path || *path == '/' || strlen(path) > 1024) return false;
    for (const char *s = path; s; s = strchr(s, '/')) {
        if (*s == '/') s++;
        if (!strncmp(s, "..", 2) && (s[2] == '/' || !s[2])) return false;
    }
    return true;
}

bool dataset_image(Dataset *d, const char *path, int *index, Error *e) {
    const struct DatasetName *found = name_find(&d->image_names, path);
    if (found) {
        *index = (int)found->value;
        return true;
    }
    if (!path_is_inside(path))
        return fail_as(e, FAIL_DATA,
                       "the image path \"%.80s\" is empty, too long or leads out of the dataset's folder",
                       path);
    ImageTable *t = &d->images;
    if (t->n == INT32_MAX) return fail_as(e, FAIL_DATA, "more than %d images", t->n);
    GROW(t->path, t->cap, t->n + 1);
    t->path[t->n] = dataset_string(d, path);
    name_add(&d->image_names, t->path[t->n], t->n);
    *index = t->n++;
    return true;
}

bool dataset_add(Dataset *d, const Sample *s, Error *e) {
    CHECK(s->id && s->question && (s->nimages == 1 || s->nimages == 2), "a sample with %d images",
          s->nimages);
    if (name_find(&d->sample_ids, s->id))
        return fail_as(e, FAIL_DATA, "the id \"%.80s\" is there twice", s->id);
    GROW(d->sample, d->cap_samples, d->nsamples + 1);
    Sample *to = &d->sample[d->nsamples];
    *to = (Sample){.id = dataset_string(d, s->id),
                   .image = {s->image[0], s->nimages == 2 ? s->image[1] : -1},
                   .nimages = s->nimages,
                   .question = dataset_string(d, s->question),
                   .answer = dataset_string(d, s->answer),
                   .program = dataset_string(d, s->program),
                   .type = dataset_string(d, s->type)};
    name_add(&d->sample_ids, to->id, d->nsamples++);
    return true;
}

bool dataset_bad(Dataset *d, Error *e) {
    if (!d->first_bad) d->first_bad = xstrdup(e ? e->text : "");
    if (++d->nbad <= d->max_bad) {
        if (e) *e = (Error){0};
        return true;
    }
    if (d->max_bad && e)
        fail_as(e, FAIL_DATA, "more than %" PRId64 " records make no sense, the first: %.900s", d->max_bad,
                d->first_bad);
    return false;
}

/* ---- files --------------------------------------------------------------------------------------------------- */

bool file_map(MappedFile *m, const char *path, Error *e) {
    *m = (MappedFile){0};
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return fail_as(e, FAIL_DATA, "%s: %s", path, strerror(errno));
    struct stat st;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
        close(fd);
        return fail_as(e, FAIL_DATA, "%s: not a regular file", path);
    }
    void *p = st.st_size ? mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0) : (void *)"";
    const int err = errno;
    close(fd);
    if (p == MAP_FAILED) return fail_as(e, FAIL_DATA, "%s: cannot map it: %s", path, strerror(err));
    if (st.st_size) madvise(p, (size_t)st.st_size, MADV_SEQUENTIAL);
    *m = (MappedFile){.path = xstrdup(path), .data = p, .size = (size_t)st.st_size};
    return true;
}

bool file_map_memory(MappedFile *m, const void *data, size_t size, const char *path) {
    *m = (MappedFile){.path = path, .data = data, .size = size};
    return true;
}

void file_unmap(MappedFile *m) {
    if (!m->data) return;
    if (m->size) munmap((void *)m->data, m->size);
    free((void *)m->path);
    *m = (MappedFile){0};
}

int64_t file_line(const MappedFile *m, size_t at) {
    int64_t line = 1;
    const char *p = m->data, *end = m->data + MIN(at, m->size);
    while (p < end && (p = memchr(p, '\n', (size_t)(end - p)))) p++, line++;
    return line;
}

static bool fail_at(const MappedFile *m, size_t at, Error *e, const char *what) {
    return fail_as(e, FAIL_DATA, "%s:%" PRId64 ": %s", m->path, file_line(m, at), what);
}

static void skip_space(const MappedFile *m, size_t *at) {
    while (*at < m->size && strchr(" \t\r\n", m->data[*at]) && m->data[*at]) ++*at;
}

/* Bytes of the value that begins at `at`, by counting brackets outside strings; 0 when it does not end or is longer
 * than allowed. It may still be nonsense: jansson decides. */
static size_t value_span(const MappedFile *m, size_t at, bool *too_long) {
    const char *p = m->data + at;
    const size_t left = m->size - at, most = MIN(left, (size_t)JSON_MAX_VALUE);
    int64_t depth = 0;
    bool text = false;
    for (size_t i = 0; i < most; i++) {
        const char c = p[i];
        if (text) {
            if (c == '\\') i++;
            else if (c == '"') text = false;
            if (!text && depth == 0) return i + 1;
        } else if (c == '"') {
            text = true;
        } else if (c == '{' || c == '[') {
            depth++;
        } else if (c == '}' || c == ']') {
            if (depth == 0) return i; /* a number or a word ends before its container does */
            if (--depth == 0) return i + 1;
        } else if (depth == 0 && (c == ',' || c == ' ' || c == '\n' || c == '\r' || c == '\t')) {
            return i;
        }
    }
    *too_long = left > most;
    return 0;
}

static json_t *parse_value(const MappedFile *m, size_t *at, Error *e) {
    bool too_long = false;
    const size_t n = value_span(m, *at, &too_long);
    if (!n) {
        fail_at(m, *at, e,
                too_long ? "a value is longer than 2 MiB" : "the file ends inside a value (truncated?)");
        return NULL;
    }
    json_error_t je;
    json_t *v = json_loadb(m->data + *at, n, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, &je);
    if (!v) {
        fail_as(e, FAIL_DATA, "%s:%" PRId64 ": %s", m->path, file_line(m, *at) + MAX(je.line, 1) - 1,
                je.text);
        return NULL;
    }
    *at += n;
    return v;
}

void json_walk_begin(JsonWalk *w, const MappedFile *m) { *w = (JsonWalk){.m = m}; }

void json_walk_end(JsonWalk *w) {
    json_decref(w->key_json);
    json_decref(w->value);
    *w = (JsonWalk){0};
}

int json_walk_next(JsonWalk *w, Error *e) {
    const MappedFile *m = w->m;
    json_decref(w->key_json);
    json_decref(w->value);
    w->key_json = w->value = NULL;
    w->key = NULL;
#define PEEK (skip_space(m, &w->at), w->at < m->size ? m->data[w->at] : 0)
    if (w->members == 0) {
        if (PEEK != '{') return fail_at(m, w->at, e, "expected { and an object in it"), -1;
        w->at++;
    }
    char c = PEEK;
    if (c == '}') {
        w->at++;
        if (PEEK || w->at < m->size)
            return fail_at(m, w->at, e, "something follows the end of the object"), -1;
        return 0;
    }
    if (w->members) {
        if (c != ',')
            return fail_at(m, w->at, e,
                           c ? "expected , or }" : "the file ends inside the object (truncated?)"),
                   -1;
        w->at++;
        c = PEEK;
    }
    if (c != '"')
        return fail_at(m, w->at, e,
                       c ? "expected a name in quotes" : "the file ends inside the object (truncated?)"),
               -1;
    w->key_json = parse_value(m, &w->at, e);
    if (!w->key_json) return -1;
    w->key = json_string_value(w->key_json);
    if (PEEK != ':') return fail_at(m, w->at, e, "expected : behind the name"), -1;
    w->at++;
    if (!PEEK) return fail_at(m, w->at, e, "expected a value"), -1;
#undef PEEK
    w->value_at = w->at;
    w->value = parse_value(m, &w->at, e);
    if (!w->value) return -1;
    w->members++;
    return 1;
}

void json_lines_begin(JsonLines *w, const MappedFile *m) { *w = (JsonLines){.m = m}; }

void json_lines_end(JsonLines *w) {
    json_decref(w->value);
    *w = (JsonLines){0};
}

int json_lines_next(JsonLines *w, Error *e) {
    const MappedFile *m = w->m;
    json_decref(w->value);
    w->value = NULL;
    while (w->at < m->size) {
        const char *p = m->data + w->at, *end = memchr(p, '\n', m->size - w->at);
        size_t n = end ? (size_t)(end - p) : m->size - w->at;
        w->at += n + (end != NULL);
        w->line++;
        while (n && strchr(" \t\r", p[n - 1]) && p[n - 1]) n--;
        if (!n) continue;
        if (n > JSON_MAX_VALUE)
            return fail_as(e, FAIL_DATA, "%s:%" PRId64 ": the line is longer than 2 MiB", m->path, w->line),
                   -1;
        json_error_t je;
        w->value = json_loadb(p, n, JSON_REJECT_DUPLICATES, &je);
        if (!w->value) return fail_as(e, FAIL_DATA, "%s:%" PRId64 ": %s", m->path, w->line, je.text), -1;
        if (!json_is_object(w->value))
            return fail_as(e, FAIL_DATA, "%s:%" PRId64 ": not an object", m->path, w->line), -1;
        return 1;
    }
    return 0;
}

const char *json_text(const json_t *o, const char *key, bool *ok, Error *e) {
    const json_t *v = json_object_get(o, key);
    if (!v || json_is_null(v)) return NULL;
    const char *s = json_string_value(v);
    if (!s) *ok = fail_as(e, FAIL_DATA, "\"%s\" is not a string", key);
    return s;
}

bool json_rect(const json_t *v, Rect *r, Error *e) {
    int at[4];
    if (json_array_size(v) != 4) return fail_as(e, FAIL_DATA, "a box is [x0, y0, x1, y1]");
    for (int i = 0; i < 4; i++) {
        const json_t *x = json_array_get(v, (size_t)i);
        const double f = json_number_value(x);
        if (!json_is_number(x) || !(fabs(f) <= 1e6))
            return fail_as(e, FAIL_DATA, "coordinate %d of a box is not a number within +-1,000,000", i);
        at[i] = (int)floor(f + 0.5);
    }
    *r = (Rect){at[0], at[1], at[2], at[3]};
    return true;
}

/* ---- programs generated elsewhere ----------------------------------------------------------------------------- */

/* An object {"<question id>": "<program text>", ...}. They replace the dataset's own. */
static bool merge_programs(Dataset *d, const char *path, Error *e) {
    MappedFile m;
    JsonWalk w;
    int got = 0;
    int64_t merged = 0;
    if (!file_map(&m, path, e)) return false;
    json_walk_begin(&w, &m);
    while ((got = json_walk_next(&w, e)) == 1) {
        const int64_t at = dataset_find(d, w.key);
        if (!json_is_string(w.value)) {
            fail_as(e, FAIL_DATA, "%s:%" PRId64 ": the program of \"%.80s\" is not a string", path,
                    file_line(&m, w.value_at), w.key);
            got = -1;
            break;
        }
        if (at < 0) continue; /* of another split, or beyond the limit */
        d->sample[at].program = dataset_string(d, json_string_value(w.value));
        merged++;
    }
    if (got == 0 && merged == 0) {
        fail_as(e, FAIL_DATA, "%s: none of its ids is a question of this split (another split's programs?)",
                path);
        got = -1;
    }
    json_walk_end(&w);
    file_unmap(&m);
    return got == 0;
}

/* ---- scene graphs -------------------------------------------------------------------------------------------- */

static bool graph_int(const json_t *o, const char *key, int *out, Error *e) {
    const json_t *v = json_object_get(o, key);
    const double f = json_number_value(v);
    if (!json_is_number(v) || !(fabs(f) <= 1e6))
        return fail_as(e, FAIL_DATA, "\"%s\" is not a number within +-1,000,000", key);
    *out = (int)floor(f + 0.5);
    return true;
}

static bool graph_object(Dataset *d, GraphObject *to, const char *id, const json_t *o, json_t *index,
                         Error *e) {
    bool ok = true;
    int x = 0, y = 0, w = 0, h = 0;
    const char *name = json_text(o, "name", &ok, e);
    if (!ok || !name) return ok ? fail_as(e, FAIL_DATA, "object %.40s has no name", id) : false;
    if (!graph_int(o, "x", &x, e) || !graph_int(o, "y", &y, e) || !graph_int(o, "w", &w, e) ||
        !graph_int(o, "h", &h, e))
        return fail_in(e, "object %.40s", id);
    *to = (GraphObject){
        .id = dataset_string(d, id), .name = dataset_string(d, name), .box = {x, y, x + w, y + h}};

    const json_t *list = json_object_get(o, "attributes"), *v;
    size_t i;
    to->attribute = dataset_alloc(d, json_array_size(list) * sizeof *to->attribute);
    json_array_foreach(list, i, v) if (json_is_string(v))
        to->attribute[to->nattributes++] = dataset_string(d, json_string_value(v));

    list = json_object_get(o, "relations");
    to->relation = dataset_alloc(d, json_array_size(list) * sizeof *to->relation);
    json_array_foreach(list, i, v) {
        const char *rel = json_text(v, "name", &ok, e), *other = json_text(v, "object", &ok, e);
        if (!ok) return fail_in(e, "object %.40s, relation %zu", id, i);
        const json_t *at = other ? json_object_get(index, other) : NULL;
        if (rel && at)
            to->relation[to->nrelations++] =
                (GraphRelation){dataset_string(d, rel), (int)json_integer_value(at)};
    }
    return true;
}

static bool graph_read(Dataset *d, SceneGraph *g, json_t *v, Error *e) {
    json_t *objects = json_object_get(v, "objects"), *index, *o;
    const char *id;
    int at = 0;
    if (!graph_int(v, "width", &g->w, e) || !graph_int(v, "height", &g->h, e)) return false;
    if (!json_is_object(objects)) return fail_as(e, FAIL_DATA, "\"objects\" is missing or not an object");
    if (g->w < 1 || g->h < 1) return fail_as(e, FAIL_DATA, "the image is said to be %d x %d", g->w, g->h);
    index = json_object(); /* id -> position */
    json_object_foreach(objects, id, o) json_object_set_new(index, id, json_integer(at++));
    g->object = dataset_alloc(d, (size_t)at * sizeof *g->object);
    bool ok = true;
    json_object_foreach(objects, id, o) {
        if (!(ok = graph_object(d, &g->object[g->nobjects], id, o, index, e))) break;
        g->nobjects++;
    }
    json_decref(index);
    return ok;
}

/* "images/x.jpg" -> "x" */
static void image_stem(char *out, size_t size, const char *path) {
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path, *dot = strrchr(name, '.');
    snprintf(out, size, "%.*s", (int)(dot && dot != name ? dot - name : (ptrdiff_t)strlen(name)), name);
}

bool scenegraphs_open_mapped(SceneGraphs *g, Dataset *d, const MappedFile *m, Error *e) {
    *g = (SceneGraphs){.d = d, .n = d->images.n, .graph = xcalloc((size_t)d->images.n, sizeof *g->graph)};
    struct DatasetNames stems = {0};
    JsonWalk w;
    for (int i = 0; i < d->images.n; i++) {
        char stem[1100];
        image_stem(stem, sizeof stem, d->images.path[i]);
        if (!name_find(&stems, stem)) name_add(&stems, dataset_string(d, stem), i);
    }
    json_walk_begin(&w, m);
    int got;
    while ((got = json_walk_next(&w, e)) == 1) {
        const struct DatasetName *found = name_find(&stems, w.key);
        if (!found) continue;
        SceneGraph *one = &g->graph[found->value];
        if (one->w ? fail_as(e, FAIL_DATA, "the graph is there twice") : graph_read(d, one, w.value, e)) {
            g->nfound++;
            continue;
        }
        fail_in(e, "%s:%" PRId64 ": image %.80s", m->path, file_line(m, w.value_at), w.key);
        got = -1;
        break;
    }
    json_walk_end(&w);
    free(stems.slot);
    if (got < 0) scenegraphs_close(g);
    return got == 0;
}

bool scenegraphs_open(SceneGraphs *g, Dataset *d, const char *path, Error *e) {
    MappedFile m;
    *g = (SceneGraphs){0};
    if (!file_map(&m, path, e)) return false;
    const bool ok = scenegraphs_open_mapped(g, d, &m, e);
    file_unmap(&m);
    return ok;
}

void scenegraphs_close(SceneGraphs *g) {
    free(g->graph);
    *g = (SceneGraphs){0};
}

const SceneGraph *scenegraphs_find(const SceneGraphs *g, int image) {
    CHECK(image >= 0 && image < g->n, "image %d of %d", image, g->n);
    return g->graph[image].w ? &g->graph[image] : NULL;
}
