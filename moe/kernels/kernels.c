/* Work that torch does in many passes over memory, done in one: fp32 on one CPU core.

   moe/kernels/__init__.py declares these functions to Python, which calls those of the widest vectors that the
   processor has: every function is compiled for each width, which ends its name. Arrays are dense and in row order
   but where a stride says otherwise; strides count floats. Written for GCC on x86-64; elsewhere there are none. */

#include <stddef.h>
#include <stdint.h>

#define INTERFACE 2 /* raised with every change that Python must know of */

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

#if defined(__linux__) && __GNUC__ >= 11
#define HAS_TILES
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,prefer-vector-width=512")
#pragma GCC target("amx-tile,amx-bf16")
#include "tiles.h"
#pragma GCC pop_options
#endif

#define HAS(feature) (__builtin_cpu_supports(feature) != 0)

#ifdef HAS_TILES

#include <sys/syscall.h>
#include <unistd.h>

#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA 18

/* Whether there are tiles, and Linux lets this process use them, for which it must be asked. */
static int may_use_tiles(void) {
    return HAS("amx-bf16") && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

#else

static int may_use_tiles(void) { return 0; }

#endif

/* Bits: 1 for AVX2, 2 for AVX-512, 4 for AMX. */
int64_t kernels_instructions(void) {
    const int avx2 = HAS("avx2") && HAS("fma") && HAS("bmi") && HAS("bmi2");
    const int avx512 = HAS("avx512f") && HAS("avx512bw") && HAS("avx512cd") && HAS("avx512dq") && HAS("avx512vl");
    return avx2 + 2 * (avx2 && avx512) + 4 * (avx2 && avx512 && may_use_tiles());
}

#else

int64_t kernels_instructions(void) { return 0; }

#endif
