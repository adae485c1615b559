// The instructions of the kernels: AVX-512 with VNNI, for all that follows. A test of memory errors names a header
// instead (RERANKD_INSTRUCTIONS) that computes the same in plain C++, so that it runs on any x86-64 CPU.

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

// Add the products of 64 unsigned and 64 signed bytes, four at a time. Not the intrinsic: compilers copy its sums
// around.
inline void add_products(__m512i& sums, __m512i values, __m512i weights) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(values), "v"(weights));
}

// Add the products of 32 and 32 numbers of 16 bits, two at a time.
inline void add_products_of_pairs(__m512i& sums, __m512i values, __m512i weights) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(values), "v"(weights));
}

inline bool has_instructions() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}

}  // namespace

}  // namespace rerankd

#endif
