// What Arm's instruction sets have in common: everything but the matmul of activations and weights.

#pragma once

#include <arm_neon.h>

#include "../layers.h"

namespace rerankd {

namespace {

constexpr std::size_t kLanes = 4, kTileVectors = 4;
constexpr std::size_t kTileRows = 6;  // 24 sums, 4 vectors of weights and a broadcast take 29 of 32 registers
constexpr int kZeroPoint = 0;

using Activation = std::int8_t;
using Floats = float32x4_t;
using Integers = int32x4_t;
using Weights = int8x16_t;

inline Floats load(const float* from) { return vld1q_f32(from); }
inline void store(float* to, Floats value) { vst1q_f32(to, value); }
inline Floats broadcast(float value) { return vdupq_n_f32(value); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
inline Floats multiply_subtract(Floats a, Floats b, Floats c) { return vfmaq_f32(-c, a, b); }
inline Floats divide(Floats a, Floats b) { return vdivq_f32(a, b); }
inline Floats max(Floats a, Floats b) { return vmaxq_f32(a, b); }
inline Floats max_magnitude(Floats a, Floats b) { return vmaxq_f32(vabsq_f32(a), vabsq_f32(b)); }
inline float sum_of(Floats a) { return vaddvq_f32(a); }
inline float max_of(Floats a) { return vmaxvq_f32(a); }

// The first `count` numbers, and `otherwise` in the other lanes.
inline Floats load_first(const float* from, std::size_t count, Floats otherwise) {
    if (count == kLanes) return load(from);
    float lanes[kLanes];
    store(lanes, otherwise);
    __builtin_memcpy(lanes, from, count * sizeof *from);
    return load(lanes);
}

inline Integers no_integers() { return vdupq_n_s32(0); }
inline Integers load_integers(const std::int32_t* from) { return vld1q_s32(from); }
inline Integers add_integers(Integers a, Integers b) { return vaddq_s32(a, b); }
inline Integers to_exponent(Integers a) { return vshlq_n_s32(a, 23); }
inline Integers bits_of(Floats a) { return vreinterpretq_s32_f32(a); }
inline Floats floats_of_bits(Integers a) { return vreinterpretq_f32_s32(a); }
inline Floats to_floats(Integers a) { return vcvtq_f32_s32(a); }
inline Integers to_integers(Floats a) { return vcvtnq_s32_f32(a); }
inline Floats load_int8(const std::int8_t* from) {
    std::int32_t four;
    __builtin_memcpy(&four, from, sizeof four);
    const int8x8_t bytes = vreinterpret_s8_s32(vdup_n_s32(four));
    return to_floats(vmovl_s16(vget_low_s16(vmovl_s8(bytes))));
}

// The lowest bits of each number.
inline void store_low(std::int8_t* to, Integers a) {
    const int16x4_t shorts = vmovn_s32(a);
    const std::int32_t four = vget_lane_s32(vreinterpret_s32_s8(vmovn_s16(vcombine_s16(shorts, shorts))), 0);
    __builtin_memcpy(to, &four, sizeof four);
}
inline void store_low(std::int16_t* to, Integers a) { vst1_s16(to, vmovn_s32(a)); }

// Two vectors as int16, in an order that is the same for all.
inline Integers pack_shorts(Integers a, Integers b) {
    return vreinterpretq_s32_s16(vcombine_s16(vqmovn_s32(a), vqmovn_s32(b)));
}
// Numbers of `a` and `b` in turns, as int16.
inline Integers interleave_shorts(Integers a, Integers b) { return vsliq_n_s32(a, b, 16); }
inline Integers load_shorts(const std::int16_t* from) { return vreinterpretq_s32_s16(vld1q_s16(from)); }
inline void store_shorts(std::int16_t* to, Integers a) { vst1q_s16(to, vreinterpretq_s16_s32(a)); }

inline Integers broadcast_4_bytes(const void* from) {
    std::int32_t four;
    __builtin_memcpy(&four, from, sizeof four);
    return vdupq_n_s32(four);
}
inline Weights load_weights(const std::int8_t* from) { return vld1q_s8(from); }

// Multiply 8 int16 with 8 int16 and accumulate pairs in int32.
inline void dot_shorts(Integers& sums, Integers a, Integers b) {
    const int16x8_t one = vreinterpretq_s16_s32(a), other = vreinterpretq_s16_s32(b);
    const int32x4_t low = vmull_s16(vget_low_s16(one), vget_low_s16(other));
    sums = vaddq_s32(sums, vpaddq_s32(low, vmull_high_s16(one, other)));
}

// Transpose a matrix of 4 x 4 int32.
inline void transpose(Integers (&rows)[kLanes]) {
    const int32x4x2_t upper = vtrnq_s32(rows[0], rows[1]), lower = vtrnq_s32(rows[2], rows[3]);
    for (std::size_t row = 0; row < 2; ++row) {
        rows[row] = vcombine_s32(vget_low_s32(upper.val[row]), vget_low_s32(lower.val[row]));
        rows[row + 2] = vcombine_s32(vget_high_s32(upper.val[row]), vget_high_s32(lower.val[row]));
    }
}

// So that the compiler thinks that it changes.
template <class Register>
inline void keep(Register& value) {
    asm volatile("" : "+w"(value));
}

inline void prefetch_to_l1(const void* address) { __builtin_prefetch(address, 0, 3); }
inline void prefetch_to_l2(const void* address) { __builtin_prefetch(address, 0, 2); }

}  // namespace

}  // namespace rerankd

#include "gelu.h"
