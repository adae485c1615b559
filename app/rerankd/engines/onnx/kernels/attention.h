// Attention of one head of one sequence, six queries at a time, so that the scores stay in the L1 cache.
//
// Included by layers.cpp only, after its target pragma: the functions use instructions that a CPU may lack.

#pragma once

#include <limits>

#include "gemm.h"

namespace rerankd {

namespace {

// Matmuls of attention are in int16 and accumulate exactly in int32. To rule out overflow, a product of query and key
// is less than 2^31 / HeadSize. Values are less than 2^13, because attention weights sum to at most 2^18, even if each
// of `kMaxLength` weights is rounded up.
template <std::size_t HeadSize>
constexpr float kQueryKeyMax = HeadSize == 32 ? 8191 : 5791;
constexpr float kValueMax = 8191, kWeightMax = 32767, kWeightSumMax = 253000;

inline __m512i quantize(const float* from, __m512 factor) {
    return _mm512_cvtps_epi32(_mm512_mul_ps(load(from), factor));
}

// Quantize 32 numbers of a token's head to int16. Packing permutes them, in the same way for queries and keys.
inline __m512i quantize_pairs(const float* from, __m512 factor) {
    return _mm512_packs_epi32(quantize(from, factor), quantize(from + kLanes, factor));
}

// The scale that maps `count` numbers, a multiple of 32, to [-largest, largest].
inline float symmetric_scale(const float* numbers, std::size_t count, float largest) {
    __m512 magnitudes[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (std::size_t at = 0; at < count; at += 2 * kLanes) {
        magnitudes[0] = max_magnitude(magnitudes[0], load(numbers + at));
        magnitudes[1] = max_magnitude(magnitudes[1], load(numbers + at + kLanes));
    }
    const float magnitude = _mm512_reduce_max_ps(max_magnitude(magnitudes[0], magnitudes[1]));
    return std::max(magnitude / largest, kMinScale);
}

// Transpose a matrix of 16 x 16 int32.
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
    // Each register now holds four columns' parts of four numbers each, of every fourth row.
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

// Queries of a head, shape [length, HeadSize].
template <std::size_t HeadSize>
inline void quantize_queries(const float* from, std::size_t length, float scale, std::int16_t* to) {
    const __m512 factor = _mm512_set1_ps(1 / scale);
    for (std::size_t at = 0; at < length * HeadSize; at += 2 * kLanes)
        _mm512_store_si512(to + at, quantize_pairs(from + at, factor));
}

// Keys of a head, transposed in pairs: shape [HeadSize / 2, padded, 2].
template <std::size_t HeadSize>
[[gnu::noinline]] void quantize_keys(const float* from, std::size_t length, std::size_t padded, float scale,
                                     std::int16_t* to) {
    const __m512 factor = _mm512_set1_ps(1 / scale);
    for (std::size_t first = 0; first < length; first += kLanes) {
        for (std::size_t column = 0; column < HeadSize; column += 2 * kLanes) {
            __m512i pairs[kLanes];
#pragma GCC unroll 16
            for (std::size_t key = 0; key < kLanes; ++key) {
                const std::size_t at = std::min(first + key, length - 1);  // scores of padding are masked
                pairs[key] = quantize_pairs(from + at * HeadSize + column, factor);
            }
            transpose(pairs);
#pragma GCC unroll 16
            for (std::size_t pair = 0; pair < kLanes; ++pair)
                _mm512_store_si512(to + ((column / 2 + pair) * padded + first) * 2, pairs[pair]);
        }
    }
}

// Values of a head, tokens interleaved in pairs: shape [padded / 2, HeadSize, 2].
template <std::size_t HeadSize>
[[gnu::noinline]] void quantize_values(const float* from, std::size_t length, float scale, std::int16_t* to) {
    const __m512i low = _mm512_set1_epi32(0xFFFF);
    const __m512 factor = _mm512_set1_ps(1 / scale);
    for (std::size_t key = 0; key < length; key += 2) {
        const std::size_t next = std::min(key + 1, length - 1);  // the weight of padding is 0
#pragma GCC unroll 4
        for (std::size_t column = 0; column < HeadSize; column += kLanes) {
            const __m512i one = quantize(from + key * HeadSize + column, factor);
            const __m512i other = quantize(from + next * HeadSize + column, factor);
            // Select `one` where `low` is set, else `other`.
            const __m512i both = _mm512_ternarylogic_epi32(low, one, _mm512_slli_epi32(other, 16), 0xCA);
            _mm512_store_si512(to + (key / 2 * HeadSize + column) * 2, both);
        }
    }
}

// One head of one sequence.
struct Head {
    const std::int16_t* queries;  // [length, HeadSize]
    const std::int16_t* keys;     // [HeadSize / 2, padded, 2]
    const std::int16_t* values;   // [padded / 2, HeadSize, 2]
    std::size_t length, padded;
    float score_scale, value_scale;
    float* scores;          // [kTileRows, padded]
    std::int16_t* weights;  // [kTileRows, padded]
    float* weight_scales;   // [kTileRows]
    float* to;              // [length, HeadSize], with this row stride:
    std::size_t stride;
};

// Scores of `Count` queries and 16 `Vectors` keys. Not inlined, for the same reason as gemm_tile.
template <std::size_t HeadSize, std::size_t Count, std::size_t Vectors>
[[gnu::noinline]] void score_tile(const Head& head, std::size_t first, std::size_t column, const float* bias,
                                  std::size_t bias_stride) {
    __m512i sums[Count][Vectors];
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row)
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < Vectors; ++vector) sums[row][vector] = _mm512_setzero_si512();
    const std::int16_t* queries = head.queries + first * HeadSize;
    for (std::size_t depth = 0; depth < HeadSize; depth += 2) {
        __m512i keys[Vectors];
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < Vectors; ++vector)
            keys[vector] = _mm512_load_si512(head.keys + depth * head.padded + (column + vector * kLanes) * 2);
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const __m512i query = broadcast_4_bytes(queries + row * HeadSize + depth);
#pragma GCC unroll 4
            for (std::size_t vector = 0; vector < Vectors; ++vector)
                dot_accumulate_s16(sums[row][vector], query, keys[vector]);
        }
    }
    const __m512 nothing = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    const __m512 scale = _mm512_set1_ps(head.score_scale);
#pragma GCC unroll 4
    for (std::size_t vector = 0; vector < Vectors; ++vector) {
        const std::size_t start = column + vector * kLanes;
        // No branch here: compilers would spill all sums.
        const auto within = static_cast<__mmask16>((1u << std::min(kLanes, head.length - start)) - 1);
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const __m512 added = _mm512_mask_loadu_ps(nothing, within, bias + row * bias_stride + start);
            const __m512 product = _mm512_cvtepi32_ps(sums[row][vector]);
            store(head.scores + row * head.padded + start, _mm512_fmadd_ps(product, scale, added));
        }
    }
}

// Scores of `Count` queries, starting at `first`, for all keys.
template <std::size_t HeadSize, std::size_t Count>
inline void score_rows(const Head& head, std::size_t first, const float* bias, std::size_t bias_stride) {
    std::size_t column = 0;
    for (; column + kPanelColumns <= head.padded; column += kPanelColumns)
        score_tile<HeadSize, Count, 4>(head, first, column, bias, bias_stride);
    switch ((head.padded - column) / kLanes) {
        case 1: score_tile<HeadSize, Count, 1>(head, first, column, bias, bias_stride); break;
        case 2: score_tile<HeadSize, Count, 2>(head, first, column, bias, bias_stride); break;
        case 3: score_tile<HeadSize, Count, 3>(head, first, column, bias, bias_stride); break;
        default: break;
    }
}

// Softmax of the scores, quantized to int16 with one scale per row.
template <std::size_t Count>
[[gnu::noinline]] void softmax_rows(const Head& head) {
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
            const __m512 probability = fast_exp(_mm512_sub_ps(load(score), largest[row]));
            sums[row] = _mm512_add_ps(sums[row], probability);
            store(score, probability);
        }
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row) {
        const float sum = _mm512_reduce_add_ps(sums[row]);
        const float factor = std::min(kWeightMax, kWeightSumMax / sum);  // the largest probability is 1
        head.weight_scales[row] = head.value_scale / (sum * factor);
        factors[row] = _mm512_set1_ps(factor);
    }
    for (std::size_t at = 0; at < head.padded; at += kLanes)
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const std::size_t from = row * head.padded + at;
            _mm256_store_si256(reinterpret_cast<__m256i*>(head.weights + from),
                               _mm512_cvtepi32_epi16(quantize(head.scores + from, factors[row])));
        }
}

// The sums of all values, weighted by attention.
template <std::size_t HeadSize, std::size_t Count>
[[gnu::noinline]] void weighted_sum_of_values(const Head& head, std::size_t first) {
    constexpr std::size_t vectors = HeadSize / kLanes;
    __m512i sums[Count][vectors];
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row)
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < vectors; ++vector) sums[row][vector] = _mm512_setzero_si512();
    for (std::size_t key = 0; key < head.length; key += 2) {
        __m512i values[vectors];
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < vectors; ++vector)
            values[vector] = _mm512_load_si512(head.values + key * HeadSize + vector * 2 * kLanes);
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const __m512i weight = broadcast_4_bytes(head.weights + row * head.padded + key);
#pragma GCC unroll 4
            for (std::size_t vector = 0; vector < vectors; ++vector)
                dot_accumulate_s16(sums[row][vector], weight, values[vector]);
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

template <std::size_t HeadSize, std::size_t Count>
inline void attend_rows(const Head& head, std::size_t first, const float* bias, std::size_t bias_stride) {
    score_rows<HeadSize, Count>(head, first, bias, bias_stride);
    softmax_rows<Count>(head);
    weighted_sum_of_values<HeadSize, Count>(head, first);
}

template <std::size_t HeadSize>
void attend(const Head& head, const float* bias, std::size_t bias_stride) {
    for (std::size_t first = 0; first < head.length; first += kTileRows) {
        const float* rows_bias = bias + first * bias_stride;
        switch (std::min(kTileRows, head.length - first)) {
            case 1: attend_rows<HeadSize, 1>(head, first, rows_bias, bias_stride); break;
            case 2: attend_rows<HeadSize, 2>(head, first, rows_bias, bias_stride); break;
            case 3: attend_rows<HeadSize, 3>(head, first, rows_bias, bias_stride); break;
            case 4: attend_rows<HeadSize, 4>(head, first, rows_bias, bias_stride); break;
            case 5: attend_rows<HeadSize, 5>(head, first, rows_bias, bias_stride); break;
            default: attend_rows<HeadSize, kTileRows>(head, first, rows_bias, bias_stride);
        }
    }
}

}  // namespace

}  // namespace rerankd
