/* What the kernels share. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* exp(x) within 2 units in the last place: 2^n times a Taylor series in |r| <= ln(2) / 2, cut where its rest is 5e-9.
   Below -87 it is 0: numbers without all their digits would slow down every product that they meet a hundredfold. */
INLINE float exponential(float x) {
    float inside = x < -87.0f ? -87.0f : x;
    inside = inside > 88.0f ? 88.0f : inside;
    const float n = __builtin_rintf(inside * 1.44269504f);
    /* ln(2) in two parts: the first product is exact */
    const float r = (inside - n * 0.693359375f) + n * 2.12194440e-4f;
    float series = 1.0f / 5040;
    series = series * r + 1.0f / 720;
    series = series * r + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 1.0f / 2;
    series = series * r + 1.0f;
    series = series * r + 1.0f;
    const int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    const float finite = series * power;
    return x < -87.0f ? 0.0f : x > 88.0f ? INFINITY : finite;
}
