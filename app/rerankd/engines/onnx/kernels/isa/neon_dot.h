// Arm's dot product: 16 multiply-adds of int8 in one instruction.

#pragma once

#include "neon.h"

namespace rerankd {

namespace {

constexpr std::size_t kDepth = 4;

// Multiply activations with weights and accumulate groups of `kDepth` in int32.
inline void dot(Integers& sums, Integers activations, Weights weights) {
    sums = vdotq_s32(sums, vreinterpretq_s8_s32(activations), weights);
}

}  // namespace

}  // namespace rerankd
