/* activation.h -- gelu of one value and its slope, exact and in its tanh form: one formula for C and CUDA.
 *
 * Phi(x) and the slope Phi(x) + x phi(x) are 1/2 + x P(x^2) / Q(x^2), P and Q fitted by us (Lawson's weights; error
 * 7e-9 on |x| <= 5.5 and 3e-9 on |x| <= 5.8): within 2e-7 when evaluated in f32, as close as x (1 + erf) / 2 in f32 comes,
 * at half the price of an exponential and a tail. Further out they are 0 or 1 to 1e-7.
 */
#pragma once
#include <math.h>

#ifdef __CUDACC__
#define ACTIVATION_FN static __device__ __forceinline__
/* Two units in the last place instead of one half, a third of the price; right for 1 <= b < 2^126. */
#define QUOTIENT(a, b) __fdividef(a, b)
#else
#define ACTIVATION_FN static inline
#define QUOTIENT(a, b) ((a) / (b))
#endif

ACTIVATION_FN float gelu_f(float x) {
    float c = x > 5.5f ? 5.5f : x < -5.5f ? -5.5f : x, z = c * c;
    float p = 2.27493788e-08f, q = 1.19750437e-06f;
    p = fmaf(p, z, 6.35211857e-06f);
    q = fmaf(q, z, 7.36475813e-05f);
    p = fmaf(p, z, 0.000168825939f);
    q = fmaf(q, z, 0.00188444634f);
    p = fmaf(p, z, 0.00467726224f);
    q = fmaf(q, z, 0.0286458871f);
    p = fmaf(p, z, 0.0338526741f);
    q = fmaf(q, z, 0.251521988f);
    p = fmaf(p, z, 0.398942235f);
    q = fmaf(q, z, 1.0f);
    float y = x * (0.5f + QUOTIENT(c * p, q));
    return x < -5.5f ? 0.0f : y; /* -1e30 times a rounding error is not small */
}

ACTIVATION_FN float gelu_slope(float x) {
    float c = x > 5.8f ? 5.8f : x < -5.8f ? -5.8f : x, z = c * c;
    float p = -2.80801705e-11f, q = 3.02334166e-07f;
    p = fmaf(p, z, 1.15329786e-08f);
    p = fmaf(p, z, 8.91674709e-07f);
    q = fmaf(q, z, 9.68195336e-06f);
    p = fmaf(p, z, 3.20591122e-05f);
    q = fmaf(q, z, 0.000236923717f);
    p = fmaf(p, z, 0.000197397544f);
    q = fmaf(q, z, 0.00390194181f);
    p = fmaf(p, z, 0.0137636629f);
    q = fmaf(q, z, 0.043795238f);
    p = fmaf(p, z, -0.0228997194f);
    q = fmaf(q, z, 0.304632493f);
    p = fmaf(p, z, 0.797884537f);
    q = fmaf(q, z, 1.0f);
    return 0.5f + QUOTIENT(c * p, q);
}

/* The tanh form, x/2 (1 + tanh u) = x / (1 + e^-2u): 2u = x (a + b x^2), a = 2 sqrt(2/pi), b = 0.044715 a.
 * Beyond 10, where the sigmoid is 0 or 1 in f32, x no longer grows in the polynomials: infinities stay out of
 * products with 0. The exponential is the device's own: the slope takes e = e^-|2u|. */
ACTIVATION_FN float gelu_tanh_cut(float x) { return x > 10.0f ? 10.0f : x < -10.0f ? -10.0f : x; }
ACTIVATION_FN float gelu_tanh_2u(float x) {
    float c = gelu_tanh_cut(x);
    return x * fmaf(0.0713548163f, c * c, 1.59576912f);
}
/* s + x s (1 - s) (2u)', s the sigmoid: s (1 - s) = e / (1 + e)^2 loses nothing where s is near 1. */
ACTIVATION_FN float gelu_tanh_slope_of(float x, float e) {
    float c = gelu_tanh_cut(x), r = QUOTIENT(1.0f, 1.0f + e);
    return fmaf(c * fmaf(0.214064449f, c * c, 1.59576912f), e * r * r, (x < 0.0f ? e : 1.0f) * r);
}
