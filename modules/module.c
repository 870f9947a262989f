/* module.c -- opening and saving model folders, and the cache of tower outputs. See module.h. */
#include "modules/module.h"

#include <dirent.h>
#include <unistd.h>

static const ModuleType *const types[] = {&vilt_type, &owlvit_type, &clip_type, &blip_type};

/* ---- config.json ---------------------------------------------------------------------------------- */

json_t *json_path(json_t *root, const char *dotted) {
    char part[64];
    for (const char *dot; root && (dot = strchr(dotted, '.')); dotted = dot + 1) {
        snprintf(part, sizeof part, "%.*s", (int)(dot - dotted), dotted);
        root = json_object_get(root, part);
    }
    return root ? json_object_get(root, dotted) : NULL;
}

bool config_int(const Module *m, const char *key, int64_t fallback, int64_t lo, int64_t hi, int64_t *out,
                Error *e) {
    json_t *v = json_path(m->config, key);
    if (v && !json_is_integer(v))
        return fail_as(e, FAIL_MODEL, "%s/config.json: %s is not an integer", m->folder, key);
    *out = v ? json_integer_value(v) : fallback;
    if (*out < lo || *out > hi)
        return fail_as(e, FAIL_MODEL,
                       "%s/config.json: %s is %" PRId64 ", allowed are %" PRId64 " to %" PRId64, m->folder,
                       key, *out, lo, hi);
    return true;
}

bool config_float(const Module *m, const char *key, double fallback, double *out, Error *e) {
    json_t *v = json_path(m->config, key);
    if (v && !json_is_number(v))
        return fail_as(e, FAIL_MODEL, "%s/config.json: %s is not a number", m->folder, key);
    *out = v ? json_number_value(v) : fallback;
    return true;
}

const char *config_string(const Module *m, const char *key, const char *fallback) {
    json_t *v = json_path(m->config, key);
    return json_is_string(v) ? json_string_value(v) : fallback;
}

bool config_activation(const Module *m, const char *key, const char *fallback, Activation *out, Error *e) {
    const char *name = config_string(m, key, fallback);
    if (!strcmp(name, "gelu"))
        *out = ACT_GELU;
    else if (!strcmp(name, "gelu_new") || !strcmp(name, "gelu_pytorch_tanh")) /* two names of one function */
        *out = ACT_GELU_TANH;
    else if (!strcmp(name, "quick_gelu"))
        *out = ACT_QUICK_GELU;
    else
        return fail_as(
            e, FAIL_MODEL,
            "%s/config.json: %s is \"%s\"; known are gelu, gelu_new, gelu_pytorch_tanh, quick_gelu",
            m->folder, key, name);
    return true;
}

bool processor_norm(const Module *m, PatchSpec *spec, Error *e) {
    static const char *const keys[] = {"image_mean", "image_std"};
    for (int k = 0; k < 2; k++) {
        json_t *v = json_object_get(m->processor, keys[k]);
        float *out = k ? spec->std : spec->mean;
        for (int i = 0; i < 3; i++) {
            json_t *x = json_is_array(v) && json_array_size(v) == 3 ? json_array_get(v, (size_t)i) : NULL;
            if (!json_is_number(x) || (k && !(json_number_value(x) > 0)))
                return fail_as(e, FAIL_MODEL, "%s/preprocessor_config.json: %s wants three %snumbers",
                               m->folder, keys[k], k ? "positive " : "");
            out[i] = (float)json_number_value(x);
        }
    }
    json_t *r = json_object_get(m->processor, "resample");
    int filter = r ? (int)json_integer_value(r) : 3;
    if (filter != 2 && filter != 3)
        return fail_as(e, FAIL_MODEL,
                       "%s/preprocessor_config.json: resample is %d; 2 (bilinear) and 3 (bicubic) are known",
                       m->folder, filter);
    spec->filter = filter == 2 ? BILINEAR : BICUBIC;
    return true;
}

bool processor_square(const Module *m, int64_t side, Error *e) {
    static const char *const sides[] = {"size.height", "size.width"};
    for (int i = 0; i < COUNT_OF(sides); i++) { /* absent in some files, which then mean the model's size */
        json_t *v = json_path(m->processor, sides[i]);
        if (v && json_integer_value(v) != side)
            return fail_as(e, FAIL_MODEL,
                           "%s/preprocessor_config.json: %s is %" JSON_INTEGER_FORMAT
                           ", the model's image_size %" PRId64,
                           m->folder, sides[i], json_integer_value(v), side);
    }
    return true;
}

bool module_json(const char *folder, const char *name, bool optional, json_t **out, Error *e) {
    char path[600], *data;
    size_t size;
    *out = NULL;
    if (!path_join(path, sizeof path, folder, name, e)) return false;
    if (optional && access(path, F_OK)) return true;
    if (!file_read(path, &data, &size, 64 << 20, e)) {
        if (e) e->status = FAIL_MODEL;
        return false;
    }
    json_error_t je;
    *out = json_loadb(data, size, JSON_REJECT_DUPLICATES, &je);
    free(data);
    return *out || fail_as(e, FAIL_MODEL, "%s:%d: %s", path, je.line, je.text);
}

static json_t *read_object(const char *folder, const char *name, Error *e) {
    json_t *j;
    if (!module_json(folder, name, false, &j, e) || json_is_object(j)) return j;
    json_decref(j);
    fail_as(e, FAIL_MODEL, "%s/%s: not a JSON object", folder, name);
    return NULL;
}

/* id2label {"0": "yes", ...}: every id of 0..n-1 once. */
static bool read_labels(Module *m, Error *e) {
    json_t *map = json_object_get(m->config, "id2label");
    if (!map) return true;
    size_t n = json_object_size(map);
    m->label = ARENA_NEW(&m->host, const char *, n);
    m->nlabels = (int)n;
    const char *key;
    json_t *v;
    json_object_foreach(map, key, v) {
        char *end;
        long id = strtol(key, &end, 10);
        if (*end || id < 0 || id >= (long)n || m->label[id] || !json_is_string(v))
            return fail_as(
                e, FAIL_MODEL,
                "%s/config.json: id2label wants each id 0 to %zu once with a string; \"%s\" is wrong",
                m->folder, n - 1, key);
        m->label[id] = json_string_value(v);
    }
    return true;
}

/* ---- open, save, close ---------------------------------------------------------------------------- */

/* Takes the copies of other tensors out of what was read. A file may have the copy alone. */
static bool untie(const Module *m, SafeTensors *st, Error *e) {
    for (int i = 0; m->type->tied && m->type->tied[i][0]; i++) {
        const char *name = m->type->tied[i][0], *of = m->type->tied[i][1];
        const StTensor *copy = st_find(st, name), *original = st_find(st, of);
        if (!copy) continue;
        if (!original) {
            st_rename(st, name, of);
            continue;
        }
        if (copy->dtype != original->dtype || copy->bytes != original->bytes || memcmp(copy->data, original->data, copy->bytes))
            return fail_as(e, FAIL_MODEL, "%s: %s and %s differ; this architecture has them as one tensor", st->path, name, of);
        st_remove(st, name);
    }
    return true;
}

static bool open_parts(Module *m, Device *dev, DType precision, ModuleUse use, bool weights, uint64_t seed,
                       Error *e) {
    double std = 0;
    if (!read_labels(m, e) || !config_float(m, "initializer_range", 0.02, &std, e) || !m->type->open(m, e))
        return false;
    params_alloc(&m->params, dev, precision, use.trained && !use.lora_rank);
    if (use.lora_rank) {
        params_alloc(&m->lora.params, dev, precision, use.trained);
        params_init(&m->lora.params, seed, 0);
    }
    if (!weights) {
        params_init(&m->params, seed, (float)std);
        if (m->type->init) m->type->init(m);
        return true;
    }
    char path[600], index[600];
    if (!path_join(path, sizeof path, m->folder, "model.safetensors", e) ||
        !path_join(index, sizeof index, m->folder, "model.safetensors.index.json", e))
        return false;
    const bool sharded = access(path, R_OK) && !access(index, R_OK);
    if (!sharded && access(path, R_OK)) {
        char bin[600];
        if (path_join(bin, sizeof bin, m->folder, "pytorch_model.bin", NULL) && !access(bin, R_OK))
            return fail_as(e, FAIL_MODEL,
                           "%s holds pickled weights (pytorch_model.bin), which could run code and are never "
                           "read; convert them once with\n"
                           "  python3 -c \"import torch, safetensors.torch as s; s.save_file({k: "
                           "v.contiguous().clone() for k, v in torch.load('%s', "
                           "weights_only=True).items()}, '%s', metadata={'format': 'pt'})\"",
                           m->folder, bin, path);
        return fail_as(e, FAIL_MODEL, "%s: there is no model.safetensors", m->folder);
    }
    SafeTensors st;
    if (!(sharded ? st_open_index(&st, index, e) : st_open(&st, path, e))) return false;
    bool ok = untie(m, &st, e) && params_load(&m->params, &st, st.path, e);
    st_close(&st);
    return ok;
}

ModuleUse module_use(const Config *cfg) {
    return (ModuleUse){true, cfg->train.lora_rank, (float)cfg->train.lora_alpha};
}

Module *module_open(const char *folder, Device *dev, DType precision, ModuleUse use, bool weights,
                    uint64_t seed, Error *e) {
    json_t *config = read_object(folder, "config.json", e);
    if (!config) return NULL;
    const char *name = json_string_value(json_object_get(config, "model_type"));
    const ModuleType *type = NULL;
    for (int i = 0; i < COUNT_OF(types); i++)
        if (name && !strcmp(types[i]->name, name)) type = types[i];
    if (!type) {
        char known[256] = "";
        for (int i = 0; i < COUNT_OF(types); i++)
            snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "",
                     types[i]->name);
        fail_as(e, FAIL_MODEL, "%s/config.json: model_type is \"%s\"; known are %s", folder,
                name ? name : "(missing)", known);
        json_decref(config);
        return NULL;
    }
    Module *m = xcalloc(1, type->size);
    m->type = type;
    m->images = 1;
    m->config = config;
    snprintf(m->folder, sizeof m->folder, "%s", folder);
    arena_open(&m->host, "module", NULL, (size_t)64 << 20);
    params_open(&m->params, &m->host);
    lora_open(&m->lora, &m->host, use.lora_rank, use.lora_alpha);
    if (use.lora_rank) m->params.lora = &m->lora;
    m->processor = read_object(folder, "preprocessor_config.json", e);
    if (!m->processor || !open_parts(m, dev, precision, use, weights, seed, e)) {
        module_close(m);
        return NULL;
    }
    return m;
}

void module_close(Module *m) {
    if (!m) return;
    if (m->type->close) m->type->close(m);
    params_close(&m->params);
    lora_close(&m->lora);
    if (m->tokenizer) token_close(m->tokenizer);
    json_decref(m->config);
    json_decref(m->processor);
    arena_close(&m->host);
    free(m);
}

static bool copy_file(const char *from, const char *to, const char *name, Error *e) {
    char a[600], b[600], *data;
    size_t size;
    if (!path_join(a, sizeof a, from, name, e) || !path_join(b, sizeof b, to, name, e) ||
        !file_read(a, &data, &size, 256 << 20, e))
        return false;
    bool ok = file_write_atomic(b, data, size, e);
    free(data);
    return ok;
}

/* config.json says in what type the weights are stored, and transformers would round ours to it. True when it had to be told. */
static bool told_f32(json_t *config) {
    static const char *const keys[] = {"dtype", "torch_dtype"}, *const parts[] = {"text_config", "vision_config"};
    bool told = false;
    for (int i = 0; i < COUNT_OF(keys); i++) {
        const char *type = json_string_value(json_object_get(config, keys[i]));
        if (!type || !strcmp(type, "float32")) continue;
        json_object_set_new(config, keys[i], json_string("float32"));
        told = true;
    }
    for (int i = 0; i < COUNT_OF(parts); i++)
        if (json_is_object(json_object_get(config, parts[i]))) told |= told_f32(json_object_get(config, parts[i]));
    return told;
}

static bool save_config(const Module *m, const char *folder, Error *e) {
    json_t *config = json_deep_copy(m->config);
    bool ok;
    if (told_f32(config)) {
        char path[600], *text = json_dumps(config, JSON_INDENT(2));
        ok = path_join(path, sizeof path, folder, "config.json", e) && file_write_atomic(path, text, strlen(text), e);
        free(text);
    } else {
        ok = copy_file(m->folder, folder, "config.json", e);
    }
    json_decref(config);
    return ok;
}

/* Merged only while they are written. */
static bool save_weights(Module *m, const char *path, Error *e) {
    if (!m->lora.rank) return params_save(&m->params, path, e);
    ParamSet *ps = &m->params;
    const size_t bytes = (size_t)ps->total * sizeof(float);
    float *before = xcalloc((size_t)ps->total, sizeof *before);
    ps->dev->download(ps->dev, before, ps->value, bytes);
    lora_merge(&m->lora);
    bool ok = params_save(ps, path, e);
    ps->dev->upload(ps->dev, ps->value, before, bytes);
    free(before);
    return ok;
}

bool module_save(Module *m, const char *folder, Error *e) {
    char path[600];
    if (!make_dirs(folder, e) || !path_join(path, sizeof path, folder, "model.safetensors", e)) return false;
    DIR *d = opendir(m->folder);
    if (!d) return fail_as(e, FAIL_MODEL, "%s: cannot list the folder", m->folder);
    bool ok = true;
    for (struct dirent *f; ok && (f = readdir(d));) {
        size_t n = strlen(f->d_name);
        bool text =
            (n > 5 && !strcmp(f->d_name + n - 5, ".json")) || (n > 4 && !strcmp(f->d_name + n - 4, ".txt"));
        if (text && !strstr(f->d_name, "safetensors") && strcmp(f->d_name, "config.json")) ok = copy_file(m->folder, folder, f->d_name, e);
    }
    closedir(d);
    return ok && save_config(m, folder, e) && save_weights(m, path, e);
}

void module_begin(Module *m) {
    if (m->type->begin) m->type->begin(m);
}

void module_forward(Module *m, Ctx *c, const Ask *ask, int64_t n, Outputs *out) {
    *out = (Outputs){.n = n};
    if (!n) return;
    m->asks += n;
    m->forwards++;
    params_refresh(&m->params);
    if (m->lora.rank) params_refresh(&m->lora.params);
    m->type->forward(m, c, ask, n, out);
}

/* ---- tower cache: open addressing, emptied by a new generation ------------------------------------- */

TowerKey ask_text_key(const Ask *a) {
    size_t n = strlen(a->query);
    return (TowerKey){hash_bytes(a->query, n, 1), hash_bytes(a->query, n, 2),
                      n}; /* 128 bits: a collision will not happen */
}

void tower_clear(TowerCache *t) {
    t->generation++;
    t->used = 0;
}

static int64_t tower_slot(const TowerCache *t, TowerKey k) {
    uint64_t h = hash_bytes(&k, sizeof k, 0);
    for (int64_t i = (int64_t)(h & (uint64_t)(t->nslots - 1));; i = (i + 1) & (t->nslots - 1))
        if (t->slot[i].generation != t->generation || !memcmp(&t->slot[i].key, &k, sizeof k)) return i;
}

TowerRow *tower_find(TowerCache *t, TowerKey key) {
    if (!t->used) return NULL;
    int64_t i = tower_slot(t, key);
    return t->slot[i].generation == t->generation ? &t->slot[i].at : NULL;
}

void tower_add(TowerCache *t, TowerKey key, TowerRow at) {
    if (2 * (t->used + 1) > t->nslots) {
        TowerCache old = *t;
        t->nslots = MAX(2 * old.nslots, 256);
        t->slot = xcalloc((size_t)t->nslots, sizeof *t->slot);
        if (!t->generation) old.generation = t->generation = 1;
        for (int64_t i = 0; i < old.nslots; i++)
            if (old.slot[i].generation == old.generation)
                t->slot[tower_slot(t, old.slot[i].key)] = old.slot[i];
        free(old.slot);
    }
    int64_t i = tower_slot(t, key);
    t->slot[i].key = key;
    t->slot[i].at = at;
    t->slot[i].generation = t->generation;
    t->used++;
}

void tower_free(TowerCache *t) {
    free(t->slot);
    *t = (TowerCache){0};
}
