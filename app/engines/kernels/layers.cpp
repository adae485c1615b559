#include "layers.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>

#if defined(__x86_64__)

#include <immintrin.h>

namespace rerankd {

namespace {

// The normal distribution's function less a half, from 0 to 5 around 32 points: the parabola through three of its values.
// It is computed when the module is loaded, so without any instruction that a processor may lack.
struct NormalDistribution {
    static constexpr float kEnd = 4.999f, kSteps = 6.3f;  // so many to 1: the last point is kEnd's nearest
    alignas(64) float constant[32], linear[32], square[32];

    NormalDistribution() {
        const auto at = [](double x) { return std::erf(x / std::sqrt(2.0)) / 2; };
        const double apart = std::sqrt(3.0) / 4 / kSteps;
        for (int step = 0; step < 32; ++step) {
            const double middle = step / static_cast<double>(kSteps);
            const double bend = (at(middle + apart) - 2 * at(middle) + at(middle - apart)) / (2 * apart * apart);
            const double slope = (at(middle + apart) - at(middle - apart)) / (2 * apart);
            constant[step] = static_cast<float>(at(middle) - slope * middle + bend * middle * middle);
            linear[step] = static_cast<float>(slope - 2 * bend * middle);
            square[step] = static_cast<float>(bend);
        }
    }
};

const NormalDistribution kNormal;

}  // namespace

}  // namespace rerankd

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")
#endif

namespace rerankd {

namespace {

constexpr std::size_t kLanes = 16;              // floats in a register
constexpr std::size_t kVectors = 4;             // registers in a row of a tile
constexpr std::size_t kPanel = kVectors * kLanes;
constexpr std::size_t kRows = 6;                // of a tile: 24 sums, 4 weights and a broadcast are 29 of 32 registers
constexpr std::size_t kBlock = 128;              // rows whose feed-forward vectors stay in the second-level cache
constexpr float kLargest = 127;
constexpr int kMiddle = 128;
constexpr float kLeastScale = 1e-12f;
constexpr float kUnseen = -60;                  // a bias below it hides a key: its weight is 1e-26 of what it would be

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

// The larger of both magnitudes.
inline __m512 larger_magnitude(__m512 one, __m512 other) { return _mm512_range_ps(one, other, 0b1011); }

// Add the products of 64 unsigned and 64 signed bytes, four at a time. Not the intrinsic: compilers copy its sums around.
inline void add_products(__m512i& sums, __m512i values, __m512i weights) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(values), "v"(weights));
}

// The same for 32 pairs of numbers of 16 bits.
inline void add_products_of_pairs(__m512i& sums, __m512i values, __m512i weights) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(values), "v"(weights));
}

inline __m512i two_everywhere(const std::int16_t* from) {
    std::int32_t two;
    std::memcpy(&two, from, sizeof two);
    return _mm512_set1_epi32(two);
}

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

// x times the normal distribution's function (Hendrycks and Gimpel, arXiv:1606.08415), to 1e-5.
inline __m512 gelu(__m512 x) {
    const __m512 magnitude = _mm512_min_ps(_mm512_abs_ps(x), _mm512_set1_ps(kNormal.kEnd));
    const __m512 step = _mm512_fmadd_ps(magnitude, _mm512_set1_ps(kNormal.kSteps), _mm512_set1_ps(kWhole));
    const __m512i at = _mm512_castps_si512(step);
    __m512 share = _mm512_fmadd_ps(entry(kNormal.square, at), magnitude, entry(kNormal.linear, at));
    share = _mm512_fmadd_ps(share, magnitude, entry(kNormal.constant, at));
    // With the sign of x: a bit of it where the constant has one.
    const __m512i sign = _mm512_set1_epi32(static_cast<int>(0x80000000));
    const __m512i signed_share = _mm512_ternarylogic_epi32(sign, _mm512_castps_si512(x), _mm512_castps_si512(share), 0xCA);
    return _mm512_fmadd_ps(x, _mm512_castsi512_ps(signed_share), _mm512_mul_ps(x, _mm512_set1_ps(0.5f)));
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
    for (; row + 4 <= count; row += 4)
        normalise_and_round_rows<4>(rows + row * width, width, by, to.from(row, width));
    for (; row < count; ++row) normalise_and_round_rows<1>(rows + row * width, width, by, to.from(row, width));
}

// What is fetched into the second-level cache meanwhile: a line now, and the one that is `step` bytes further next.
struct Ahead {
    const char* at;
    std::size_t step;
};

// One tile of a product: `Count` rows, 64 columns. `finish(row, column, values)` takes 16 results.
template <std::size_t Count, class Finish>
[[gnu::noinline]] void multiply_tile(const Linear& by, std::size_t panel, const std::uint8_t* values,
                                     const float* row_scales, Ahead ahead, Finish finish) {
    const std::size_t first = panel * kPanel;
    const std::int8_t* weights = by.panels.get() + first * by.in;
    __m512i sums[Count][kVectors];
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row)
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < kVectors; ++vector)
            sums[row][vector] = _mm512_loadu_si512(&by.offsets[first + vector * kLanes]);
    for (std::size_t depth = 0; depth < by.in; depth += 4, weights += 4 * kPanel, ahead.at += ahead.step) {
        _mm_prefetch(ahead.at, _MM_HINT_T1);
        __m512i columns[kVectors];
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < kVectors; ++vector)
            columns[vector] = _mm512_load_si512(weights + 4 * kLanes * vector);
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            std::int32_t four;
            std::memcpy(&four, values + row * by.in + depth, sizeof four);
            const __m512i broadcast = _mm512_set1_epi32(four);
#pragma GCC unroll 4
            for (std::size_t vector = 0; vector < kVectors; ++vector)
                add_products(sums[row][vector], broadcast, columns[vector]);
        }
    }
#pragma GCC unroll 4
    for (std::size_t vector = 0; vector < kVectors; ++vector) {
        const std::size_t column = first + vector * kLanes;
        const __m512 scale = load(&by.scales[column]), bias = load(&by.bias[column]);
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const __m512 unscaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[row][vector]), scale);
            finish(row, column, _mm512_fmadd_ps(unscaled, _mm512_set1_ps(row_scales[row]), bias));
        }
    }
}

// Of a product's columns those from `first` on, and before `end`.
struct Columns {
    std::size_t first, end;
};

// The product of rounded rows and columns of a matrix. `finish(row, column, values)` takes 16 results.
template <class Finish>
void multiply(const Linear& by, const Rounded& rows, std::size_t count, const Columns& columns, Finish finish) {
    const std::size_t step = 4 * kPanel * kRows / rounded_up(count, kRows);
    for (std::size_t panel = columns.first / kPanel; panel * kPanel < columns.end; ++panel) {
        const auto* next = reinterpret_cast<const char*>(by.panels.get() + (panel + 1) * kPanel * by.in);
        for (std::size_t first = 0; first < count; first += kRows) {
            const std::uint8_t* values = rows.values + first * by.in;
            const float* scales = rows.scales + first;
            const Ahead ahead{next + first / kRows * by.in / 4 * step, step};
            const auto shifted = [&](std::size_t row, std::size_t column, __m512 value) {
                finish(first + row, column, value);
            };
            switch (std::min(kRows, count - first)) {
                case 1: multiply_tile<1>(by, panel, values, scales, ahead, shifted); break;
                case 2: multiply_tile<2>(by, panel, values, scales, ahead, shifted); break;
                case 3: multiply_tile<3>(by, panel, values, scales, ahead, shifted); break;
                case 4: multiply_tile<4>(by, panel, values, scales, ahead, shifted); break;
                case 5: multiply_tile<5>(by, panel, values, scales, ahead, shifted); break;
                default: multiply_tile<kRows>(by, panel, values, scales, ahead, shifted);
            }
        }
    }
}

template <class Finish>
void multiply(const Linear& by, const Rounded& rows, std::size_t count, Finish finish) {
    multiply(by, rows, count, {0, by.out}, finish);
}

// Attention's products are of numbers of 16 bits, two side by side, and their sums exact in 32. So of `Size` products each is
// less than 2^31 / Size; and values less than 2^12, for weights sum to 2^19 at most, also if each of `kLongest` is rounded up.
template <std::size_t Size>
constexpr float kLargestInScore = Size == 32 ? 8191 : 5791;
constexpr float kLargestValue = 4095, kLargestWeight = 32767, kLargestSum = 516000;

inline __m512i rounded(const float* from, __m512 factor) { return _mm512_cvtps_epi32(_mm512_mul_ps(load(from), factor)); }

// Half a head of a token, or the whole, in 16 bits. The order is another one, the same for queries and keys.
inline __m512i rounded_pairs(const float* from, __m512 factor) {
    return _mm512_packs_epi32(rounded(from, factor), rounded(from + kLanes, factor));
}

// The scale with which a vector reaches from -largest to largest.
inline float scale_of(const float* vector, std::size_t width, float largest) {
    __m512 magnitudes[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (std::size_t column = 0; column < width; column += 2 * kLanes)
#pragma GCC unroll 2
        for (std::size_t half = 0; half < 2; ++half)
            magnitudes[half] = larger_magnitude(magnitudes[half], load(vector + column + half * kLanes));
    const float magnitude = _mm512_reduce_max_ps(larger_magnitude(magnitudes[0], magnitudes[1]));
    return std::max(magnitude / largest, kLeastScale);
}

// Sixteen rows of sixteen numbers become columns.
inline void transpose(__m512i (&rows)[kLanes]) {
    __m512i pairs[kLanes];
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
    // Of four columns each now holds, in four parts of four numbers, those of every fourth column.
#pragma GCC unroll 4
    for (std::size_t column = 0; column < 4; ++column) {
        const __m512i even = _mm512_shuffle_i32x4(rows[column], rows[column + 4], 0x88);
        const __m512i odd = _mm512_shuffle_i32x4(rows[column], rows[column + 4], 0xdd);
        const __m512i further_even = _mm512_shuffle_i32x4(rows[column + 8], rows[column + 12], 0x88);
        const __m512i further_odd = _mm512_shuffle_i32x4(rows[column + 8], rows[column + 12], 0xdd);
        rows[column] = _mm512_shuffle_i32x4(even, further_even, 0x88);
        rows[column + 4] = _mm512_shuffle_i32x4(odd, further_odd, 0x88);
        rows[column + 8] = _mm512_shuffle_i32x4(even, further_even, 0xdd);
        rows[column + 12] = _mm512_shuffle_i32x4(odd, further_odd, 0xdd);
    }
}

// Keys of a head, pair of numbers after pair of numbers: shape [Size / 2, padded, 2].
template <std::size_t Size>
[[gnu::noinline]] void round_keys(const float* from, std::size_t stride, const float* scales, std::size_t length,
                                  std::size_t padded, std::int16_t* to) {
    for (std::size_t first = 0; first < length; first += kLanes) {
        for (std::size_t column = 0; column < Size; column += 2 * kLanes) {
            __m512i pairs[kLanes];
#pragma GCC unroll 16
            for (std::size_t key = 0; key < kLanes; ++key) {
                const std::size_t at = std::min(first + key, length - 1);  // what lies behind the last one is not read
                pairs[key] = rounded_pairs(from + at * stride + column, _mm512_set1_ps(1 / scales[at]));
            }
            transpose(pairs);
#pragma GCC unroll 16
            for (std::size_t pair = 0; pair < kLanes; ++pair)
                _mm512_store_si512(to + ((column / 2 + pair) * padded + first) * 2, pairs[pair]);
        }
    }
}

// Values of a head, pair of keys after pair of keys: shape [padded / 2, Size, 2].
template <std::size_t Size>
[[gnu::noinline]] void round_values(const float* from, std::size_t stride, const float* scales, std::size_t length,
                                    std::int16_t* to) {
    const __m512i low = _mm512_set1_epi32(0xFFFF);
    for (std::size_t key = 0; key < length; key += 2) {
        const std::size_t next = std::min(key + 1, length - 1);  // behind the last one: weights are 0 there
        const __m512 factor = _mm512_set1_ps(1 / scales[key]), next_factor = _mm512_set1_ps(1 / scales[next]);
#pragma GCC unroll 4
        for (std::size_t column = 0; column < Size; column += kLanes) {
            const __m512i one = rounded(from + key * stride + column, factor);
            const __m512i other = rounded(from + next * stride + column, next_factor);
            // Where `low` has a bit it is one's, else the other's.
            const __m512i both = _mm512_ternarylogic_epi32(low, one, _mm512_slli_epi32(other, 16), 0xCA);
            _mm512_store_si512(to + (key / 2 * Size + column) * 2, both);
        }
    }
}

// One head of one sequence.
struct Head {
    const std::int16_t* queries;  // [count, Size], so far apart
    std::size_t query_stride, count;
    const std::int16_t* keys;    // [Size / 2, padded, 2]
    const std::int16_t* values;  // [padded / 2, Size, 2]
    std::size_t length, padded;
    const float *query_scales, *key_scales, *value_scales;
    float score_scale;
    float* scores;          // [kRows, padded]
    std::int16_t* weights;  // [kRows, padded]
    float* weight_scales;   // [kRows]
    float* to;
    std::size_t to_stride;
};

template <std::size_t Size, std::size_t Count, std::size_t Vectors>
[[gnu::noinline]] void score_tile(const Head& head, std::size_t first, std::size_t column, const float* bias,
                       std::size_t bias_stride) {
    __m512i sums[Count][Vectors];
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row)
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < Vectors; ++vector) sums[row][vector] = _mm512_setzero_si512();
    const std::int16_t* queries = head.queries + first * head.query_stride;
    for (std::size_t depth = 0; depth < Size; depth += 2) {
        __m512i keys[Vectors];
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < Vectors; ++vector)
            keys[vector] = _mm512_load_si512(head.keys + depth * head.padded + (column + vector * kLanes) * 2);
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const __m512i query = two_everywhere(queries + row * head.query_stride + depth);
#pragma GCC unroll 4
            for (std::size_t vector = 0; vector < Vectors; ++vector)
                add_products_of_pairs(sums[row][vector], query, keys[vector]);
        }
    }
    const __m512 nothing = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
#pragma GCC unroll 4
    for (std::size_t vector = 0; vector < Vectors; ++vector) {
        const std::size_t start = column + vector * kLanes;
        // No branch: compilers would keep all sums in memory.
        const auto within = static_cast<__mmask16>((1u << std::min(kLanes, head.length - start)) - 1);
        const __m512 key_scales = _mm512_maskz_loadu_ps(within, head.key_scales + start);
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const __m512 scale = _mm512_set1_ps(head.query_scales[first + row] * head.score_scale);
            const __m512 added = _mm512_mask_loadu_ps(nothing, within, bias + row * bias_stride + start);
            const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[row][vector]), key_scales);
            store(head.scores + row * head.padded + start, _mm512_fmadd_ps(product, scale, added));
        }
    }
}

// Scores of `Count` queries from `first` on, for all keys.
template <std::size_t Size, std::size_t Count>
inline void score_rows(const Head& head, std::size_t first, const float* bias, std::size_t bias_stride) {
    std::size_t column = 0;
    for (; column + kPanel <= head.padded; column += kPanel)
        score_tile<Size, Count, 4>(head, first, column, bias, bias_stride);
    switch ((head.padded - column) / kLanes) {
        case 1: score_tile<Size, Count, 1>(head, first, column, bias, bias_stride); break;
        case 2: score_tile<Size, Count, 2>(head, first, column, bias, bias_stride); break;
        case 3: score_tile<Size, Count, 3>(head, first, column, bias, bias_stride); break;
        default: break;
    }
}

// Scores become weights, of values in 16 bits, and how much of the mean a weight of 1 is.
template <std::size_t Count>
[[gnu::noinline]] void weigh_rows(const Head& head) {
    __m512 largest[Count], sums[Count], most[Count], weight_sums[Count], factors[Count];
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row) {
        largest[row] = load(head.scores + row * head.padded);
        sums[row] = weight_sums[row] = most[row] = _mm512_setzero_ps();
    }
    for (std::size_t at = kLanes; at < head.padded; at += kLanes)
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row)
            largest[row] = _mm512_max_ps(largest[row], load(head.scores + row * head.padded + at));
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row) largest[row] = _mm512_set1_ps(_mm512_reduce_max_ps(largest[row]));
    for (std::size_t at = 0; at < head.padded; at += kLanes) {
        const auto within = static_cast<__mmask16>((1u << std::min(kLanes, head.length - at)) - 1);
        const __m512 value_scales = _mm512_maskz_loadu_ps(within, head.value_scales + at);
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            float* score = head.scores + row * head.padded + at;
            const __m512 share = exponential(_mm512_sub_ps(load(score), largest[row]));
            const __m512 weight = _mm512_mul_ps(share, value_scales);
            sums[row] = _mm512_add_ps(sums[row], share);
            weight_sums[row] = _mm512_add_ps(weight_sums[row], weight);
            most[row] = _mm512_max_ps(most[row], weight);
            store(score, weight);
        }
    }
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row) {
        const float factor = std::min(kLargestWeight / _mm512_reduce_max_ps(most[row]),
                                      kLargestSum / _mm512_reduce_add_ps(weight_sums[row]));
        head.weight_scales[row] = 1 / (_mm512_reduce_add_ps(sums[row]) * factor);
        factors[row] = _mm512_set1_ps(factor);
    }
    for (std::size_t at = 0; at < head.padded; at += kLanes)
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const std::size_t from = row * head.padded + at;
            _mm256_store_si256(reinterpret_cast<__m256i*>(head.weights + from),
                               _mm512_cvtepi32_epi16(rounded(head.scores + from, factors[row])));
        }
}

// The means of all values with these weights.
template <std::size_t Size, std::size_t Count>
[[gnu::noinline]] void mean_values(const Head& head, std::size_t first) {
    constexpr std::size_t vectors = Size / kLanes;
    __m512i sums[Count][vectors];
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row)
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < vectors; ++vector) sums[row][vector] = _mm512_setzero_si512();
    for (std::size_t key = 0; key < head.length; key += 2) {
        __m512i values[vectors];
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < vectors; ++vector)
            values[vector] = _mm512_load_si512(head.values + key * Size + vector * 2 * kLanes);
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const __m512i weight = two_everywhere(head.weights + row * head.padded + key);
#pragma GCC unroll 4
            for (std::size_t vector = 0; vector < vectors; ++vector)
                add_products_of_pairs(sums[row][vector], weight, values[vector]);
        }
    }
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row) {
        const __m512 scale = _mm512_set1_ps(head.weight_scales[row]);
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < vectors; ++vector)
            store(head.to + (first + row) * head.to_stride + vector * kLanes,
                  _mm512_mul_ps(_mm512_cvtepi32_ps(sums[row][vector]), scale));
    }
}

template <std::size_t Size, std::size_t Count>
inline void attend_rows(const Head& head, std::size_t first, const float* bias, std::size_t bias_stride) {
    score_rows<Size, Count>(head, first, bias, bias_stride);
    weigh_rows<Count>(head);
    mean_values<Size, Count>(head, first);
}

template <std::size_t Size>
void attend(const Head& head, const float* bias, std::size_t bias_stride) {
    for (std::size_t first = 0; first < head.count; first += kRows) {
        const float* rows_bias = bias + first * bias_stride;
        switch (std::min(kRows, head.count - first)) {
            case 1: attend_rows<Size, 1>(head, first, rows_bias, bias_stride); break;
            case 2: attend_rows<Size, 2>(head, first, rows_bias, bias_stride); break;
            case 3: attend_rows<Size, 3>(head, first, rows_bias, bias_stride); break;
            case 4: attend_rows<Size, 4>(head, first, rows_bias, bias_stride); break;
            case 5: attend_rows<Size, 5>(head, first, rows_bias, bias_stride); break;
            default: attend_rows<Size, kRows>(head, first, rows_bias, bias_stride);
        }
    }
}

// What a pass needs, for as many tokens as the longest so far.
template <class T>
class Room {
  public:
    T* of(std::size_t count) {
        if (count > size_) {
            memory_ = aligned<T>(count);
            size_ = count;
        }
        return memory_.get();
    }

  private:
    std::unique_ptr<T[], Free> memory_;
    std::size_t size_ = 0;
};

struct Rooms {
    Room<std::uint8_t> rounded, rounded_inner, first_rows;
    Room<float> scales, inner_scales, query_key_value, context, scores, inner, queries, query_scales, key_scales,
        value_scales, weight_scales, first_scales;
    Room<std::int16_t> rounded_queries, keys, values, weights;
};

// Sequences that lie one after another without padding; `first` has one entry more than there are sequences.
struct Packed {
    std::vector<std::size_t> first;
    std::size_t length;  // with padding, which is the stride of the bias

    std::size_t sequences() const { return first.size() - 1; }
    std::size_t tokens() const { return first.back(); }
    std::size_t tokens(std::size_t from, std::size_t end) const { return first[end] - first[from]; }

    // The end of the sequences from one on that a block holds, or of that one.
    std::size_t block_end(std::size_t from) const {
        std::size_t end = from + 1;
        while (end < sequences() && tokens(from, end + 1) <= kBlock) ++end;
        return end;
    }
};

// How many tokens of a sequence anything reads: as many as any token sees or, where only the first one goes on, it and
// those that it sees and so on. The others are padding.
std::size_t length_without_padding(const float* bias, std::size_t query_stride, std::size_t length, bool first_row) {
    std::size_t seen = 1;
    for (std::size_t query = 0; query < (first_row ? seen : length); ++query) {
        std::size_t key = length;
        while (key > seen && bias[query * query_stride + key - 1] <= kUnseen) --key;
        seen = key;
        if (query_stride == 0) break;
    }
    return seen;
}

Packed pack(float* hidden, std::size_t sequences, std::size_t length, std::size_t width, const AttentionBias& bias,
            bool first_row) {
    Packed packed{{0}, length};
    for (std::size_t sequence = 0; sequence < sequences; ++sequence) {
        const float* of_sequence = bias.values + sequence * bias.sequence_stride;
        const std::size_t first = packed.tokens();
        const std::size_t count = length_without_padding(of_sequence, bias.query_stride, length, first_row);
        std::memmove(hidden + first * width, hidden + sequence * length * width, count * width * sizeof *hidden);
        packed.first.push_back(first + count);
    }
    return packed;
}

void unpack(const float* hidden, const Packed& packed, std::size_t width, float* result) {
    for (std::size_t sequence = 0; sequence < packed.sequences(); ++sequence) {
        const std::size_t first = packed.first[sequence], count = packed.first[sequence + 1] - first;
        float* to = result + sequence * packed.length * width;
        std::copy(hidden + first * width, hidden + (first + count) * width, to);
        std::fill(to + count * width, to + packed.length * width, 0.0f);
    }
}

// Queries of a block of sequences, of all tokens or of each sequence's first one, as products of vectors so far apart.
struct Queries {
    const float* from;
    std::size_t stride, count;
};

// Attention of the queries of sequences from `first` to before `end`. Keys and values are the product's of all tokens. The
// context has a row for each query.
template <std::size_t Size>
void attend_all(const Layer& layer, const Queries& queries, const float* query_key_value, const Packed& packed,
                std::size_t first, std::size_t end, const AttentionBias& bias, Rooms& rooms, float* context) {
    const std::size_t width = layer.output->in, longest = rounded_up(packed.length, kLanes);
    std::int16_t* rounded_queries = rooms.rounded_queries.of(queries.count * width);
    float* query_scales = rooms.query_scales.of(queries.count);
    for (std::size_t query = 0; query < queries.count; ++query) {
        const float* from = queries.from + query * queries.stride;
        query_scales[query] = scale_of(from, width, kLargestInScore<Size>);
        const __m512 factor = _mm512_set1_ps(1 / query_scales[query]);
        for (std::size_t column = 0; column < width; column += 2 * kLanes)
            _mm512_store_si512(rounded_queries + query * width + column, rounded_pairs(from + column, factor));
    }
    const std::size_t tokens = packed.tokens(first, end);
    float *key_scales = rooms.key_scales.of(tokens), *value_scales = rooms.value_scales.of(tokens);
    for (std::size_t token = 0; token < tokens; ++token) {
        const float* from = query_key_value + token * 3 * width;
        key_scales[token] = scale_of(from + width, width, kLargestInScore<Size>);
        value_scales[token] = scale_of(from + 2 * width, width, kLargestValue);
    }
    std::int16_t* keys = rooms.keys.of(Size * longest);
    std::int16_t* values = rooms.values.of(Size * longest);
    Head head;
    head.scores = rooms.scores.of(kRows * longest);
    head.weights = rooms.weights.of(kRows * longest);
    head.weight_scales = rooms.weight_scales.of(kRows);
    head.query_stride = head.to_stride = width;
    head.keys = keys;
    head.values = values;
    head.score_scale = layer.score_scale;
    for (std::size_t sequence = first; sequence < end; ++sequence) {
        const std::size_t before = packed.tokens(first, sequence), length = packed.tokens(sequence, sequence + 1);
        const std::size_t first_query = layer.first_row ? sequence - first : before;
        const float* of_sequence = bias.values + sequence * bias.sequence_stride;
        head.query_scales = query_scales + first_query;
        head.key_scales = key_scales + before;
        head.value_scales = value_scales + before;
        head.count = layer.first_row ? 1 : length;
        head.length = length;
        head.padded = rounded_up(length, kLanes);
        for (std::size_t number = 0; number < layer.heads; ++number) {
            const float* head_keys = query_key_value + before * 3 * width + width + number * Size;
            head.queries = rounded_queries + first_query * width + number * Size;
            round_keys<Size>(head_keys, 3 * width, head.key_scales, length, head.padded, keys);
            round_values<Size>(head_keys + width, 3 * width, head.value_scales, length, values);
            head.to = context + first_query * width + number * Size;
            attend<Size>(head, of_sequence, bias.query_stride);
        }
    }
}

void attend_all(const Layer& layer, const Queries& queries, const float* query_key_value, const Packed& packed,
                std::size_t first, std::size_t end, const AttentionBias& bias, Rooms& rooms, float* context) {
    if (layer.output->in / layer.heads == 32)
        attend_all<32>(layer, queries, query_key_value, packed, first, end, bias, rooms, context);
    else
        attend_all<64>(layer, queries, query_key_value, packed, first, end, bias, rooms, context);
}

// The second half of a layer for a block of tokens, from what attention has read for them to their new states.
void feed_forward(const Layer& layer, const float* context, float* states, const Rounded& rounded, std::size_t count,
                  Rooms& rooms) {
    const std::size_t width = layer.output->out, inner_width = layer.up->out;
    float* inner = rooms.inner.of(count * inner_width);
    const Rounded inner_rounded{rooms.rounded_inner.of(count * inner_width), rooms.inner_scales.of(count)};
    const auto add = [&](std::size_t row, std::size_t column, __m512 value) {
        float* state = states + row * width + column;
        store(state, _mm512_add_ps(load(state), value));
    };
    round_all(context, width, count, rounded);
    multiply(*layer.output, rounded, count, add);
    normalise_and_round_all(states, width, count, layer.after_attention, rounded);
    multiply(*layer.up, rounded, count, [&](std::size_t row, std::size_t column, __m512 value) {
        store(inner + row * inner_width + column, gelu(value));
    });
    round_all(inner, inner_width, count, inner_rounded);
    multiply(*layer.down, inner_rounded, count, add);
    normalise_and_round_all(states, width, count, layer.after_feed_forward, rounded);
}

// The same for any number of tokens, in blocks of about the same size.
void feed_forward_all(const Layer& layer, const float* context, float* states, const Rounded& rounded,
                      std::size_t count, Rooms& rooms) {
    const std::size_t width = layer.output->out, blocks = (count + kBlock - 1) / kBlock;
    const std::size_t size = rounded_up((count + blocks - 1) / blocks, kRows);
    for (std::size_t first = 0; first < count; first += size)
        feed_forward(layer, context + first * width, states + first * width, rounded.from(first, width),
                     std::min(size, count - first), rooms);
}

// `rounded` are the states of before, and then those of after.
void forward_layer(const Layer& layer, float* hidden, const Rounded& rounded, const Packed& packed,
                   const AttentionBias& bias, Rooms& rooms) {
    const std::size_t width = layer.output->out;
    for (std::size_t first = 0, end; first < packed.sequences(); first = end) {
        end = packed.block_end(first);
        const std::size_t tokens = packed.tokens(first, end);
        const Rounded of_block = rounded.from(packed.first[first], width);
        float* query_key_value = rooms.query_key_value.of(tokens * 3 * width);
        multiply(*layer.query_key_value, of_block, tokens, [&](std::size_t row, std::size_t column, __m512 value) {
            store(query_key_value + row * 3 * width + column, value);
        });
        float* context = rooms.context.of(tokens * width);
        attend_all(layer, {query_key_value, 3 * width, tokens}, query_key_value, packed, first, end, bias, rooms, context);
        feed_forward_all(layer, context, hidden + packed.first[first] * width, of_block, tokens, rooms);
    }
}

// The same for each sequence's first token alone: keys and values are computed of all, and nothing else.
void forward_first_row(const Layer& layer, const float* hidden, const Rounded& rounded, const Packed& packed,
                       const AttentionBias& bias, Rooms& rooms, float* result) {
    const std::size_t width = layer.output->out, sequences = packed.sequences();
    const Rounded rows{rooms.first_rows.of(sequences * width), rooms.first_scales.of(sequences)};
    for (std::size_t sequence = 0; sequence < sequences; ++sequence) {
        const std::size_t first = packed.first[sequence];
        std::copy_n(hidden + first * width, width, result + sequence * width);
        std::copy_n(rounded.values + first * width, width, rows.values + sequence * width);
        rows.scales[sequence] = rounded.scales[first];
    }
    float* queries = rooms.queries.of(sequences * width);
    multiply(*layer.query_key_value, rows, sequences, {0, width},
             [&](std::size_t row, std::size_t column, __m512 value) { store(queries + row * width + column, value); });
    float* context = rooms.context.of(sequences * width);
    for (std::size_t first = 0, end; first < sequences; first = end) {
        end = packed.block_end(first);
        const std::size_t tokens = packed.tokens(first, end);
        float* query_key_value = rooms.query_key_value.of(tokens * 3 * width);
        multiply(*layer.query_key_value, rounded.from(packed.first[first], width), tokens, {width, 3 * width},
                 [&](std::size_t row, std::size_t column, __m512 value) {
                     store(query_key_value + row * 3 * width + column, value);
                 });
        attend_all(layer, {queries + first * width, width, end - first}, query_key_value, packed, first, end, bias, rooms,
                   context + first * width);
    }
    feed_forward_all(layer, context, result, rows, sequences, rooms);
}

}  // namespace

bool supported() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}

void Free::operator()(void* memory) const { std::free(memory); }

Linear::Linear(const std::int8_t* weights, const float* scales, const float* bias, std::size_t in, std::size_t out)
    : in(in), out(out), panels(aligned<std::int8_t>(in * out)), offsets(out), scales(scales, scales + out),
      bias(bias, bias + out) {
    for (std::size_t row = 0; row < in; ++row) {
        for (std::size_t column = 0; column < out; ++column) {
            const std::int8_t weight = weights[row * out + column];
            panels[column / kPanel * kPanel * in + row / 4 * 4 * kPanel + column % kPanel * 4 + row % 4] = weight;
            offsets[column] -= kMiddle * weight;
        }
    }
}

void embed(const std::vector<Table>& tables, const Normalisation& by, const std::vector<Indices>& indices,
           std::size_t sequences, std::size_t length, float* result) {
    const std::size_t width = by.weight.size(), tokens = sequences * length;
    const auto row_of = [&](std::size_t number, std::size_t token) {
        return indices[number].values[token / length * indices[number].sequence_stride + token % length];
    };
    for (std::size_t token = 0; token < tokens; ++token) {
        float* to = result + token * width;
        for (std::size_t number = 0; number < tables.size(); ++number) {
            const Table& table = tables[number];
            // Vectors lie anywhere in memory: those of a later token are on their way meanwhile.
            const std::int8_t* later = table.vectors + row_of(number, std::min(token + 4, tokens - 1)) * width;
            for (std::size_t at = 0; at < width; at += 64)
                _mm_prefetch(reinterpret_cast<const char*>(later + at), _MM_HINT_T0);
            const std::int64_t row = row_of(number, token);
            const std::int8_t* from = table.vectors + row * width;
            const __m512 scale = _mm512_set1_ps(table.scales[row]);
            for (std::size_t column = 0; column < width; column += kLanes) {
                const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + column));
                const __m512 vector = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)), scale);
                store(to + column, number == 0 ? vector : _mm512_add_ps(vector, load(to + column)));
            }
        }
        if (token % 4 == 3) normalise_rows<4>(to - 3 * width, width, by);
        else if (token + 1 == tokens)
            for (std::size_t left = 0; left <= token % 4; ++left) normalise_rows<1>(to - left * width, width, by);
    }
}

void forward(const std::vector<Layer>& layers, float* hidden, std::size_t sequences, std::size_t length,
             const AttentionBias& bias, float* result) {
    static thread_local Rooms rooms;
    const std::size_t width = layers.front().output->in;
    const Packed packed = pack(hidden, sequences, length, width, bias, layers.back().first_row);
    const Rounded rounded{rooms.rounded.of(packed.tokens() * width), rooms.scales.of(packed.tokens())};
    round_all(hidden, width, packed.tokens(), rounded);
    for (const Layer& layer : layers) {
        if (layer.first_row) forward_first_row(layer, hidden, rounded, packed, bias, rooms, result);
        else forward_layer(layer, hidden, rounded, packed, bias, rooms);
    }
    if (!layers.back().first_row) unpack(hidden, packed, width, result);
}

}  // namespace rerankd

#if defined(__clang__)
#pragma clang attribute pop
#endif

#else

namespace rerankd {

bool supported() { return false; }

void Free::operator()(void* memory) const { std::free(memory); }

Linear::Linear(const std::int8_t*, const float*, const float*, std::size_t in, std::size_t out) : in(in), out(out) {}

void embed(const std::vector<Table>&, const Normalisation&, const std::vector<Indices>&, std::size_t, std::size_t, float*) {
    throw std::logic_error("these kernels are for x86-64");
}

void forward(const std::vector<Layer>&, float*, std::size_t, std::size_t, const AttentionBias&, float*) {
    throw std::logic_error("these kernels are for x86-64");
}

}  // namespace rerankd

#endif
