/* fuzz_config.c -- any bytes as a YAML config or an argument; what is taken prints and reads back to the
 * same. */
#include "engine/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Config c, back;
    Error e = {0};
    config_defaults(&c);
    bool ok;
    if (size && data[0] == '=') {
        char *arg = xcalloc(size, 1);
        memcpy(arg, data + 1, size - 1);
        ok = config_set(&c, arg, &e);
        free(arg);
    } else {
        ok = config_parse(&c, "fuzz", (const char *)data, size, &e);
    }
    if (!ok) {
        CHECK(e.status == FAIL_CONFIG && *e.text, "no sentence");
        return 0;
    }
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    config_print(f, &c);
    fclose(f);
    config_defaults(&back);
    ok = config_parse(&back, "printed", text, n, &e);
    CHECK(ok && !memcmp(&c, &back, sizeof c), "another config came back: %s\n%s", e.text, text);
    free(text);
    return 0;
}
