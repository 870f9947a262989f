/* philox.h -- counter-based random numbers: a pure function of (seed, counter), the same in C and CUDA.
 *
 * Philox4x32 with 10 rounds, Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. One
 * counter gives four 32-bit words. Dropout's value number g = offset + index takes word g & 3 of counter
 * g >> 2, so what it draws depends on no block size, thread or device.
 */
#pragma once
#include <stdint.h>

#ifdef __CUDACC__
#define PHILOX_FN static __host__ __device__ __forceinline__
#else
#define PHILOX_FN static inline
#endif

/* out = Philox4x32-10 of counter (low word, high word, 0, 0) under key (low word, high word). */
PHILOX_FN void philox(uint32_t out[4], uint64_t key, uint64_t counter) {
    uint32_t c0 = (uint32_t)counter, c1 = (uint32_t)(counter >> 32), c2 = 0, c3 = 0;
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)c0 * 0xD2511F53u, b = (uint64_t)c2 * 0xCD9E8D57u;
        uint32_t n0 = (uint32_t)(b >> 32) ^ c1 ^ k0, n2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)b;
        c3 = (uint32_t)a;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u; /* the golden ratio and sqrt(3) - 1 */
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* A value is dropped when its word is below this: probability p to within 2^-32, p in [0, 1). */
PHILOX_FN uint32_t dropout_threshold(float p) { return (uint32_t)((double)p * 4294967296.0); }
