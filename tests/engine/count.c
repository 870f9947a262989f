/* count.c -- counts calls of the allocators. See count.h. */
#include "tests/engine/count.h"

#include "engine/base.h"

#if defined(__SANITIZE_ADDRESS__) || !defined(__GLIBC__)

bool count_possible(void) { return false; }
void count_begin(void) {}
void count_end(void) {}
int64_t count_calls(const char *library, bool other, char *whose, size_t size) {
    return (void)library, (void)other, (void)whose, (void)size, 0;
}

#else

#include <dlfcn.h>
#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { CALLS = 1 << 20 };
static void *caller[CALLS];
static _Atomic int64_t ncalls;
static _Atomic bool counting;

static void count(void *from) {
    if (!counting) return;
    const int64_t i = ncalls++;
    if (i < CALLS) caller[i] = from;
}

extern void *__libc_malloc(size_t n), *__libc_calloc(size_t n, size_t size),
    *__libc_realloc(void *p, size_t n), *__libc_memalign(size_t a, size_t n);
#define COUNT() count(__builtin_return_address(0))
void *malloc(size_t n) { return COUNT(), __libc_malloc(n); }
void *calloc(size_t n, size_t size) { return COUNT(), __libc_calloc(n, size); }
void *realloc(void *p, size_t n) { return COUNT(), __libc_realloc(p, n); }
void *aligned_alloc(size_t a, size_t n) { return COUNT(), __libc_memalign(a, n); }
int posix_memalign(void **p, size_t a, size_t n) {
    return COUNT(), (*p = __libc_memalign(a, n)) ? 0 : ENOMEM;
}
void *mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset) {
    return COUNT(), (void *)syscall(SYS_mmap, at, n, prot, flags, fd, offset);
}

void count_begin(void) {
    ncalls = 0;
    counting = true;
}

void count_end(void) { counting = false; }

bool count_possible(void) {
    count_begin();
    void *volatile p = malloc(1);
    free(p);
    count_end();
    return ncalls > 0;
}

int64_t count_calls(const char *library, bool other, char *whose, size_t size) {
    CHECK(ncalls <= CALLS, "%" PRId64 " calls, room for %d", (int64_t)ncalls, CALLS);
    int64_t n = 0;
    for (int64_t i = 0; i < ncalls; i++) {
        Dl_info d = {0};
        const char *file = dladdr(caller[i], &d) && d.dli_fname ? d.dli_fname : "?";
        if (library && (strstr(file, library) != NULL) == other) continue;
        if (!n++ && whose)
            snprintf(whose, size, "%s %s +0x%tx", file, d.dli_sname ? d.dli_sname : "",
                     (char *)caller[i] - (char *)d.dli_fbase);
    }
    return n;
}

#endif
