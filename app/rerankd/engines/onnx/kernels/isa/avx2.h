// AVX2 without VNNI. Activations and weights are widened to int16, which is exact: 16 multiply-adds take two
// instructions. Those of `vpmaddubsw` would need activations of 7 bits (docs/adr/0011).

#pragma once

#include "avx2_floats.h"

namespace rerankd {

namespace {

constexpr std::size_t kDepth = 2;
constexpr int kZeroPoint = 0;

using Activation = std::int16_t;
using Weights = __m256i;

inline Weights load_weights(const std::int8_t* from) {
    return _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(from)));
}

// Multiply activations with weights and accumulate groups of `kDepth` in int32.
inline void dot(Integers& sums, Integers activations, Weights weights) { dot_shorts(sums, activations, weights); }

}  // namespace

}  // namespace rerankd
