/* What the kernels share. */

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* exp(x) within 2 units in the last place: 2^n times a Taylor series in |r| <= ln(2) / 2, cut where its rest is 5e-9.
   From 88.4 on it is infinite; below -87.7 it is 0, since products are a hundred times slower with numbers smaller than
   fp32's normal ones. */
INLINE float exponential(float x) {
    x = x < -88.0f ? -88.0f : x; /* n = -127, and a power of 0 */
    x = x > 89.0f ? 89.0f : x;   /* n = 128, and an infinite power */
    const float n = __builtin_rintf(x * 1.44269504f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f; /* ln(2) in two parts: the first product is exact */
    float series = 1.0f / 5040;
    series = series * r + 1.0f / 720;
    series = series * r + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 1.0f / 2;
    series = series * r + 1.0f;
    series = series * r + 1.0f;
    const uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return series * power;
}
