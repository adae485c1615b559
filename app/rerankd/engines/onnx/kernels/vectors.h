// Operations on float vectors: exp, GELU, layer norm and quantization to 8 bits.
//
// Included by layers.cpp only, after its target pragma: the functions use instructions that a CPU may lack.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

#include "layers.h"

namespace rerankd {

namespace {

constexpr std::size_t kLanes = 16;  // floats per register
constexpr float kInt8Max = 127;
constexpr int kZeroPoint = 128;
constexpr float kMinScale = 1e-12f;

std::size_t round_up(std::size_t count, std::size_t to) { return (count + to - 1) / to * to; }

// Memory aligned to a cache line.
template <class T>
std::unique_ptr<T[], AlignedDelete> allocate_aligned(std::size_t count) {
    void* memory = std::aligned_alloc(64, round_up(count * sizeof(T), 64));
    if (memory == nullptr) throw std::bad_alloc();
    return std::unique_ptr<T[], AlignedDelete>(static_cast<T*>(memory));
}

// Quantized vectors, shape [rows, width], and their scales.
struct QuantizedRows {
    std::uint8_t* values;
    float* scales;

    QuantizedRows from(std::size_t row, std::size_t width) const { return {values + row * width, scales + row}; }
};

inline __m512 load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, __m512 value) { _mm512_storeu_ps(to, value); }

inline __m512i broadcast_4_bytes(const void* from) {
    std::int32_t four;
    std::memcpy(&four, from, sizeof four);
    return _mm512_set1_epi32(four);
}

// Element-wise max(|one|, |other|).
inline __m512 max_magnitude(__m512 one, __m512 other) { return _mm512_range_ps(one, other, 0b1011); }

// Adding this rounds a float to an integer, which is then in its lowest bits.
constexpr float kRoundToInteger = 12582912;  // 1.5 2^23

// exp(x) for x <= 0, with a relative error of 4e-6, clamped at 2^-115. Computes 2^(x log2 e) with a polynomial for the
// fraction.
inline __m512 fast_exp(__m512 x) {
    const __m512 log2e = _mm512_set1_ps(1.44269504f), whole = _mm512_set1_ps(kRoundToInteger);
    const __m512 within = _mm512_max_ps(x, _mm512_set1_ps(-80));
    const __m512 power = _mm512_fmadd_ps(within, log2e, whole);
    const __m512 rest = _mm512_fmsub_ps(within, log2e, _mm512_sub_ps(power, whole));
    __m512 sum = _mm512_set1_ps(0.00957010191f);
    for (const float factor : {0.0559178603f, 0.240247448f, 0.693121815f, 0.999999261f})
        sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(factor));
    const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(power), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(sum), exponent));
}

// Look up 16 entries of a table of 32. Only the lowest five bits of `at` count.
inline __m512 lookup(const float (&table)[32], __m512i at) {
    return _mm512_permutex2var_ps(_mm512_load_ps(table), at, _mm512_load_ps(table + kLanes));
}

// GELU, x Phi(x) (Hendrycks and Gimpel, arXiv:1606.08415), with an error of at most 2e-5.
inline __m512 gelu(__m512 x) {
    const __m512 magnitude = _mm512_abs_ps(x), within = _mm512_range_ps(x, _mm512_set1_ps(kEvenGelu.kEnd), 0b1010);
    const __m512i at =
        _mm512_castps_si512(_mm512_fmadd_ps(within, _mm512_set1_ps(kEvenGelu.kSteps), _mm512_set1_ps(kRoundToInteger)));
    __m512 even = _mm512_fmadd_ps(lookup(kEvenGelu.square, at), magnitude, lookup(kEvenGelu.linear, at));
    even = _mm512_fmadd_ps(even, magnitude, lookup(kEvenGelu.constant, at));
    return _mm512_fmadd_ps(x, _mm512_set1_ps(0.5f), even);
}

// Quantize each row by its largest magnitude.
template <std::size_t Count>
inline void quantize_rows(const float* rows, std::size_t width, const __m512 (&magnitudes)[Count],
                          const QuantizedRows& to) {
    __m512 factors[Count];
#pragma GCC unroll 4
    for (std::size_t row = 0; row < Count; ++row) {
        to.scales[row] = std::max(_mm512_reduce_max_ps(magnitudes[row]) / kInt8Max, kMinScale);
        factors[row] = _mm512_set1_ps(1 / to.scales[row]);
    }
    const __m512 whole = _mm512_set1_ps(kRoundToInteger + kZeroPoint);
    for (std::size_t column = 0; column < width; column += kLanes)
#pragma GCC unroll 4
        for (std::size_t row = 0; row < Count; ++row) {
            const std::size_t at = row * width + column;
            const __m512i integers = _mm512_castps_si512(_mm512_fmadd_ps(load(rows + at), factors[row], whole));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to.values + at), _mm512_cvtepi32_epi8(integers));
        }
}

template <std::size_t Count>
inline void quantize_rows(const float* rows, std::size_t width, const QuantizedRows& to) {
    __m512 magnitudes[Count];
#pragma GCC unroll 4
    for (std::size_t row = 0; row < Count; ++row) magnitudes[row] = _mm512_setzero_ps();
    for (std::size_t column = 0; column < width; column += kLanes)
#pragma GCC unroll 4
        for (std::size_t row = 0; row < Count; ++row)
            magnitudes[row] = max_magnitude(magnitudes[row], load(rows + row * width + column));
    quantize_rows<Count>(rows, width, magnitudes, to);
}

// Layer norm of each row, in place. Also returns the largest magnitudes, one per lane.
template <std::size_t Count>
inline void layer_norm_rows(float* rows, std::size_t width, const LayerNorm& norm, __m512 (&magnitudes)[Count]) {
    __m512 sums[Count], means[Count], squares[Count], factors[Count];
#pragma GCC unroll 4
    for (std::size_t row = 0; row < Count; ++row) sums[row] = squares[row] = magnitudes[row] = _mm512_setzero_ps();
    for (std::size_t column = 0; column < width; column += kLanes)
#pragma GCC unroll 4
        for (std::size_t row = 0; row < Count; ++row)
            sums[row] = _mm512_add_ps(sums[row], load(rows + row * width + column));
#pragma GCC unroll 4
    for (std::size_t row = 0; row < Count; ++row)
        means[row] = _mm512_set1_ps(_mm512_reduce_add_ps(sums[row]) / static_cast<float>(width));
    for (std::size_t column = 0; column < width; column += kLanes)
#pragma GCC unroll 4
        for (std::size_t row = 0; row < Count; ++row) {
            const __m512 apart = _mm512_sub_ps(load(rows + row * width + column), means[row]);
            squares[row] = _mm512_fmadd_ps(apart, apart, squares[row]);
        }
#pragma GCC unroll 4
    for (std::size_t row = 0; row < Count; ++row) {
        const float variance = _mm512_reduce_add_ps(squares[row]) / static_cast<float>(width);
        factors[row] = _mm512_set1_ps(1 / std::sqrt(variance + norm.epsilon));
    }
    for (std::size_t column = 0; column < width; column += kLanes) {
        const __m512 weight = load(&norm.weight[column]), bias = load(&norm.bias[column]);
#pragma GCC unroll 4
        for (std::size_t row = 0; row < Count; ++row) {
            float* at = rows + row * width + column;
            const __m512 apart = _mm512_mul_ps(_mm512_sub_ps(load(at), means[row]), factors[row]);
            const __m512 value = _mm512_fmadd_ps(apart, weight, bias);
            magnitudes[row] = max_magnitude(magnitudes[row], value);
            store(at, value);
        }
    }
}

template <std::size_t Count>
inline void layer_norm_rows(float* rows, std::size_t width, const LayerNorm& norm) {
    __m512 magnitudes[Count];
    layer_norm_rows<Count>(rows, width, norm, magnitudes);
}

template <std::size_t Count>
inline void layer_norm_quantize_rows(float* rows, std::size_t width, const LayerNorm& norm, const QuantizedRows& to) {
    __m512 magnitudes[Count];
    layer_norm_rows<Count>(rows, width, norm, magnitudes);
    quantize_rows<Count>(rows, width, magnitudes, to);
}

// Any number of rows, four at a time.
void quantize_all(const float* rows, std::size_t width, std::size_t count, const QuantizedRows& to) {
    std::size_t row = 0;
    for (; row + 4 <= count; row += 4) quantize_rows<4>(rows + row * width, width, to.from(row, width));
    for (; row < count; ++row) quantize_rows<1>(rows + row * width, width, to.from(row, width));
}

void layer_norm_quantize_all(float* rows, std::size_t width, std::size_t count, const LayerNorm& norm,
                             const QuantizedRows& to) {
    std::size_t row = 0;
    for (; row + 4 <= count; row += 4)
        layer_norm_quantize_rows<4>(rows + row * width, width, norm, to.from(row, width));
    for (; row < count; ++row) layer_norm_quantize_rows<1>(rows + row * width, width, norm, to.from(row, width));
}

}  // namespace

}  // namespace rerankd
