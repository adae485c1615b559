// What AVX2 and AVX-VNNI have in common: everything but the matmul of activations and weights.

#pragma once

#include <immintrin.h>

#include "../layers.h"

namespace rerankd {

namespace {

constexpr std::size_t kLanes = 8, kTileVectors = 2;
constexpr std::size_t kTileRows = 6;  // 12 sums, 2 vectors of weights, a broadcast and a product take all 16 registers

using Floats = __m256;
using Integers = __m256i;

inline Floats load(const float* from) { return _mm256_loadu_ps(from); }
inline void store(float* to, Floats value) { _mm256_storeu_ps(to, value); }
inline Floats broadcast(float value) { return _mm256_set1_ps(value); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats multiply_subtract(Floats a, Floats b, Floats c) { return _mm256_fmsub_ps(a, b, c); }
inline Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline Floats magnitude_of(Floats a) { return _mm256_andnot_ps(broadcast(-0.0f), a); }
inline Floats max_magnitude(Floats a, Floats b) { return max(magnitude_of(a), magnitude_of(b)); }
inline float sum_of(Floats a) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
inline float max_of(Floats a) {
    __m128 most = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    most = _mm_max_ps(most, _mm_movehl_ps(most, most));
    return _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
}

// The first `count` numbers, and `otherwise` in the other lanes. No branch: compilers would spill a tile's sums.
inline Floats load_first(const float* from, std::size_t count, Floats otherwise) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i within = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lanes);
    return _mm256_blendv_ps(otherwise, _mm256_maskload_ps(from, within), _mm256_castsi256_ps(within));
}

inline Integers no_integers() { return _mm256_setzero_si256(); }
inline Integers load_integers(const std::int32_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
inline Integers add_integers(Integers a, Integers b) { return _mm256_add_epi32(a, b); }
inline Integers to_exponent(Integers a) { return _mm256_slli_epi32(a, 23); }
inline Integers bits_of(Floats a) { return _mm256_castps_si256(a); }
inline Floats floats_of_bits(Integers a) { return _mm256_castsi256_ps(a); }
inline Floats to_floats(Integers a) { return _mm256_cvtepi32_ps(a); }
inline Integers to_integers(Floats a) { return _mm256_cvtps_epi32(a); }
inline Floats load_int8(const std::int8_t* from) {
    return to_floats(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}

// The lowest bits of each number.
inline void store_low(std::uint8_t* to, Integers a) {
    const __m256i lowest = _mm256_set1_epi32(0x0C080400);
    const __m128i both = _mm256_castsi256_si128(
        _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(a, lowest), _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4)));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), both);
}
inline void store_low(std::int16_t* to, Integers a) {
    const __m256i lowest = _mm256_set1_epi64x(0x0D0C'0908'0504'0100);
    const __m256i both = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(a, lowest), 0b10'00);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(both));
}

// Two vectors as int16, in an order that is the same for all.
inline Integers pack_shorts(Integers a, Integers b) { return _mm256_packs_epi32(a, b); }
// Numbers of `a` and `b` in turns, as int16.
inline Integers interleave_shorts(Integers a, Integers b) {
    return _mm256_blend_epi16(a, _mm256_slli_epi32(b, 16), 0b10101010);
}
inline Integers load_shorts(const std::int16_t* from) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(from));
}
inline void store_shorts(std::int16_t* to, Integers a) { _mm256_store_si256(reinterpret_cast<__m256i*>(to), a); }

inline Integers broadcast_4_bytes(const void* from) {
    std::int32_t four;
    __builtin_memcpy(&four, from, sizeof four);
    return _mm256_set1_epi32(four);
}

// Multiply 16 int16 with 16 int16 and accumulate pairs in int32.
inline void dot_shorts(Integers& sums, Integers a, Integers b) {
    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(a, b));
}

// Transpose a matrix of 8 x 8 int32.
inline void transpose(Integers (&rows)[kLanes]) {
    Integers pairs[kLanes];
#pragma GCC unroll 4
    for (std::size_t row = 0; row < kLanes; row += 2) {
        pairs[row] = _mm256_unpacklo_epi32(rows[row], rows[row + 1]);
        pairs[row + 1] = _mm256_unpackhi_epi32(rows[row], rows[row + 1]);
    }
    Integers fours[kLanes];
#pragma GCC unroll 2
    for (std::size_t row = 0; row < kLanes; row += 4) {
        fours[row] = _mm256_unpacklo_epi64(pairs[row], pairs[row + 2]);
        fours[row + 1] = _mm256_unpackhi_epi64(pairs[row], pairs[row + 2]);
        fours[row + 2] = _mm256_unpacklo_epi64(pairs[row + 1], pairs[row + 3]);
        fours[row + 3] = _mm256_unpackhi_epi64(pairs[row + 1], pairs[row + 3]);
    }
#pragma GCC unroll 4
    for (std::size_t column = 0; column < 4; ++column) {
        rows[column] = _mm256_permute2x128_si256(fours[column], fours[column + 4], 0x20);
        rows[column + 4] = _mm256_permute2x128_si256(fours[column], fours[column + 4], 0x31);
    }
}

inline Floats divide(Floats a, Floats b) { return a / b; }

// So that the compiler thinks that it changes.
template <class Register>
inline void keep(Register& value) {
    asm volatile("" : "+x"(value));
}

inline void prefetch_to_l1(const void* address) { _mm_prefetch(static_cast<const char*>(address), _MM_HINT_T0); }
inline void prefetch_to_l2(const void* address) { _mm_prefetch(static_cast<const char*>(address), _MM_HINT_T1); }

}  // namespace

}  // namespace rerankd

#include "gelu.h"
