// Attention of one head of one sequence, six queries at a time, whose scores stay in the first-level cache.
//
// layers.cpp alone includes this, behind its pragma: these functions may use instructions that a processor lacks.

#pragma once

#include <limits>

#include "products.h"

namespace rerankd {

namespace {

// Attention's products are of numbers of 16 bits, two side by side, and their sums exact in 32. So of `Size` products
// each is less than 2^31 / Size; and values less than 2^13, for weights sum to 2^18 at most, also if each of `kLongest`
// is rounded up.
template <std::size_t Size>
constexpr float kLargestInScore = Size == 32 ? 8191 : 5791;
constexpr float kLargestValue = 8191, kLargestWeight = 32767, kLargestSum = 253000;

inline __m512i rounded(const float* from, __m512 factor) {
    return _mm512_cvtps_epi32(_mm512_mul_ps(load(from), factor));
}

// Half a head of a token, or the whole, in 16 bits. The order is another one, the same for queries and keys.
inline __m512i rounded_pairs(const float* from, __m512 factor) {
    return _mm512_packs_epi32(rounded(from, factor), rounded(from + kLanes, factor));
}

// The scale with which these numbers, a multiple of 32, reach from -largest to largest.
inline float scale_of(const float* numbers, std::size_t count, float largest) {
    __m512 magnitudes[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (std::size_t at = 0; at < count; at += 2 * kLanes) {
        magnitudes[0] = larger_magnitude(magnitudes[0], load(numbers + at));
        magnitudes[1] = larger_magnitude(magnitudes[1], load(numbers + at + kLanes));
    }
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

// Queries of a head, shape [length, Size].
template <std::size_t Size>
inline void round_queries(const float* from, std::size_t length, float scale, std::int16_t* to) {
    const __m512 factor = _mm512_set1_ps(1 / scale);
    for (std::size_t at = 0; at < length * Size; at += 2 * kLanes)
        _mm512_store_si512(to + at, rounded_pairs(from + at, factor));
}

// Keys of a head, pair of numbers after pair of numbers: shape [Size / 2, padded, 2].
template <std::size_t Size>
[[gnu::noinline]] void round_keys(const float* from, std::size_t length, std::size_t padded, float scale,
                                  std::int16_t* to) {
    const __m512 factor = _mm512_set1_ps(1 / scale);
    for (std::size_t first = 0; first < length; first += kLanes) {
        for (std::size_t column = 0; column < Size; column += 2 * kLanes) {
            __m512i pairs[kLanes];
#pragma GCC unroll 16
            for (std::size_t key = 0; key < kLanes; ++key) {
                const std::size_t at = std::min(first + key, length - 1);  // what lies behind the last one is not read
                pairs[key] = rounded_pairs(from + at * Size + column, factor);
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
[[gnu::noinline]] void round_values(const float* from, std::size_t length, float scale, std::int16_t* to) {
    const __m512i low = _mm512_set1_epi32(0xFFFF);
    const __m512 factor = _mm512_set1_ps(1 / scale);
    for (std::size_t key = 0; key < length; key += 2) {
        const std::size_t next = std::min(key + 1, length - 1);  // behind the last one: weights are 0 there
#pragma GCC unroll 4
        for (std::size_t column = 0; column < Size; column += kLanes) {
            const __m512i one = rounded(from + key * Size + column, factor);
            const __m512i other = rounded(from + next * Size + column, factor);
            // Where `low` has a bit it is one's, else the other's.
            const __m512i both = _mm512_ternarylogic_epi32(low, one, _mm512_slli_epi32(other, 16), 0xCA);
            _mm512_store_si512(to + (key / 2 * Size + column) * 2, both);
        }
    }
}

// One head of one sequence.
struct Head {
    const std::int16_t* queries;  // [length, Size]
    const std::int16_t* keys;     // [Size / 2, padded, 2]
    const std::int16_t* values;   // [padded / 2, Size, 2]
    std::size_t length, padded;
    float score_scale, value_scale;
    float* scores;          // [kRows, padded]
    std::int16_t* weights;  // [kRows, padded]
    float* weight_scales;   // [kRows]
    float* to;              // [length, Size], its rows so far apart:
    std::size_t stride;
};

// Not to be inlined either, as all below that says so.
template <std::size_t Size, std::size_t Count, std::size_t Vectors>
[[gnu::noinline]] void score_tile(const Head& head, std::size_t first, std::size_t column, const float* bias,
                                  std::size_t bias_stride) {
    __m512i sums[Count][Vectors];
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row)
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < Vectors; ++vector) sums[row][vector] = _mm512_setzero_si512();
    const std::int16_t* queries = head.queries + first * Size;
    for (std::size_t depth = 0; depth < Size; depth += 2) {
        __m512i keys[Vectors];
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < Vectors; ++vector)
            keys[vector] = _mm512_load_si512(head.keys + depth * head.padded + (column + vector * kLanes) * 2);
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const __m512i query = four_bytes_everywhere(queries + row * Size + depth);
#pragma GCC unroll 4
            for (std::size_t vector = 0; vector < Vectors; ++vector)
                add_products_of_pairs(sums[row][vector], query, keys[vector]);
        }
    }
    const __m512 nothing = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    const __m512 scale = _mm512_set1_ps(head.score_scale);
#pragma GCC unroll 4
    for (std::size_t vector = 0; vector < Vectors; ++vector) {
        const std::size_t start = column + vector * kLanes;
        // No branch: compilers would keep all sums in memory.
        const auto within = static_cast<__mmask16>((1u << std::min(kLanes, head.length - start)) - 1);
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const __m512 added = _mm512_mask_loadu_ps(nothing, within, bias + row * bias_stride + start);
            const __m512 product = _mm512_cvtepi32_ps(sums[row][vector]);
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

// Scores become weights, and how much of the mean a weight of 1 is.
template <std::size_t Count>
[[gnu::noinline]] void weigh_rows(const Head& head) {
    __m512 largest[Count], sums[Count], factors[Count];
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row) {
        largest[row] = load(head.scores + row * head.padded);
        sums[row] = _mm512_setzero_ps();
    }
    for (std::size_t at = kLanes; at < head.padded; at += kLanes)
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row)
            largest[row] = _mm512_max_ps(largest[row], load(head.scores + row * head.padded + at));
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row) largest[row] = _mm512_set1_ps(_mm512_reduce_max_ps(largest[row]));
    for (std::size_t at = 0; at < head.padded; at += kLanes)
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            float* score = head.scores + row * head.padded + at;
            const __m512 share = exponential(_mm512_sub_ps(load(score), largest[row]));
            sums[row] = _mm512_add_ps(sums[row], share);
            store(score, share);
        }
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row) {
        const float sum = _mm512_reduce_add_ps(sums[row]);
        const float factor = std::min(kLargestWeight, kLargestSum / sum);  // the largest share is 1
        head.weight_scales[row] = head.value_scale / (sum * factor);
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
            const __m512i weight = four_bytes_everywhere(head.weights + row * head.padded + key);
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
            store(head.to + (first + row) * head.stride + vector * kLanes,
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
    for (std::size_t first = 0; first < head.length; first += kRows) {
        const float* rows_bias = bias + first * bias_stride;
        switch (std::min(kRows, head.length - first)) {
            case 1: attend_rows<Size, 1>(head, first, rows_bias, bias_stride); break;
            case 2: attend_rows<Size, 2>(head, first, rows_bias, bias_stride); break;
            case 3: attend_rows<Size, 3>(head, first, rows_bias, bias_stride); break;
            case 4: attend_rows<Size, 4>(head, first, rows_bias, bias_stride); break;
            case 5: attend_rows<Size, 5>(head, first, rows_bias, bias_stride); break;
            default: attend_rows<Size, kRows>(head, first, rows_bias, bias_stride);
        }
    }
}

}  // namespace

}  // namespace rerankd
