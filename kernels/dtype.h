/* dtype.h -- the two number formats of tensors.
 *
 * Activations and their gradients are F32 or BF16 (run.precision), on every device; master weights, moments, gradients of
 * parameters and statistics are F32 in either case.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef enum DType { F32, BF16 } DType;

static inline size_t dtype_size(DType t) { return t == F32 ? 4 : 2; }

/* bf16 is the upper half of an f32. Rounded to nearest, ties to even; NaN stays NaN, infinities stay. */
static inline uint16_t bf16_round(float x) {
    union { float f; uint32_t u; } v;
    v.f = x;
    const uint32_t rounded = (v.u + 0x7FFF + (v.u >> 16 & 1)) >> 16;
    return (uint16_t)((v.u & 0x7FFFFFFF) > 0x7F800000 ? v.u >> 16 | 0x40 : rounded); /* a NaN's upper bits may be zero */
}
static inline float bf16_value(uint16_t x) {
    union { float f; uint32_t u; } v;
    v.u = (uint32_t)x << 16;
    return v.f;
}
