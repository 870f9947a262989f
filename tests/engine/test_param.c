/* test_param.c -- parameter sets: fused views, initial values, files that fit and files that do not, moments to the bit. */
#include "engine/param.h"
#include "tests/engine/rig.h"

#include <math.h>

typedef struct Set {
    Device *dev;
    Arena host;
    ParamSet ps;
    Tensor *qkv, *q, *norm, *emb, *kernel, *flat, *scalar;
} Set;

static void declare(Set *s, const char *prefix, int64_t emb_rows) {
    static const char *const names[] = {"q", "k", "v"};
    s->dev = device_cpu(2);
    arena_open(&s->host, "params", NULL, 1 << 20);
    params_open(&s->ps, &s->host);
    s->norm = PARAM(&s->ps, PARAM_GAIN, (5), "%snorm.weight", prefix);
    s->qkv = param_fused(&s->ps, PARAM_WEIGHT, 3, 2, (int64_t[]){5, 7}, prefix, names, ".weight");
    s->q = param_rows(&s->ps, s->qkv, 5, 10); /* k and v */
    s->emb = PARAM(&s->ps, PARAM_EMBEDDING, (emb_rows, 5), "%semb", prefix);
    s->kernel = PARAM(&s->ps, PARAM_WEIGHT, (4, 3, 2, 2), "%skernel", prefix);
    s->flat = param_matrix(&s->ps, s->kernel, 4);
    s->scalar = &param_new(&s->ps, PARAM_EMBEDDING, 0, NULL, "%sscale", prefix)->t;
    param_new(&s->ps, PARAM_BIAS, 1, (int64_t[]){3}, "%sbias", prefix)->init_value = -2;
}

static void set_open(Set *s, bool trained) {
    declare(s, "m.", 6);
    params_alloc(&s->ps, s->dev, F32, trained);
}

static void set_close(Set *s) {
    params_close(&s->ps);
    arena_close(&s->host);
}

static const char *in_dir(const char *name) {
    static char path[256];
    snprintf(path, sizeof path, "%s/param-%s", test_dir(), name);
    return path;
}

TEST(param_views) {
    Set s;
    set_open(&s, true);
    EXPECT(params_count(&s.ps) == 5 + 105 + 30 + 48 + 1 + 3, "%" PRId64 " values", params_count(&s.ps));
    EXPECT(s.qkv->shape[0] == 15 && s.qkv->shape[1] == 7 && s.q->shape[0] == 10, "fused shape");
    EXPECT(s.flat->shape[0] == 4 && s.flat->shape[1] == 12 && s.flat->data == s.kernel->data, "matrix");
    EXPECT((float *)s.q->data == (float *)s.qkv->data + 35 && s.q->param_grad == s.qkv->param_grad + 35,
           "rows");
    const Param *k = param_find(&s.ps, "m.k.weight"), *v = param_find(&s.ps, "m.v.weight");
    EXPECT(k && v && k->t.data == s.q->data && (float *)v->t.data == (float *)s.q->data + 35,
           "the parts lie side by side");
    EXPECT(s.scalar->ndim == 1 && numel(s.scalar) == 1, "a scalar is one value");
    EXPECT(!param_find(&s.ps, "m.none"), "found what is not there");
    for (int i = 0; i < s.ps.n; i++) {
        const Param *p = s.ps.param[i];
        EXPECT((float *)p->t.data == s.ps.value + p->at && p->t.param_grad == s.ps.grad + p->at &&
                   p->t.needs_grad,
               "%s", p->name);
        EXPECT(!strncmp(p->name, "m.k", 3) || !strncmp(p->name, "m.v", 3) || !((uintptr_t)p->t.data & 63),
               "%s is not aligned", p->name);
    }
    set_close(&s);
}

TEST(param_init) {
    Set a, b;
    set_open(&a, true);
    declare(&b, "m.", 60);
    params_alloc(&b.ps, b.dev, F32, false);
    params_init(&a.ps, 5, 0);
    params_init(&b.ps, 5, 0);
    /* A function of (seed, name): another set with the same names, other neighbours, has the same numbers. */
    EXPECT(!memcmp(a.kernel->data, b.kernel->data, 48 * 4) && !memcmp(a.qkv->data, b.qkv->data, 105 * 4),
           "not a function of seed and name");
    const float *gain = a.norm->data, *bias = param_find(&a.ps, "m.bias")->t.data, *emb = b.emb->data;
    for (int i = 0; i < 5; i++) EXPECT(gain[i] == 1, "gain %g", (double)gain[i]);
    for (int i = 0; i < 3; i++) EXPECT(bias[i] == -2, "bias %g", (double)bias[i]);
    double sum = 0, squares = 0;
    for (int i = 0; i < 300; i++) sum += (double)emb[i], squares += (double)emb[i] * (double)emb[i];
    EXPECT_NEAR(sum / 300, 0, 5 * 0.5 / sqrt(300), "mean"); /* five standard errors */
    EXPECT_NEAR(sqrt(squares / 300), 0.5, 5 * 0.5 / sqrt(600), "standard deviation of an embedding");
    params_init(&b.ps, 5, 0.02f);
    squares = 0;
    for (int i = 0; i < 300; i++) squares += (double)emb[i] * (double)emb[i];
    EXPECT_NEAR(sqrt(squares / 300), 0.02, 5 * 0.02 / sqrt(600), "initializer_range");
    params_init(&a.ps, 6, 0);
    params_init(&b.ps, 5, 0);
    EXPECT(memcmp(a.kernel->data, b.kernel->data, 48 * 4), "the seed does nothing");
    float first = *(float *)a.kernel->data;
    param_scale(&a.ps, a.kernel, 0.5f);
    EXPECT(*(float *)a.kernel->data == 0.5f * first, "param_scale");
    set_close(&a);
    set_close(&b);
}

TEST(param_save_load) {
    Set a, b;
    set_open(&a, true);
    set_open(&b, false);
    Error e = {0};
    SafeTensors st;
    params_init(&a.ps, 5, 0);
    EXPECT(params_save(&a.ps, in_dir("good.safetensors"), &e), "%s", e.text);
    CHECK(st_open(&st, in_dir("good.safetensors"), &e), "%s", e.text);
    EXPECT(st.ntensors == 8 && st_find(&st, "m.k.weight") && !strcmp(st_metadata(&st, "format"), "pt"),
           "%d tensors", st.ntensors);
    EXPECT(params_load(&b.ps, &st, "good", &e), "%s", e.text);
    for (int i = 0; i < a.ps.n; i++)
        EXPECT(!memcmp(a.ps.param[i]->t.data, b.ps.param[i]->t.data, (size_t)a.ps.param[i]->n * 4), "%s",
               a.ps.param[i]->name);
    st_close(&st);
    set_close(&a);
    set_close(&b);
}

/* All that is wrong in one sentence, and nothing loaded. */
TEST(param_load_lists_all) {
    Set s;
    set_open(&s, false);
    static const float zeros[200];
    StTensor t[] = {
        {"m.norm.weight", ST_F32, 1, {6}, zeros, 24}, /* misshaped */
        {"m.q.weight", ST_F32, 2, {5, 7}, zeros, 140},
        {"m.k.weight", ST_F32, 2, {7, 5}, zeros, 140}, /* transposed */
        {"m.emb", ST_F32, 2, {6, 5}, zeros, 120},
        {"m.kernel", ST_F32, 2, {4, 12}, zeros, 192}, /* flattened */
        {"m.scale", ST_F32, 0, {0}, zeros, 4},        /* a scalar is right */
        {"m.bias", ST_F32, 1, {3}, zeros, 12},
        {"m.text.position_ids", ST_I64, 1, {4}, zeros, 32}, /* a buffer of older files */
        {"head.extra", ST_F32, 1, {1}, zeros, 4},           /* unknown */
    };
    Error e = {0};
    SafeTensors st;
    CHECK(st_write(in_dir("wrong.safetensors"), t, COUNT_OF(t), NULL, 0, &e) &&
              st_open(&st, in_dir("wrong.safetensors"), &e),
          "%s", e.text);
    params_init(&s.ps, 1, 0);
    float was = *(float *)s.emb->data;
    EXPECT(!params_load(&s.ps, &st, "wrong.safetensors", &e) && e.status == FAIL_MODEL, "status %d",
           e.status);
    static const char *const said[] = {"wrong.safetensors",
                                       "5 tensors",
                                       "missing m.v.weight (5, 7)",
                                       "m.norm.weight is (6), expected (5)",
                                       "m.k.weight is (7, 5), expected (5, 7)",
                                       "m.kernel is (4, 12), expected (4, 3, 2, 2)",
                                       "unknown tensor head.extra"};
    for (int i = 0; i < COUNT_OF(said); i++)
        EXPECT(strstr(e.text, said[i]), "\"%s\" is not in: %s", said[i], e.text);
    EXPECT(!strstr(e.text, "position_ids") && !strstr(e.text, "m.scale"), "%s", e.text);
    EXPECT(*(float *)s.emb->data == was, "a value was loaded all the same");
    st_close(&st);

    /* A type without values for us, and so many wrong names that the sentence ends in dots. */
    static char names[100][64];
    StTensor many[100];
    for (int i = 0; i < 100; i++) {
        snprintf(names[i], sizeof names[i], "some.quite.long.prefix.of.another.model.layer.%d.weight", i);
        many[i] = (StTensor){names[i], ST_F32, 1, {1}, zeros, 4};
    }
    CHECK(st_write(in_dir("many.safetensors"), many, 100, NULL, 0, &e) &&
              st_open(&st, in_dir("many.safetensors"), &e),
          "%s", e.text);
    EXPECT(!params_load(&s.ps, &st, "many", &e) && strstr(e.text, "108 tensors"), "%s", e.text);
    EXPECT(strlen(e.text) < sizeof e.text - 1 && !strcmp(e.text + strlen(e.text) - 3, "..."), "%s", e.text);
    st_close(&st);
    set_close(&s);
}

TEST(param_moments) {
    Set a, b;
    set_open(&a, true);
    set_open(&b, true);
    Error e = {0};
    for (int i = 0; i < a.ps.n; i++) {
        random_fill(a.ps.m + a.ps.param[i]->at, a.ps.param[i]->n, (uint64_t)i, -1, 1);
        random_fill(a.ps.v + a.ps.param[i]->at, a.ps.param[i]->n, 50 + (uint64_t)i, 0, 1e-30f);
    }
    a.ps.step = 123456789012;
    EXPECT(params_save_moments(&a.ps, in_dir("moments"), &e), "%s", e.text);
    EXPECT(params_load_moments(&b.ps, in_dir("moments"), &e), "%s", e.text);
    EXPECT(b.ps.step == a.ps.step && !memcmp(a.ps.m, b.ps.m, (size_t)a.ps.total * 4) &&
               !memcmp(a.ps.v, b.ps.v, (size_t)a.ps.total * 4),
           "moments differ");
    /* Another model's, and a file that is none. */
    Set c;
    declare(&c, "m.", 7);
    params_alloc(&c.ps, c.dev, F32, true);
    EXPECT(!params_load_moments(&c.ps, in_dir("moments"), &e) && e.status == FAIL_MODEL &&
               strstr(e.text, "m.m.emb of 35 values is of another size"),
           "%s", e.text);
    EXPECT(params_save(&a.ps, in_dir("values"), &e) && !params_load_moments(&b.ps, in_dir("values"), &e) &&
               e.status == FAIL_MODEL && strstr(e.text, "not an optimizer state"),
           "%s", e.text);
    /* A step that is no number. */
    char *data, *at;
    size_t n;
    CHECK(file_read(in_dir("moments"), &data, &n, 1 << 20, &e) && (at = memmem(data, n, "123456789012", 12)),
          "%s", e.text);
    at[11] = 'x';
    CHECK(file_write_atomic(in_dir("nostep"), data, n, &e), "%s", e.text);
    free(data);
    EXPECT(!params_load_moments(&b.ps, in_dir("nostep"), &e) && e.status == FAIL_MODEL &&
               strstr(e.text, "12345678901x"),
           "%s", e.text);
    EXPECT(b.ps.step == a.ps.step, "a failed load changed the step");
    set_close(&a);
    set_close(&b);
    set_close(&c);
}
