/* test.h -- the test driver: register, run, count. Next: main.c.
 *
 *   TEST(gelu_golden) { EXPECT(a == b, "a is %d", a); }
 *
 * A test file holds TESTs; linking it registers them. `build/cpu/test norm` runs those whose file or
 * name contains "norm", `'norm&[emu]'` those with both words. EXPECT_NEAR also keeps the worst error as a share of its bound, printed per
 * test, so that slow decay is visible.
 */
#pragma once
#include "engine/base.h"

typedef void TestFn(void);
void test_register(const char *file, const char *name, TestFn *fn);
void test_fail(const char *file, int line, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void test_near(const char *file, int line, double got, double want, double bound, const char *fmt, ...)
    __attribute__((format(printf, 6, 7)));
/* Marks the running test as skipped, with the reason; the test then returns. */
void test_skip(const char *why);
/* A folder of this run for scratch files (made when first asked for, removed at the end). */
const char *test_dir(void);

#define TEST(name)                                                                                           \
    static void test_##name(void);                                                                           \
    __attribute__((constructor)) static void register_##name(void) {                                         \
        test_register(__FILE__, #name, test_##name);                                                         \
    }                                                                                                        \
    static void test_##name(void)

#define EXPECT(cond, ...) ((cond) ? (void)0 : test_fail(__FILE__, __LINE__, #cond ": " __VA_ARGS__))
/* |got - want| <= bound; NaN anywhere fails. */
#define EXPECT_NEAR(got, want, bound, ...) test_near(__FILE__, __LINE__, (got), (want), (bound), __VA_ARGS__)
