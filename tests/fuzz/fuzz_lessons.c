/* fuzz_lessons.c -- a checkpoint's store of lessons (engine/replay.c) of any numbers: refused with a sentence, or what is kept is
 * whole and can be written and read again.
 *
 * The safetensors around the numbers is right: fuzz_safetensors breaks that. Of the input, byte 0 says how many batches, bytes 1 and
 * 2 how the rest is shared out; whole numbers take two bytes of it, fractions one, so that most are in a range that matters.
 */
#include "data/safetensors.h"
#include "engine/replay.h"

#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { LABELS = 3, REUSE = 2, LAG = 2, PROGRAMS = 512, PLACES = 64, INPUT_MAX = 16384 };

static int64_t batches[32], ints[INPUT_MAX];
static float floats[INPUT_MAX];

static int64_t take_ints(int64_t *out, int64_t most, const uint8_t *p, size_t n) {
    const int64_t k = MIN((int64_t)(n / 2), most);
    for (int64_t i = 0; i < k; i++) out[i] = (int16_t)(p[2 * i] | p[2 * i + 1] << 8);
    return k;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static char path[64];
    static int fd = -1;
    if (fd < 0) {
        fd = memfd_create("lessons", 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    if (size < 3 || size > INPUT_MAX) return 0;
    const uint8_t *at = data + 3;
    size_t left = size - 3;
    batches[0] = REUSE * LAG + 1;
    batches[1] = LABELS;
    const int64_t nbatches = take_ints(batches + 2, 2 * (data[0] % 8), at, left) / 2;
    at += 4 * nbatches;
    left -= 4 * (size_t)nbatches;
    const size_t share = left * data[1] / 256, rest = (left - share) * data[2] / 256;
    const int64_t nints = take_ints(ints, INPUT_MAX, at, share), nfloats = (int64_t)rest;
    for (int64_t i = 0; i < nfloats; i++) floats[i] = (float)at[share + (size_t)i] / 200;
    const uint8_t *text = at + share + rest;
    const size_t ntext = left - share - rest, b = 16 + 16 * (size_t)nbatches, n = 8 * (size_t)nints, f = 4 * (size_t)nfloats;
    char header[512];
    int nheader = snprintf(header, sizeof header,
                           "{\"batches\":{\"dtype\":\"I64\",\"shape\":[%" PRId64 ",2],\"data_offsets\":[0,%zu]},\"ints\":{\"dtype\":\"I64\",\"shape\":[%" PRId64
                           "],\"data_offsets\":[%zu,%zu]},\"floats\":{\"dtype\":\"F32\",\"shape\":[%" PRId64 "],\"data_offsets\":[%zu,%zu]},\"text\":{\"dtype\":\"U8\",\"shape\":[%zu],"
                           "\"data_offsets\":[%zu,%zu]}}",
                           nbatches + 1, b, nints, b, b + n, nfloats, b + n, b + n + f, ntext, b + n + f, b + n + f + ntext);
    while (nheader % 8) header[nheader++] = ' ';
    const uint64_t length = (uint64_t)nheader;
    const struct { const void *p; size_t n; } parts[] = {{&length, 8}, {header, length}, {batches, b}, {ints, n}, {floats, f}, {text, ntext}};
    CHECK(!ftruncate(fd, 0) && !lseek(fd, 0, SEEK_SET), "memfd");
    for (int i = 0; i < COUNT_OF(parts); i++) CHECK(write(fd, parts[i].p, parts[i].n) == (ssize_t)parts[i].n, "memfd");

    Replay r;
    Error e = {0};
    replay_open(&r, REUSE, LAG, LABELS, PROGRAMS, 0, PLACES);
    const bool ok = replay_load(&r, path, &e);
    CHECK(ok || (e.status == FAIL_MODEL && strstr(e.text, path)), "refused with \"%s\"", e.text);
    for (int64_t k = 0; k < r.size; k++)
        for (int64_t i = 0; i < r.kept[k].n; i++) {
            const KeptLesson *l = &r.kept[k].lesson[i];
            CHECK(l->place >= 0 && l->place < PLACES && strlen(l->query) <= ntext, "lesson %" PRId64, i);
            CHECK(rect_w(l->lesson.rect) > 0 && rect_h(l->lesson.rect) > 0, "an empty rectangle");
            CHECK(l->lesson.is_loc ? l->lesson.ncandidates >= l->lesson.nleaders && (l->lesson.yes || !l->lesson.nleaders) : l->lesson.p && !l->lesson.ncandidates,
                  "half a lesson");
            for (int c = 0; c < l->lesson.ncandidates; c++)
                CHECK(l->lesson.candidate[c].leader >= 0 && l->lesson.candidate[c].leader < MAX(l->lesson.nleaders, 1), "leader %d of %d", l->lesson.candidate[c].leader,
                      l->lesson.nleaders);
        }
    replay_close(&r);
    return 0;
}
