/* dtype.h -- the two number formats of tensors.
 *
 * F32 everywhere today; BF16 activations come with the CUDA device. Master weights, moments and
 * statistics stay F32 in either case.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef enum DType { F32, BF16 } DType;

static inline size_t dtype_size(DType t) { return t == F32 ? 4 : 2; }
