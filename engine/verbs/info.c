/* info.c -- the verb `info`: what a model folder, a weights file, a checkpoint or a configuration holds; which machine this is.
 *
 * A model is opened as every other verb opens it, so what `info` describes will load.
 */
#include "engine/ckpt.h"
#include "engine/verbs/verbs.h"
#include "kernels/cpu/onednn.h"
#include "modules/answer.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <omp.h>
#include <sched.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <unistd.h>

/* Text from a file, on a terminal: no control characters. */
static void put_clean(const char *s, int width) {
    int n = 0;
    for (; *s; s++, n++) putchar((unsigned char)*s < 0x20 || *s == 0x7f ? '?' : *s);
    for (; n < width; n++) putchar(' ');
}

static void line(const char *what, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void line(const char *what, const char *fmt, ...) {
    char text[4096];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    printf("%-14s ", what);
    put_clean(text, 0);
    putchar('\n');
}

/* "117.6 M" */
static const char *count_text(char out[32], double n) {
    const char *unit = n >= 1e9 ? " G" : n >= 1e6 ? " M" : n >= 1e4 ? " k" : "";
    n /= n >= 1e9 ? 1e9 : n >= 1e6 ? 1e6 : n >= 1e4 ? 1e3 : 1;
    snprintf(out, 32, *unit ? "%.1f%s" : "%.0f%s", n, unit);
    return out;
}

static const char *bytes_text(char out[32], double n) {
    const char *unit = n >= 1 << 30 ? "GiB" : n >= 1 << 20 ? "MiB" : n >= 1 << 10 ? "KiB" : "bytes";
    n /= n >= 1 << 30 ? 1 << 30 : n >= 1 << 20 ? 1 << 20 : n >= 1 << 10 ? 1 << 10 : 1;
    snprintf(out, 32, *unit == 'b' ? "%.0f %s" : "%.1f %s", n, unit);
    return out;
}

static double file_bytes(const char *path) {
    struct stat st;
    return stat(path, &st) ? 0 : (double)st.st_size;
}

/* ---- the machine ---------------------------------------------------------------------------------- */

/* The value of the first "key : value" line of a file under /proc. */
static bool proc_value(const char *path, const char *key, char *out, size_t size) {
    FILE *f = fopen(path, "re");
    char text[1024];
    bool found = false;
    const size_t n = strlen(key);
    while (f && !found && fgets(text, sizeof text, f)) {
        char *colon = strchr(text, ':');
        if (strncmp(text, key, n) || !colon || !strchr("\t :", text[n])) continue;
        snprintf(out, size, "%s", colon + 1 + strspn(colon + 1, " \t"));
        out[strcspn(out, "\n")] = 0;
        found = true;
    }
    if (f) fclose(f);
    return found;
}

static void print_instruction_sets(void) {
    char text[512] = "";
#define HAS(name)                                                                                            \
    if (__builtin_cpu_supports(name)) snprintf(text + strlen(text), sizeof text - strlen(text), " %s", name);
#if defined(__x86_64__)
    __builtin_cpu_init();
    HAS("sse4.2") HAS("avx") HAS("f16c") HAS("fma") HAS("avx2") HAS("avx512f") HAS("avx512bw") HAS("avx512vl") HAS("avx512vnni") HAS("avx512bf16")
#endif
    if (*text) line("instructions", "%s", text + 1);
}

static void print_build(void) {
    char text[256] = "";
    const struct { bool on; const char *name; } flags[] = {
#ifdef __OPTIMIZE__
        {true, "optimized"},
#else
        {true, "not optimized"},
#endif
#ifdef __AVX512F__
        {true, "AVX-512"},
#elif defined __AVX2__
        {true, "AVX2"},
#endif
#ifdef __FMA__
        {true, "FMA"},
#endif
#ifdef _OPENMP
        {true, "OpenMP"},
#endif
#ifdef __FAST_MATH__
        {true, "FAST MATH (results are not IEEE)"},
#endif
#ifdef __SANITIZE_ADDRESS__
        {true, "address sanitizer"},
#endif
    };
    for (int i = 0; i < COUNT_OF(flags); i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%s", i ? ", " : "", flags[i].name);
#ifdef __clang__
    line("build", "clang %s, %s", __clang_version__, text);
#else
    line("build", "gcc %s, %s", __VERSION__, text);
#endif
}

static void print_machine(const Config *cfg) {
    char model[256] = "unknown", value[64], total[32], available[32];
    proc_value("/proc/cpuinfo", "model name", model, sizeof model);
    cpu_set_t set;
    const int cores = sched_getaffinity(0, sizeof set, &set) ? (int)sysconf(_SC_NPROCESSORS_ONLN) : CPU_COUNT(&set);
    Device *dev = device_cpu(cfg->run.threads);
    line("device", "%s", dev->name);
    line("processor", "%s", model);
    line("cores", "%d usable of %ld", cores, sysconf(_SC_NPROCESSORS_CONF));
    print_instruction_sets();
    bytes_text(total, (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE));
    if (proc_value("/proc/meminfo", "MemAvailable", value, sizeof value)) line("memory", "%s, %s free", total, bytes_text(available, 1024 * strtod(value, NULL)));
    else line("memory", "%s", total);
    const char *policy = getenv("OMP_WAIT_POLICY");
    line("threads", "%d (OpenMP allows %d%s%s)", dev->nthreads, omp_get_max_threads(), policy ? ", OMP_WAIT_POLICY=" : "", policy ? policy : "");
    const dnnl_version_t *v = dnnl_version();
    line("oneDNN", "%d.%d.%d (%.10s)", v->major, v->minor, v->patch, v->hash);
    if (onednn_bf16()) line("bf16 products", "oneDNN (%s)", onednn_bf16());
    else line("bf16 products", "widened to f32: this CPU has no bf16 instructions");
    Error e = {0};
    const int cards = device_cuda_count(&e);
    for (int i = 0; i < cards; i++) {
        Device *card = device_cuda(i, &e);
        line("cuda", "%d: %s", i, card ? card->description : e.text);
    }
    if (!cards) line("cuda", "%s", e.text);
#ifdef WITH_CUDA
    char cudnn[512];
    e = (Error){0};
    line("cuDNN", "%s", device_find_cudnn(cudnn, sizeof cudnn, &e) ? cudnn : e.text);
#endif
    print_build();
}

/* ---- weights -------------------------------------------------------------------------------------- */

static void print_shape(const int64_t *shape, int ndim) {
    putchar('(');
    for (int i = 0; i < ndim; i++) printf("%s%" PRId64, i ? ", " : "", shape[i]);
    putchar(')');
}

static bool print_weights(const char *path, bool tensors, Error *e) {
    SafeTensors st;
    if (!st_open(&st, path, e)) return false;
    char size[32], many[32], types[256] = "";
    double values = 0;
    int64_t of[ST_NDTYPES] = {0};
    for (int i = 0; i < st.ntensors; i++) {
        values += (double)st_numel(&st.tensors[i]);
        of[st.tensors[i].dtype]++;
    }
    for (int t = 0; t < ST_NDTYPES; t++)
        if (of[t]) snprintf(types + strlen(types), sizeof types - strlen(types), ", %" PRId64 " %s", of[t], st_dtype_name((StDType)t));
    line("weights", "%s, %s", path, bytes_text(size, file_bytes(path)));
    line("tensors", "%d of %s values%s%s", st.ntensors, count_text(many, values), *types ? ": " : "", *types ? types + 2 : "");
    for (int i = 0; i < st.nmetadata; i++) line(i ? "" : "metadata", "%s = %.200s", st.metadata[i][0], st.metadata[i][1]);
    for (int i = 0; tensors && i < st.ntensors; i++) {
        const StTensor *t = &st.tensors[i];
        printf("  %-6s ", st_dtype_name(t->dtype));
        put_clean(t->name, 71);
        print_shape(t->shape, t->ndim);
        putchar('\n');
    }
    st_close(&st);
    return true;
}

/* ---- models --------------------------------------------------------------------------------------- */

/* The sizes of one transformer, from the part of config.json called `part` ("": the whole). */
static void print_tower(const Module *m, const char *what, const char *part) {
    static const struct { const char *key, *name; } rows[] = {
        {"hidden_size", "width"}, {"num_hidden_layers", "layers"}, {"num_attention_heads", "heads"}, {"intermediate_size", "MLP"},
        {"image_size", "pixels"}, {"patch_size", "patch"}, {"vocab_size", "words"}, {"max_position_embeddings", "tokens"},
    };
    json_t *o = *part ? json_object_get(m->config, part) : m->config;
    char text[512] = "";
    for (int i = 0; i < COUNT_OF(rows); i++) {
        json_t *v = json_object_get(o, rows[i].key);
        if (json_is_integer(v))
            snprintf(text + strlen(text), sizeof text - strlen(text), "%s%s %" JSON_INTEGER_FORMAT, *text ? ", " : "", rows[i].name, json_integer_value(v));
    }
    if (*text) line(what, "%s", text);
}

static bool print_model(const char *folder, bool tensors, Error *e) {
    char path[PATH_MAX], many[32], size[32];
    if (!path_join(path, sizeof path, folder, "model.safetensors", e)) return false;
    char bin[PATH_MAX];
    const bool weights = !access(path, F_OK) || (path_join(bin, sizeof bin, folder, "pytorch_model.bin", NULL) && !access(bin, F_OK));
    Module *m = module_open(folder, device_cpu(1), F32, MODULE_FROZEN, weights, 0, e);
    if (!m) return false;
    line("model", "%s", folder);
    line("architecture", "%s, answers %s steps", m->type->name, m->type->step);
    print_tower(m, "sizes", "");
    print_tower(m, "text", "text_config");
    print_tower(m, "vision", "vision_config");
    if (m->nlabels) line("answers", "%d (%s, %s, ...), %s", m->nlabels, m->label[0], m->label[m->nlabels - 1], module_multi_label(m) ? "independent" : "one of them");
    if (m->tokenizer) line("tokenizer", "%d words", token_size(m->tokenizer));
    const double n = (double)params_count(&m->params);
    line("parameters", "%s in %d tensors, %s as f32", count_text(many, n), m->params.n, bytes_text(size, 4 * n));
    bool ok = true;
    if (weights) {
        ok = print_weights(path, tensors, e);
    } else {
        line("weights", "none: an architecture to train from scratch");
        for (int i = 0; tensors && i < m->params.n; i++) {
            const Param *p = m->params.param[i];
            printf("  %-6s %-70s ", "F32", p->name);
            print_shape(p->t.shape, p->scalar ? 0 : p->t.ndim);
            putchar('\n');
        }
    }
    module_close(m);
    return ok;
}

/* ---- checkpoints ---------------------------------------------------------------------------------- */

static bool has(const char *folder, const char *name) {
    char path[PATH_MAX];
    return path_join(path, sizeof path, folder, name, NULL) && !access(path, F_OK);
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* The model folders in a checkpoint, in order of their names. *names and each of them are malloc'ed. */
static int list_models(const char *folder, char ***names) {
    int64_t n = 0, cap = 0;
    *names = NULL;
    DIR *d = opendir(folder);
    for (struct dirent *f; d && (f = readdir(d));) {
        char path[PATH_MAX];
        if (*f->d_name == '.' || !path_join(path, sizeof path, folder, f->d_name, NULL) || !has(path, "config.json")) continue;
        GROW(*names, cap, n + 1);
        (*names)[n++] = xstrdup(f->d_name);
    }
    if (d) closedir(d);
    if (n) qsort(*names, (size_t)n, sizeof **names, by_name);
    return (int)n;
}

static bool print_moments(const char *folder, const char *name, Error *e) {
    char path[PATH_MAX], file[512], size[32];
    snprintf(file, sizeof file, "%.480s.moments.safetensors", name);
    if (!has(folder, file)) return true;
    if (!path_join(path, sizeof path, folder, file, e)) return false;
    SafeTensors st;
    if (!st_open(&st, path, e)) return false;
    const char *step = st_metadata(&st, "step");
    line("moments", "%s, %s%s%s", file, bytes_text(size, file_bytes(path)), step ? ", optimizer step " : "", step ? step : "");
    st_close(&st);
    return true;
}

static bool print_checkpoint(const char *folder, bool tensors, Error *e) {
    char path[PATH_MAX], *text, **names;
    size_t size;
    json_error_t je;
    if (!path_join(path, sizeof path, folder, "state.json", e) || !file_read(path, &text, &size, 16 << 20, e)) return false;
    json_t *state = json_loadb(text, size, JSON_REJECT_DUPLICATES, &je);
    free(text);
    if (!state) return fail_as(e, FAIL_MODEL, "%s:%d: %s", path, je.line, je.text);
    json_t *step = json_object_get(state, "step");
    const char *config = json_string_value(json_object_get(state, "config"));
    bool ok = json_is_integer(step) ? true : fail_as(e, FAIL_MODEL, "%s: \"step\" is not an integer", path);
    if (ok) {
        line("checkpoint", "%s", folder);
        line("step", "%" JSON_INTEGER_FORMAT, json_integer_value(step));
    }
    const int n = list_models(folder, &names);
    for (int i = 0; i < n; i++) {
        putchar('\n');
        ok = ok && path_join(path, sizeof path, folder, names[i], e) && print_model(path, tensors, e) && print_moments(folder, names[i], e);
        free(names[i]);
    }
    free(names);
    if (ok && config) printf("\nconfiguration of the run:\n\n");
    for (const char *c = config; ok && c && *c; c++) putchar((unsigned char)*c < 0x20 && *c != '\n' ? '?' : *c);
    json_decref(state);
    return ok;
}

/* ---- the verb ------------------------------------------------------------------------------------- */

static bool ends_with(const char *s, const char *end) {
    const size_t n = strlen(s), k = strlen(end);
    return n >= k && !strcmp(s + n - k, end);
}

static bool print_path(const char *path, bool tensors, Error *e) {
    struct stat st;
    int64_t step;
    char newest[PATH_MAX];
    if (stat(path, &st)) return fail_as(e, FAIL_DATA, "%s: %s", path, strerror(errno));
    if (!S_ISDIR(st.st_mode)) {
        if (ends_with(path, ".safetensors")) return print_weights(path, true, e);
        return fail_as(e, FAIL_USAGE, "%s: neither a folder, nor .safetensors, nor .yaml", path);
    }
    if (has(path, "config.json")) return print_model(path, tensors, e);
    if (has(path, "state.json")) return print_checkpoint(path, tensors, e);
    if (ckpt_latest(path, newest, sizeof newest, &step)) return print_checkpoint(newest, tensors, e);
    return fail_as(e, FAIL_MODEL, "%s: no model (config.json), checkpoint (state.json) or run (checkpoint-*) is in it", path);
}

static Status run(Args *a, Error *e) {
    bool tensors = false, ok = true;
    int npaths = 0;
    for (int i = 0; i < a->nwords; i++) {
        if (!strcmp(a->word[i], "--tensors")) tensors = true;
        else if (*a->word[i] == '-') {
            const char *const names[] = {"--tensors", "--help"}, *near = nearest(a->word[i], names, COUNT_OF(names));
            fail_as(e, FAIL_USAGE, "\"%s\" is no option of info%s%s%s", a->word[i], near ? " (did you mean " : "", near ? near : "", near ? "?)" : "");
            return FAIL_USAGE;
        }
    }
    for (int i = 0; ok && i < a->nwords; i++) {
        if (*a->word[i] == '-') continue;
        if (npaths++) putchar('\n');
        ok = print_path(a->word[i], tensors, e);
    }
    if (ok && a->configured) {
        if (npaths) putchar('\n');
        config_print(stdout, &a->cfg);
    } else if (ok && !npaths) {
        print_machine(&a->cfg);
    }
    if (ok && fflush(stdout)) ok = fail_as(e, FAIL_DISK, "cannot write to the standard output: %s", strerror(errno));
    return verb_status(ok, e);
}

const Verb verb_info = {
    .name = "info",
    .usage = "[MODEL_FOLDER | CHECKPOINT_FOLDER | FILE.safetensors ...] [--tensors] [config.yaml] [section.key=value ...]",
    .summary = "describes a model, a checkpoint, a weights file, a configuration, or this machine",
    .help = "A model folder: architecture, sizes, parameters (--tensors: each tensor). A checkpoint, or the newest one of a run's\n"
            "folder: its step, its models, the run's configuration. A weights file: its tensors. A configuration: every option as\n"
            "it was resolved. Nothing: processor, cores, memory, threads, libraries, how this binary was built.\n",
    .sections = {"run"},
    .run = run,
};
