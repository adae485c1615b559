// What is done with vectors of floats: functions of their numbers, normalisation, rounding to 8 bits.
//
// layers.cpp alone includes this, behind its pragma: these functions may use instructions that a processor lacks.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

#include "layers.h"

namespace rerankd {

namespace {

constexpr std::size_t kLanes = 16;  // floats in a register
constexpr float kLargest = 127;
constexpr int kMiddle = 128;
constexpr float kLeastScale = 1e-12f;

std::size_t rounded_up(std::size_t count, std::size_t to) { return (count + to - 1) / to * to; }

// Memory that starts at a cache line.
template <class T>
std::unique_ptr<T[], Free> aligned(std::size_t count) {
    void* memory = std::aligned_alloc(64, rounded_up(count * sizeof(T), 64));
    if (memory == nullptr) throw std::bad_alloc();
    return std::unique_ptr<T[], Free>(static_cast<T*>(memory));
}

// Rounded vectors, shape [rows, width], and the scale of each.
struct Rounded {
    std::uint8_t* values;
    float* scales;

    Rounded from(std::size_t row, std::size_t width) const { return {values + row * width, scales + row}; }
};

inline __m512 load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, __m512 value) { _mm512_storeu_ps(to, value); }

inline __m512i four_bytes_everywhere(const void* from) {
    std::int32_t four;
    std::memcpy(&four, from, sizeof four);
    return _mm512_set1_epi32(four);
}

// The larger of both magnitudes.
inline __m512 larger_magnitude(__m512 one, __m512 other) { return _mm512_range_ps(one, other, 0b1011); }

// A float whose lowest bits are a whole number: it is rounded to one when this is added.
constexpr float kWhole = 12582912;  // 1.5 2^23

// 2^(x log2 e) to 4e-6 of it, for x up to 0, by a polynomial for the power's fraction; no less than 2^-115.
inline __m512 exponential(__m512 x) {
    const __m512 log2e = _mm512_set1_ps(1.44269504f), whole = _mm512_set1_ps(kWhole);
    const __m512 within = _mm512_max_ps(x, _mm512_set1_ps(-80));
    const __m512 power = _mm512_fmadd_ps(within, log2e, whole);
    const __m512 rest = _mm512_fmsub_ps(within, log2e, _mm512_sub_ps(power, whole));
    __m512 sum = _mm512_set1_ps(0.00957010191f);
    for (const float factor : {0.0559178603f, 0.240247448f, 0.693121815f, 0.999999261f})
        sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(factor));
    const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(power), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(sum), exponent));
}

// One of 32 numbers for each place; of `at` only the lowest bits count.
inline __m512 entry(const float (&table)[32], __m512i at) {
    return _mm512_permutex2var_ps(_mm512_load_ps(table), at, _mm512_load_ps(table + kLanes));
}

// x times the normal distribution's function (Hendrycks and Gimpel, arXiv:1606.08415), to 2e-5.
inline __m512 gelu(__m512 x) {
    const __m512 magnitude = _mm512_abs_ps(x), within = _mm512_range_ps(x, _mm512_set1_ps(kEvenGelu.kEnd), 0b1010);
    const __m512i at =
        _mm512_castps_si512(_mm512_fmadd_ps(within, _mm512_set1_ps(kEvenGelu.kSteps), _mm512_set1_ps(kWhole)));
    __m512 even = _mm512_fmadd_ps(entry(kEvenGelu.square, at), magnitude, entry(kEvenGelu.linear, at));
    even = _mm512_fmadd_ps(even, magnitude, entry(kEvenGelu.constant, at));
    return _mm512_fmadd_ps(x, _mm512_set1_ps(0.5f), even);
}

// Bring vectors to [-127, 127] by their largest magnitudes, and round them.
template <std::size_t Count>
inline void round_rows(const float* rows, std::size_t width, const __m512 (&magnitudes)[Count], const Rounded& to) {
    __m512 factors[Count];
#pragma GCC unroll 4
    for (std::size_t row = 0; row < Count; ++row) {
        to.scales[row] = std::max(_mm512_reduce_max_ps(magnitudes[row]) / kLargest, kLeastScale);
        factors[row] = _mm512_set1_ps(1 / to.scales[row]);
    }
    const __m512 whole = _mm512_set1_ps(kWhole + kMiddle);
    for (std::size_t column = 0; column < width; column += kLanes)
#pragma GCC unroll 4
        for (std::size_t row = 0; row < Count; ++row) {
            const std::size_t at = row * width + column;
            const __m512i integers = _mm512_castps_si512(_mm512_fmadd_ps(load(rows + at), factors[row], whole));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to.values + at), _mm512_cvtepi32_epi8(integers));
        }
}

template <std::size_t Count>
inline void round_rows(const float* rows, std::size_t width, const Rounded& to) {
    __m512 magnitudes[Count];
#pragma GCC unroll 4
    for (std::size_t row = 0; row < Count; ++row) magnitudes[row] = _mm512_setzero_ps();
    for (std::size_t column = 0; column < width; column += kLanes)
#pragma GCC unroll 4
        for (std::size_t row = 0; row < Count; ++row)
            magnitudes[row] = larger_magnitude(magnitudes[row], load(rows + row * width + column));
    round_rows<Count>(rows, width, magnitudes, to);
}

// Normalise vectors, and return their largest magnitudes by lanes.
template <std::size_t Count>
inline void normalise_rows(float* rows, std::size_t width, const Normalisation& by, __m512 (&magnitudes)[Count]) {
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
        factors[row] = _mm512_set1_ps(1 / std::sqrt(variance + by.epsilon));
    }
    for (std::size_t column = 0; column < width; column += kLanes) {
        const __m512 weight = load(&by.weight[column]), bias = load(&by.bias[column]);
#pragma GCC unroll 4
        for (std::size_t row = 0; row < Count; ++row) {
            float* at = rows + row * width + column;
            const __m512 apart = _mm512_mul_ps(_mm512_sub_ps(load(at), means[row]), factors[row]);
            const __m512 value = _mm512_fmadd_ps(apart, weight, bias);
            magnitudes[row] = larger_magnitude(magnitudes[row], value);
            store(at, value);
        }
    }
}

template <std::size_t Count>
inline void normalise_rows(float* rows, std::size_t width, const Normalisation& by) {
    __m512 magnitudes[Count];
    normalise_rows<Count>(rows, width, by, magnitudes);
}

template <std::size_t Count>
inline void normalise_and_round_rows(float* rows, std::size_t width, const Normalisation& by, const Rounded& to) {
    __m512 magnitudes[Count];
    normalise_rows<Count>(rows, width, by, magnitudes);
    round_rows<Count>(rows, width, magnitudes, to);
}

// The same for any number of rows, four at a time.
void round_all(const float* rows, std::size_t width, std::size_t count, const Rounded& to) {
    std::size_t row = 0;
    for (; row + 4 <= count; row += 4) round_rows<4>(rows + row * width, width, to.from(row, width));
    for (; row < count; ++row) round_rows<1>(rows + row * width, width, to.from(row, width));
}

void normalise_and_round_all(float* rows, std::size_t width, std::size_t count, const Normalisation& by,
                             const Rounded& to) {
    std::size_t row = 0;
    for (; row + 4 <= count; row += 4) normalise_and_round_rows<4>(rows + row * width, width, by, to.from(row, width));
    for (; row < count; ++row) normalise_and_round_rows<1>(rows + row * width, width, by, to.from(row, width));
}

}  // namespace

}  // namespace rerankd
