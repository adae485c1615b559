// AVX-512 with VNNI: 64 multiply-adds of uint8 and int8 in one instruction. Included after no other instruction set.

#pragma once

// GCC 12 warns of its own functions, whose undefined registers are not used.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include "../layers.h"

namespace rerankd {

namespace {

constexpr std::size_t kLanes = 16, kTileVectors = 4;
constexpr std::size_t kTileRows = 6;  // 24 sums, 4 vectors of weights and a broadcast take 29 of 32 registers
constexpr std::size_t kDepth = 4;
constexpr int kZeroPoint = 128;

using Activation = std::uint8_t;
using Floats = __m512;
using Integers = __m512i;
using Weights = __m512i;

inline Floats load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, Floats value) { _mm512_storeu_ps(to, value); }
inline Floats broadcast(float value) { return _mm512_set1_ps(value); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats multiply_subtract(Floats a, Floats b, Floats c) { return _mm512_fmsub_ps(a, b, c); }
inline Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats max_magnitude(Floats a, Floats b) { return _mm512_range_ps(a, b, 0b1011); }
inline float sum_of(Floats a) { return _mm512_reduce_add_ps(a); }
inline float max_of(Floats a) { return _mm512_reduce_max_ps(a); }

// The first `count` numbers, and `otherwise` in the other lanes. No branch: compilers would spill a tile's sums.
inline Floats load_first(const float* from, std::size_t count, Floats otherwise) {
    return _mm512_mask_loadu_ps(otherwise, static_cast<__mmask16>((1u << count) - 1), from);
}

inline Integers no_integers() { return _mm512_setzero_si512(); }
inline Integers load_integers(const std::int32_t* from) { return _mm512_loadu_si512(from); }
inline Integers add_integers(Integers a, Integers b) { return _mm512_add_epi32(a, b); }
inline Integers to_exponent(Integers a) { return _mm512_slli_epi32(a, 23); }
inline Integers bits_of(Floats a) { return _mm512_castps_si512(a); }
inline Floats floats_of_bits(Integers a) { return _mm512_castsi512_ps(a); }
inline Floats to_floats(Integers a) { return _mm512_cvtepi32_ps(a); }
inline Integers to_integers(Floats a) { return _mm512_cvtps_epi32(a); }
inline Floats load_int8(const std::int8_t* from) {
    return to_floats(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}

// The lowest bits of each number.
inline void store_low(std::uint8_t* to, Integers a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(a));
}
inline void store_low(std::int16_t* to, Integers a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(a));
}

// Two vectors as int16, in an order that is the same for all.
inline Integers pack_shorts(Integers a, Integers b) { return _mm512_packs_epi32(a, b); }
// Numbers of `a` and `b` in turns, as int16.
inline Integers interleave_shorts(Integers a, Integers b) {
    // Select `a` where the mask is set, else `b`.
    return _mm512_ternarylogic_epi32(_mm512_set1_epi32(0xFFFF), a, _mm512_slli_epi32(b, 16), 0xCA);
}
inline Integers load_shorts(const std::int16_t* from) { return _mm512_load_si512(from); }
inline void store_shorts(std::int16_t* to, Integers a) { _mm512_store_si512(to, a); }

inline Integers broadcast_4_bytes(const void* from) {
    std::int32_t four;
    __builtin_memcpy(&four, from, sizeof four);
    return _mm512_set1_epi32(four);
}
inline Weights load_weights(const std::int8_t* from) { return _mm512_load_si512(from); }

// Multiply activations with weights and accumulate groups of `kDepth` in int32. Assembler, because GCC 12 copies the
// sums around when the intrinsic is used.
inline void dot(Integers& sums, Integers activations, Weights weights) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(activations), "v"(weights));
}

// Multiply 32 int16 with 32 int16 and accumulate pairs in int32.
inline void dot_shorts(Integers& sums, Integers a, Integers b) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(a), "v"(b));
}

// Transpose a matrix of 16 x 16 int32.
inline void transpose(Integers (&rows)[kLanes]) {
    Integers pairs[kLanes];
#pragma GCC unroll 8
    for (std::size_t row = 0; row < kLanes; row += 2) {
        pairs[row] = _mm512_unpacklo_epi32(rows[row], rows[row + 1]);
        pairs[row + 1] = _mm512_unpackhi_epi32(rows[row], rows[row + 1]);
    }
#pragma GCC unroll 4
    for (std::size_t row = 0; row < kLanes; row += 4) {
        rows[row] = _mm512_unpacklo_epi64(pairs[row], pairs[row + 2]);
        rows[row + 1] = _mm512_unpackhi_epi64(pairs[row], pairs[row + 2]);
        rows[row + 2] = _mm512_unpacklo_epi64(pairs[row + 1], pairs[row + 3]);
        rows[row + 3] = _mm512_unpackhi_epi64(pairs[row + 1], pairs[row + 3]);
    }
    // Each register now holds four columns' parts of four numbers each, of every fourth row.
#pragma GCC unroll 4
    for (std::size_t column = 0; column < 4; ++column) {
        const Integers even = _mm512_shuffle_i32x4(rows[column], rows[column + 4], 0x88);
        const Integers odd = _mm512_shuffle_i32x4(rows[column], rows[column + 4], 0xdd);
        const Integers further_even = _mm512_shuffle_i32x4(rows[column + 8], rows[column + 12], 0x88);
        const Integers further_odd = _mm512_shuffle_i32x4(rows[column + 8], rows[column + 12], 0xdd);
        rows[column] = _mm512_shuffle_i32x4(even, further_even, 0x88);
        rows[column + 4] = _mm512_shuffle_i32x4(odd, further_odd, 0x88);
        rows[column + 8] = _mm512_shuffle_i32x4(even, further_even, 0xdd);
        rows[column + 12] = _mm512_shuffle_i32x4(odd, further_odd, 0xdd);
    }
}

inline Floats divide(Floats a, Floats b) { return a / b; }
}  // namespace

}  // namespace rerankd

#include "exp.h"

namespace rerankd {

namespace {

// Look up 16 entries of a table of 32. Only the lowest five bits of `at` count.
inline Floats lookup(const float (&table)[32], Integers at) {
    return _mm512_permutex2var_ps(_mm512_load_ps(table), at, _mm512_load_ps(table + kLanes));
}

// GELU, x Phi(x) (Hendrycks and Gimpel, arXiv:1606.08415), with an error of at most 2e-5.
inline Floats gelu(Floats x) {
    const Floats magnitude = _mm512_abs_ps(x), within = _mm512_range_ps(x, broadcast(kEvenGelu.kEnd), 0b1010);
    const Integers at = bits_of(multiply_add(within, broadcast(kEvenGelu.kSteps), broadcast(kRoundToInteger)));
    Floats even = multiply_add(lookup(kEvenGelu.square, at), magnitude, lookup(kEvenGelu.linear, at));
    even = multiply_add(even, magnitude, lookup(kEvenGelu.constant, at));
    return multiply_add(x, broadcast(0.5f), even);
}

// So that the compiler thinks that it changes.
template <class Register>
inline void keep(Register& value) {
    asm volatile("" : "+v"(value));
}

inline void prefetch_to_l1(const void* address) { _mm_prefetch(static_cast<const char*>(address), _MM_HINT_T0); }
inline void prefetch_to_l2(const void* address) { _mm_prefetch(static_cast<const char*>(address), _MM_HINT_T1); }

}  // namespace

}  // namespace rerankd
