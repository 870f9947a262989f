/* test_safetensors.c -- the reader's rules one by one, mutants, the writer's bytes, full disks.
 *
 * The expected header of `writes_what_the_reference_writes` was printed by the reference (safetensors 0.8.0).
 */
#include "data/safetensors.h"
#include "tests/test.h"

#include <math.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

static size_t make_file(char *out, const char *header, size_t data) {
    size_t n = strlen(header);
    for (int i = 0; i < 8; i++) out[i] = (char)(n >> 8 * i);
    memcpy(out + 8, header, n);
    memset(out + 8 + n, 7, data);
    return 8 + n + data;
}

typedef struct Rule { const char *header; int data; const char *says; /* NULL: a good file */ } Rule;

#define A(rest) "{\"a\":{" rest "}}"
#define F(shape, from, to) "\"dtype\":\"F32\",\"shape\":[" shape "],\"data_offsets\":[" from "," to "]"
static const Rule rules[] = {
    {"{}", 0, NULL},
    {"{}   \n\t ", 0, NULL},
    {"{\"__metadata__\":{\"x\":\"y\"}}", 0, NULL},
    {"{\"__metadata__\":null}", 0, NULL},
    {A(F("1", "0", "4")), 4, NULL},
    {A(F("", "0", "4")), 4, NULL},                                  /* a scalar */
    {A(F("2,0,3", "0", "0")), 0, NULL},                             /* nothing in it */
    {A(F("0,9223372036854775807,3", "0", "0")), 0, NULL},           /* 0 first: no overflow */
    {A(F("1", "0", "4") ",\"later\":[1,{\"b\":-2.5e3}]"), 4, NULL}, /* a field of a later version */
    {"{\"a\":{" F("0", "0", "0") "},\"b\":{" F("1", "0", "4") "}}", 4, NULL},
    {"{\"b\":{" F("1", "4", "8") "},\"a\":{" F("1", "0", "4") "}}", 8, NULL}, /* any order in the header */
    {"{\"\\u00e9\\ud83d\\ude00\":{" F("1", "0", "4") "}}", 4, NULL},
    {A("\"dtype\":\"F4\",\"shape\":[4],\"data_offsets\":[0,2]"), 2, NULL},
    {"", 0, "begins with '{'"},
    {" {}", 0, "begins with '{'"},
    {"[]", 0, "begins with '{'"},
    {"{} x", 0, "after the header's closing brace"},
    {"{\"a\":{" F("1", "0", "4") "},}", 4, "'\"' expected before a tensor's name"},
    {"{\"a", 0, "ends inside a string"},
    {"{\"a\tb\":1}", 0, "control character 9"},
    {"{\"a\\x\":1}", 0, "unknown escape"},
    {"{\"a\\u00g0\":1}", 0, "four hexadecimal digits"},
    {"{\"a\\ud800\":1}", 0, "half a character"},
    {"{\"a\\u0000\":1}", 0, "zero byte"},
    {"{\"a\":[\"F32\",[1],[0,4]]}", 4, "tensor a: '{' expected"},
    {A("\"shape\":[1],\"data_offsets\":[0,4]"), 4, "tensor a: no \"dtype\""},
    {A("\"dtype\":\"F32\",\"data_offsets\":[0,4]"), 4, "tensor a: no \"shape\""},
    {A("\"dtype\":\"F32\",\"shape\":[1]"), 4, "tensor a: no \"data_offsets\""},
    {A(F("1", "0", "4") ",\"shape\":[1]"), 4, "\"shape\" twice"},
    {A("\"dtype\":\"F33\",\"shape\":[1],\"data_offsets\":[0,4]"), 4, "unknown dtype \"F33\""},
    {A(F("-1", "0", "4")), 4, "must be a whole number"},
    {A(F("1.0", "0", "4")), 4, "must be a whole number"},
    {A(F("1e0", "0", "4")), 4, "must be a whole number"},
    {A(F("01", "0", "4")), 4, "must be a whole number"},
    {A(F("18446744073709551616", "0", "4")), 4, "above 2^64 - 1"},
    {A(F("18446744073709551615", "0", "4")), 4, "above 2^63 - 1"},
    {A(F("1,1,1,1,1,1,1,1,1", "0", "4")), 4, "more than 8 dimensions"},
    {A(F("1", "0", "4,5")), 4, "']' expected after two offsets"},
    {A(F("1", "4", "8")), 8, "a hole"},
    {A(F("1", "4", "0")), 4, "before it begins"},
    {"{\"a\":{" F("1", "0", "4") "},\"b\":{" F("1", "0", "4") "}}", 4, "an overlap"},
    {"{\"a\":{" F("2", "0", "8") "},\"b\":{" F("1", "4", "8") "}}", 8, "an overlap"},
    {A(F("1", "0", "4")), 5, "bytes nobody owns"},
    {A(F("1", "0", "4")), 3, "truncated?"},
    {A(F("2", "0", "4")), 4, "2 values of F32 are 8 bytes, its offsets give 4"},
    {A(F("9223372036854775807,3", "0", "4")), 4, "overflows 64 bits"},
    {A(F("4611686018427387904,2", "0", "0")), 0,
     "overflows 64 bits"}, /* the bits overflow, not the product */
    {A("\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]"), 1, "do not fill whole bytes"},
    {"{\"a\":{" F("0", "0", "0") "},\"a\":{" F("1", "0", "4") "}}", 4, "two tensors are named a"},
    {"{\"__metadata__\":{\"a\":1}}", 0, "value of \"a\" is not a string"},
    {"{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}", 0, "key \"a\" twice"},
    {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "__metadata__ twice"},
    {"{\"__metadata__\":[]}", 0, "'{' expected before __metadata__"},
    {"{\"a\xff\":1}", 0, "is not UTF-8"},
};

TEST(safetensors_rules) {
    for (int i = 0; i < COUNT_OF(rules); i++) {
        char *file = xcalloc(4096, 1);
        size_t n = make_file(file, rules[i].header, (size_t)rules[i].data);
        char *exact = xcalloc(n, 1); /* so that the sanitizer sees a byte too far */
        memcpy(exact, file, n);
        SafeTensors st;
        Error e = {0};
        bool ok = st_open_memory(&st, exact, n, "m.safetensors", &e);
        EXPECT(ok == !rules[i].says, "%s: %s", rules[i].header, ok ? "taken" : e.text);
        if (!ok) {
            EXPECT(e.status == FAIL_MODEL, "%s: status %d", rules[i].header, e.status);
            EXPECT(!strncmp(e.text, "m.safetensors: ", 15), "no file in: %s", e.text);
            EXPECT(rules[i].says && strstr(e.text, rules[i].says), "%s: says %s", rules[i].header, e.text);
        }
        st_close(&st);
        free(exact);
        free(file);
    }
}

TEST(safetensors_lengths) {
    char file[64] = {0};
    SafeTensors st;
    Error e = {0};
    for (size_t n = 0; n < 8; n++) EXPECT(!st_open_memory(&st, file, n, "m", &e), "%zu bytes taken", n);
    const uint64_t lengths[] = {1, 57, 100000001, UINT64_MAX, UINT64_MAX - 7, 1ull << 63};
    for (int i = 0; i < COUNT_OF(lengths); i++) {
        memset(file, ' ', sizeof file);
        memcpy(file, &lengths[i], 8);
        file[8] = '{';
        EXPECT(!st_open_memory(&st, file, sizeof file, "m", &e), "header length %" PRIu64 " taken",
               lengths[i]);
    }
    EXPECT(strstr(e.text, "at most 100000000"), "%s", e.text);
}

TEST(safetensors_deep_and_long_names) {
    size_t n = 200000;
    char *h = xcalloc(n + 100, 1), *file = xcalloc(n + 200, 1);
    SafeTensors st;
    Error e = {0};
    strcpy(h, "{\"a\":{\"x\":");
    memset(h + strlen(h), '[', n);
    size_t size = make_file(file, h, 0);
    EXPECT(!st_open_memory(&st, file, size, "m", &e) && strstr(e.text, "nested deeper"), "%s", e.text);
    memset(h, 0, n);
    strcpy(h, "{\"");
    memset(h + 2, 'z', n);
    strcpy(h + 2 + n, "\":{\"dtype\":\"Q\"}}");
    size = make_file(file, h, 0);
    EXPECT(!st_open_memory(&st, file, size, "m", &e) && strlen(e.text) < 300, "%zu bytes of error",
           strlen(e.text));
    free(h);
    free(file);
}

/* Every prefix of a good file and every single-byte change: no crash, and nothing outside the file is
 * touched. */
TEST(safetensors_mutants) {
    char good[512];
    size_t n = make_file(good,
                         "{\"__metadata__\":{\"format\":\"pt\"},\"w\":{" F(
                             "2,3", "0", "24") "},\"b\":{\"dtype\":\"BF16\",\"shape\":[3],"
                                               "\"data_offsets\":[24,30]}}",
                         30);
    static const unsigned char values[] = {0,   ' ',  '"', ',', '0', '9',  ':',
                                           '[', '\\', ']', '{', '}', 0x80, 0xff};
    int taken = 0;
    for (size_t cut = 0; cut <= n; cut++)
        for (int v = -1; v < COUNT_OF(values); v++) {
            size_t size = v < 0 ? cut : n;
            if (v >= 0 && cut == n) continue;
            char *file = xcalloc(size, 1);
            memcpy(file, good, size);
            if (v >= 0) file[cut] = (char)values[v];
            SafeTensors st;
            Error e = {0};
            if (st_open_memory(&st, file, size, "m", &e)) {
                taken++;
                for (int i = 0; i < st.ntensors; i++) {
                    const StTensor *t = &st.tensors[i];
                    EXPECT((const char *)t->data >= file && (const char *)t->data + t->bytes <= file + size,
                           "%s outside", t->name);
                }
            } else EXPECT(e.status == FAIL_MODEL && *e.text, "cut %zu value %d: no sentence", cut, v);
            st_close(&st);
            free(file);
        }
    EXPECT(taken >= 30 * COUNT_OF(values), "only %d of the mutants were good files",
           taken); /* changes of the data bytes are legal */
}

static const char *path_in(const char *name) {
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", test_dir(), name);
    return path;
}

TEST(safetensors_writes_what_the_reference_writes) {
    static const char header[] =
        "{\"__metadata__\":{\"b\":\"1\"},\"I64\":{\"dtype\":\"I64\",\"shape\":[2],\"data_offsets\":[0,16]},"
        "\"A\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[16,16]},\"F32\":{\"dtype\":\"F32\","
        "\"shape\":[2],\"data_offsets\":[16,24]},"
        "\"a\\n\\u0001\\\"\\\\\xc3\xa9/\x7f\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[24,28]},"
        "\"BF16\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[28,32]},\"U8\":{\"dtype\":\"U8\","
        "\"shape\":[2],\"data_offsets\":[32,34]}}";
    char data[16] = "0123456789abcde";
    const StTensor t[] = {
        {"a\n\x01\"\\\xc3\xa9/\x7f", ST_F32, 0, {0}, data, 4},
        {"U8", ST_U8, 1, {2}, data, 2},
        {"F32", ST_F32, 1, {2}, data, 8},
        {"BF16", ST_BF16, 1, {2}, data, 4},
        {"A", ST_F32, 1, {0}, NULL, 0},
        {"I64", ST_I64, 1, {2}, data, 16},
    };
    const char *const meta[][2] = {{"b", "1"}};
    const char *path = path_in("w.safetensors");
    Error e = {0};
    EXPECT(st_write(path, t, COUNT_OF(t), meta, 1, &e), "%s", e.text);
    char *file;
    size_t size, n = strlen(header), padded = (n + 7) / 8 * 8;
    EXPECT(file_read(path, &file, &size, 1 << 20, &e), "%s", e.text);
    if (!file) return;
    EXPECT(size == 8 + padded + 34, "%zu bytes", size);
    uint64_t length;
    memcpy(&length, file, 8);
    EXPECT(length == padded && !memcmp(file + 8, header, n), "header: %.*s", (int)length, file + 8);
    for (size_t i = n; i < padded; i++) EXPECT(file[8 + i] == ' ', "padding is %d", file[8 + i]);
    EXPECT(!memcmp(file + 8 + padded, "0123456789abcde\00001234567012301230" "1", 34), "data differ");

    SafeTensors st;
    EXPECT(st_open(&st, path, &e), "%s", e.text);
    EXPECT(st.ntensors == COUNT_OF(t), "%d tensors", st.ntensors);
    for (int i = 0; i < COUNT_OF(t); i++) {
        const StTensor *got = st_find(&st, t[i].name);
        EXPECT(got && got->bytes == t[i].bytes && got->dtype == t[i].dtype && got->ndim == t[i].ndim &&
               (!got->bytes || !memcmp(got->data, t[i].data, got->bytes)), "tensor %d does not read back", i);
        bool aligned = got && (!got->bytes || (uintptr_t)got->data % (st_dtype_bits(got->dtype) / 8) == 0);
        EXPECT(aligned, "tensor %d is not aligned", i);
    }
    EXPECT(!st_find(&st, "nobody") && !st_metadata(&st, "x") && !strcmp(st_metadata(&st, "b"), "1"),
           "look-ups");
    st_close(&st);
    const StTensor turned[] = {t[5], t[0], t[3],
                               t[2], t[4], t[1]}; /* the order of the arguments does not matter */
    const char *path2 = path_in("w2.safetensors");
    EXPECT(st_write(path2, turned, COUNT_OF(turned), meta, 1, &e), "%s", e.text);
    char *file2;
    size_t size2;
    EXPECT(file_read(path2, &file2, &size2, 1 << 20, &e) && size2 == size && !memcmp(file, file2, size),
           "bytes depend on the order");
    free(file);
    free(file2);
}

/* A disk that is full, stood in for by a limit on the file size. */
TEST(safetensors_full_disk) {
    static char data[1 << 16];
    const StTensor t = {"w", ST_U8, 1, {sizeof data}, data, sizeof data};
    const StTensor small = {"w", ST_U8, 1, {3}, "old", 3};
    char path[256], tmp[300];
    snprintf(path, sizeof path, "%s/full.safetensors", test_dir());
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    Error e = {0};
    EXPECT(st_write(path, &small, 1, NULL, 0, &e), "%s", e.text);
    struct rlimit was, low;
    getrlimit(RLIMIT_FSIZE, &was);
    low = (struct rlimit){4096, was.rlim_max};
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &low);
    bool ok = st_write(path, &t, 1, NULL, 0, &e);
    setrlimit(RLIMIT_FSIZE, &was);
    signal(SIGXFSZ, handler);
    EXPECT(!ok && e.status == FAIL_DISK, "written, or status %d", e.status);
    EXPECT(strstr(e.text, path) && strstr(e.text, "65608 bytes"), "%s", e.text);
    EXPECT(access(tmp, F_OK), "%s was left", tmp);
    SafeTensors st;
    EXPECT(st_open(&st, path, &e) && st.ntensors == 1 && !memcmp(st.tensors[0].data, "old", 3),
           "the old file is gone: %s", e.text);
    st_close(&st);
    EXPECT(!st_write("/no-such-folder/x", &small, 1, NULL, 0, &e) && e.status == FAIL_DISK, "%s", e.text);
    EXPECT(!st_open(&st, "/no-such-folder/x", &e) && e.status == FAIL_MODEL, "%s", e.text);
    EXPECT(!st_open(&st, test_dir(), &e) && strstr(e.text, "not a regular file"), "%s", e.text);
}

TEST(safetensors_f16) {
    for (unsigned h = 0; h < 65536; h++) {
        unsigned exp = h >> 10 & 31, frac = h & 1023;
        double want = exp == 31 ? (frac ? NAN : INFINITY)
                      : exp     ? ldexp(1024 + frac, (int)exp - 25)
                                : ldexp(frac, -24);
        if (h >> 15) want = -want;
        float got = f16_to_f32((uint16_t)h);
        EXPECT(isnan(want) ? isnan(got) : got == (float)want && !signbit(got) == !(h >> 15),
               "f16 %04x is %g, not %g", h, got, want);
    }
}

TEST(safetensors_to_f32) {
    Error e = {0};
    float out[4];
    char odd[40]; /* one byte off every alignment: files may be so */
#define TO_F32(type, T, ...)                                                                                 \
    do {                                                                                                     \
        const T v[] = {__VA_ARGS__};                                                                         \
        memcpy(odd + 1, v, sizeof v);                                                                        \
        const StTensor t = {"t", type, 1, {COUNT_OF(v)}, odd + 1, sizeof v};                                 \
        EXPECT(st_to_f32(out, &t, &e), "%s", e.text);                                                        \
    } while (0)
    TO_F32(ST_F32, float, 1.5f, -2);
    EXPECT(out[0] == 1.5f && out[1] == -2, "F32 %g %g", out[0], out[1]);
    TO_F32(ST_BF16, uint16_t, 0x3fc0, 0xff80, 0x0001);
    EXPECT(out[0] == 1.5f && out[1] == -INFINITY && out[2] == 0x1p-133f, "BF16 %g %g %g", out[0], out[1],
           out[2]);
    TO_F32(ST_F64, double, 0.1, 1e300);
    EXPECT(out[0] == 0.1f && out[1] == INFINITY, "F64 %g %g", out[0], out[1]);
    TO_F32(ST_I64, int64_t, -5, INT64_MAX);
    EXPECT(out[0] == -5 && out[1] == 0x1p63f, "I64 %g %g", out[0], out[1]);
    TO_F32(ST_U8, uint8_t, 255, 0);
    EXPECT(out[0] == 255, "U8 %g", out[0]);
    TO_F32(ST_BOOL, uint8_t, 1, 0);
    EXPECT(out[0] == 1 && out[1] == 0, "BOOL %g %g", out[0], out[1]);
    const StTensor t = {"q", ST_F8_E4M3, 1, {1}, odd, 1};
    EXPECT(!st_to_f32(out, &t, &e) && strstr(e.text, "F8_E4M3"), "%s", e.text);
}

/* ---- several files -------------------------------------------------------------------------------- */

static const char *scratch(const char *name) {
    static char path[4][700];
    static int next;
    char *p = path[next++ % 4];
    path_join(p, sizeof path[0], test_dir(), name, NULL);
    return p;
}

/* Three tensors in two files, found by name as if in one; and what an index can get wrong. */
TEST(safetensors_index) {
    static const float a[] = {1, 2}, b[] = {3}, c[] = {4, 5, 6};
    const StTensor one[] = {{.name = "b", .dtype = ST_F32, .ndim = 1, .shape = {1}, .data = b, .bytes = sizeof b},
                            {.name = "z.a", .dtype = ST_F32, .ndim = 2, .shape = {1, 2}, .data = a, .bytes = sizeof a}};
    const StTensor two[] = {{.name = "c", .dtype = ST_F32, .ndim = 1, .shape = {3}, .data = c, .bytes = sizeof c}};
    static const struct { const char *index, *want; } cases[] = {
        {"{\"metadata\": {}, \"weight_map\": {\"c\": \"two.st\", \"z.a\": \"one.st\", \"b\": \"one.st\"}}", NULL},
        {"{\"weight_map\": {\"c\": \"two.st\", \"b\": \"one.st\"}}", "the index has 2 tensors, its 2 files 3"},
        {"{\"weight_map\": {\"c\": \"one.st\", \"b\": \"one.st\"}}", "has no tensor c"},
        {"{\"weight_map\": {\"c\": \"../two.st\"}}", "not the name of a file in the same folder"},
        {"{\"weight_map\": {\"c\": \"three.st\"}}", "three.st: No such file"},
        {"{\"weight_map\": {\"c\": 3}}", "the file of tensor \"c\" is not a string"},
        {"{\"weights\": {}}", "no \"weight_map\""},
        {"{\"weight_map\": ", "index.json:1"},
    };
    Error e = {0};
    EXPECT(st_write(scratch("one.st"), one, 2, NULL, 0, &e) && st_write(scratch("two.st"), two, 1, NULL, 0, &e), "%s", e.text);
    const char *index = scratch("index.json");
    for (int k = 0; k < COUNT_OF(cases); k++) {
        SafeTensors st;
        EXPECT(file_write_atomic(index, cases[k].index, strlen(cases[k].index), &e), "%s", e.text);
        e = (Error){0};
        const bool ok = st_open_index(&st, index, &e);
        EXPECT(ok == !cases[k].want && (ok || (strstr(e.text, cases[k].want) && e.status == FAIL_MODEL)), "case %d: %s", k, e.text);
        if (!ok) continue;
        EXPECT(st.ntensors == 3 && st.nshards == 2, "%d tensors, %d files", st.ntensors, st.nshards);
        const StTensor *t = st_find(&st, "z.a");
        EXPECT(t && t->ndim == 2 && !memcmp(t->data, a, sizeof a) && !memcmp(st_find(&st, "c")->data, c, sizeof c), "other values");
        st_rename(&st, "z.a", "a");
        st_remove(&st, "c");
        EXPECT(st.ntensors == 2 && st_find(&st, "a") && st_find(&st, "b") && !st_find(&st, "z.a") && !st_find(&st, "c"), "%d tensors", st.ntensors);
        st_close(&st);
    }
}

/* Pages of the process that are in memory now; -1 where /proc is not there. */
static long resident_pages(void) {
    long all, resident = -1;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%ld %ld", &all, &resident) != 2) resident = -1;
    if (f) fclose(f);
    return resident;
}

TEST(safetensors_forget) {
    enum { N = 1 << 22 };
    float *x = xcalloc(N, sizeof *x);
    for (int i = 0; i < N; i++) x[i] = (float)i;
    const StTensor t[] = {{.name = "x", .dtype = ST_F32, .ndim = 1, .shape = {N}, .data = x, .bytes = N * sizeof *x}};
    Error e = {0};
    SafeTensors st;
    const char *path = scratch("large.st");
    EXPECT(st_write(path, t, 1, NULL, 0, &e) && st_open(&st, path, &e), "%s", e.text);
    const StTensor *got = st_find(&st, "x");
    EXPECT(!memcmp(got->data, x, N * sizeof *x), "other values");
    const long before = resident_pages();
    st_forget(&st, got);
    const long freed = (before - resident_pages()) * sysconf(_SC_PAGESIZE);
    EXPECT(before < 0 || freed > (long)(N * sizeof *x / 2), "%ld bytes freed of %zu", freed, N * sizeof *x);
    EXPECT(!memcmp(got->data, x, N * sizeof *x), "other values after forgetting");
    st_close(&st);
    char *data; /* the caller's memory is not touched */
    size_t size;
    EXPECT(file_read(path, &data, &size, (size_t)1 << 30, &e) && st_open_memory(&st, data, size, path, &e), "%s", e.text);
    got = st_find(&st, "x");
    st_forget(&st, got);
    EXPECT(!memcmp(got->data, x, N * sizeof *x), "other values in the caller's memory");
    st_close(&st);
    free(data);
    free(x);
}
