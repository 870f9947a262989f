/* fuzz_safetensors.c -- any bytes as a model file. What opens must lie inside the file, be found by name and
 * convert. */
#include "data/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    /* Most inputs would fail at the length. Odd first byte: the rest is the header, its length is made right.
     */
    uint8_t *file = xcalloc(size + 16, 1);
    size_t n = size;
    if (size && data[0] & 1) {
        size_t split =
            size - 1 < 2 ? size - 1 : size - 1 - data[1] % 32 % (size - 1); /* some bytes of data behind */
        for (int i = 0; i < 8; i++) file[i] = (uint8_t)(split >> 8 * i);
        memcpy(file + 8, data + 1, size - 1);
        n = size + 7;
    } else if (size) {
        memcpy(file, data, size);
    }
    uint8_t *exact = xcalloc(n, 1);
    memcpy(exact, file, n);
    free(file);
    SafeTensors st;
    Error e = {0};
    if (st_open_memory(&st, exact, n, "fuzz", &e)) {
        for (int i = 0; i < st.ntensors; i++) {
            const StTensor *t = &st.tensors[i];
            CHECK((const uint8_t *)t->data >= exact &&
                      t->bytes <= n - (size_t)((const uint8_t *)t->data - exact),
                  "%s is outside", t->name);
            CHECK(st_find(&st, t->name) == t, "%s is not found", t->name);
            CHECK((uint64_t)st_numel(t) * st_dtype_bits(t->dtype) == 8 * (uint64_t)t->bytes, "%s: %zu bytes",
                  t->name, t->bytes);
            float *f = xcalloc((size_t)st_numel(t), sizeof *f);
            st_to_f32(f, t, &e);
            free(f);
        }
        for (int i = 0; i < st.nmetadata; i++) CHECK(st_metadata(&st, st.metadata[i][0]), "metadata %d", i);
    } else {
        CHECK(e.status == FAIL_MODEL && *e.text, "no sentence");
    }
    st_close(&st);
    free(exact);
    return 0;
}
