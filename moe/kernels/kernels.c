/* Work that torch does in many passes over memory, done in one: fp32 on one CPU core.

   moe/kernels/__init__.py declares these functions to Python, which calls those of the widest vectors that the
   processor has: every function is compiled for each width, which ends its name. Arrays are dense and in row order
   but where a stride says otherwise; strides count floats. Written for GCC on x86-64; elsewhere there are none. */

#include <stddef.h>
#include <stdint.h>

#define INTERFACE 1 /* raised with every change that Python must know of */

int64_t kernels_interface(void) { return INTERFACE; }

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)

#include <math.h>
#include <stdlib.h>
#include <xmmintrin.h>

#include "exponential.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2")
#define NAME(function) function##_avx2
#define LANES 8
#define ROWS 4
#include "elementwise.h"
#include "attention.h"
#undef NAME
#undef LANES
#undef ROWS
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,prefer-vector-width=512")
#define NAME(function) function##_avx512
#define LANES 16
#define ROWS 8
#include "elementwise.h"
#include "attention.h"
#undef NAME
#undef LANES
#undef ROWS
#pragma GCC pop_options

#define HAS(feature) (__builtin_cpu_supports(feature) != 0)

/* Bits: 1 for AVX2, 2 for AVX-512. */
int64_t kernels_widths(void) {
    const int avx2 = HAS("avx2") && HAS("fma") && HAS("bmi") && HAS("bmi2");
    const int avx512 = HAS("avx512f") && HAS("avx512bw") && HAS("avx512cd") && HAS("avx512dq") && HAS("avx512vl");
    return avx2 + 2 * (avx2 && avx512);
}

#else

int64_t kernels_widths(void) { return 0; }

#endif
