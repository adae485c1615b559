// Enables AVX-512 with VNNI for all code after this include. The sanitizer tests define RERANKD_INSTRUCTIONS, a header
// that emulates these instructions in plain C++ and runs on any x86-64 CPU.

#pragma once

#include <immintrin.h>

#if defined(RERANKD_INSTRUCTIONS)

#include RERANKD_INSTRUCTIONS

#else

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")
#endif

namespace rerankd {

namespace {

// Multiply 64 uint8 with 64 int8 and accumulate groups of four in int32. Assembler, because GCC 12 copies the
// sums around when the intrinsic is used.
inline void dot_accumulate_u8s8(__m512i& sums, __m512i values, __m512i weights) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(values), "v"(weights));
}

// Multiply 32 int16 with 32 int16 and accumulate pairs in int32.
inline void dot_accumulate_s16(__m512i& sums, __m512i values, __m512i weights) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(values), "v"(weights));
}

inline bool cpu_has_instructions() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}

}  // namespace

}  // namespace rerankd

#endif
