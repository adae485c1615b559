// AVX-VNNI: 32 multiply-adds of uint8 and int8 in one instruction, on CPUs without AVX-512.

#pragma once

#include "avx2_floats.h"

namespace rerankd {

namespace {

constexpr std::size_t kDepth = 4;
constexpr int kZeroPoint = 128;

using Activation = std::uint8_t;
using Weights = __m256i;

inline Weights load_weights(const std::int8_t* from) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(from));
}

// Multiply activations with weights and accumulate groups of `kDepth` in int32. Assembler, because GCC 12 copies the
// sums around when the intrinsic is used.
inline void dot(Integers& sums, Integers activations, Weights weights) {
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sums) : "x"(activations), "x"(weights));
}

}  // namespace

}  // namespace rerankd
