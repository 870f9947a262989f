/* count.h -- counts calls of the allocators (malloc, calloc, realloc, aligned_alloc, posix_memalign, mmap) of the whole test program.
 *
 * The counters stand in front of the C library, so the calls of shared libraries and of all threads are seen; calls inside
 * the C library itself are, too, for malloc and its kin. Sanitizers bring their own allocator: nothing is counted there.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

bool count_possible(void);
void count_begin(void);
void count_end(void);
/* Calls between the two: all (library NULL), of a library ("libjpeg"), or with `other` of all others. whose (may be NULL):
 * the first such caller, as file, function and offset. */
int64_t count_calls(const char *library, bool other, char *whose, size_t size);
