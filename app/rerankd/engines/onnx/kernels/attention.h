// Attention of one head of one sequence, six queries at a time, so that the scores stay in the L1 cache.
//
// Included after the header of an instruction set (isa/).

#pragma once

#include <limits>

#include "vectors.h"

namespace rerankd {

namespace {

constexpr std::size_t kTileColumns = kTileVectors * kLanes;

// Matmuls of attention are in int16 and accumulate exactly in int32. To rule out overflow, a product of query and key
// is less than 2^31 / HeadSize. Values are less than 2^13, because attention weights sum to at most 2^18, even if each
// of `kMaxLength` weights is rounded up.
template <std::size_t HeadSize>
constexpr float kQueryKeyMax = HeadSize == 32 ? 8191 : 5791;
constexpr float kValueMax = 8191, kWeightMax = 32767, kWeightSumMax = 253000;

inline Integers quantize(const float* from, Floats factor) { return to_integers(load(from) * factor); }

// Quantize numbers of a token's head to int16. Packing permutes them, in the same way for queries and keys.
inline Integers quantize_pairs(const float* from, Floats factor) {
    return pack_shorts(quantize(from, factor), quantize(from + kLanes, factor));
}

// The scale that maps `count` numbers, a multiple of 32, to [-largest, largest].
inline float symmetric_scale(const float* numbers, std::size_t count, float largest) {
    Floats magnitudes[2] = {broadcast(0), broadcast(0)};
    for (std::size_t at = 0; at < count; at += 2 * kLanes) {
        magnitudes[0] = max_magnitude(magnitudes[0], load(numbers + at));
        magnitudes[1] = max_magnitude(magnitudes[1], load(numbers + at + kLanes));
    }
    const float magnitude = max_of(max_magnitude(magnitudes[0], magnitudes[1]));
    return std::max(magnitude / largest, kMinScale);
}

// Queries of a head, shape [length, HeadSize].
template <std::size_t HeadSize>
inline void quantize_queries(const float* from, std::size_t length, float scale, std::int16_t* to) {
    const Floats factor = broadcast(1 / scale);
    for (std::size_t at = 0; at < length * HeadSize; at += 2 * kLanes)
        store_shorts(to + at, quantize_pairs(from + at, factor));
}

// Keys of a head, transposed in pairs: shape [HeadSize / 2, padded, 2].
template <std::size_t HeadSize>
[[gnu::noinline]] void quantize_keys(const float* from, std::size_t length, std::size_t padded, float scale,
                                     std::int16_t* to) {
    const Floats factor = broadcast(1 / scale);
    for (std::size_t first = 0; first < length; first += kLanes) {
        for (std::size_t column = 0; column < HeadSize; column += 2 * kLanes) {
            Integers pairs[kLanes];
#pragma GCC unroll 16
            for (std::size_t key = 0; key < kLanes; ++key) {
                const std::size_t at = std::min(first + key, length - 1);  // scores of padding are masked
                pairs[key] = quantize_pairs(from + at * HeadSize + column, factor);
            }
            transpose(pairs);
#pragma GCC unroll 16
            for (std::size_t pair = 0; pair < kLanes; ++pair)
                store_shorts(to + ((column / 2 + pair) * padded + first) * 2, pairs[pair]);
        }
    }
}

// Values of a head, tokens interleaved in pairs: shape [padded / 2, HeadSize, 2].
template <std::size_t HeadSize>
[[gnu::noinline]] void quantize_values(const float* from, std::size_t length, float scale, std::int16_t* to) {
    const Floats factor = broadcast(1 / scale);
    for (std::size_t key = 0; key < length; key += 2) {
        const std::size_t next = std::min(key + 1, length - 1);  // the weight of padding is 0
#pragma GCC unroll 4
        for (std::size_t column = 0; column < HeadSize; column += kLanes) {
            const Integers one = quantize(from + key * HeadSize + column, factor);
            const Integers other = quantize(from + next * HeadSize + column, factor);
            store_shorts(to + (key / 2 * HeadSize + column) * 2, interleave_shorts(one, other));
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

// Scores of `Count` queries and `Vectors` registers of keys. Not inlined, for the same reason as gemm_tile.
template <std::size_t HeadSize, std::size_t Count, std::size_t Vectors>
[[gnu::noinline]] void score_tile(const Head& head, std::size_t first, std::size_t column, const float* bias,
                                  std::size_t bias_stride) {
    Integers sums[Count][Vectors];
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row)
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < Vectors; ++vector) sums[row][vector] = no_integers();
    const std::int16_t* queries = head.queries + first * HeadSize;
    for (std::size_t depth = 0; depth < HeadSize; depth += 2) {
        Integers keys[Vectors];
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < Vectors; ++vector)
            keys[vector] = load_shorts(head.keys + depth * head.padded + (column + vector * kLanes) * 2);
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const Integers query = broadcast_4_bytes(queries + row * HeadSize + depth);
#pragma GCC unroll 4
            for (std::size_t vector = 0; vector < Vectors; ++vector) dot_shorts(sums[row][vector], query, keys[vector]);
        }
    }
    const Floats nothing = broadcast(-std::numeric_limits<float>::infinity());
    const Floats scale = broadcast(head.score_scale);
#pragma GCC unroll 4
    for (std::size_t vector = 0; vector < Vectors; ++vector) {
        const std::size_t start = column + vector * kLanes;
        const std::size_t within = std::min(kLanes, head.length - start);
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const Floats added = load_first(bias + row * bias_stride + start, within, nothing);
            const Floats product = to_floats(sums[row][vector]);
            store(head.scores + row * head.padded + start, multiply_add(product, scale, added));
        }
    }
}

// Scores of `Count` queries, starting at `first`, for all keys.
template <std::size_t HeadSize, std::size_t Count>
inline void score_rows(const Head& head, std::size_t first, const float* bias, std::size_t bias_stride) {
    std::size_t column = 0;
    for (; column + kTileColumns <= head.padded; column += kTileColumns)
        score_tile<HeadSize, Count, kTileVectors>(head, first, column, bias, bias_stride);
    switch ((head.padded - column) / kLanes) {
        case 1: score_tile<HeadSize, Count, 1>(head, first, column, bias, bias_stride); break;
        case 2:
            score_tile<HeadSize, Count, std::min<std::size_t>(2, kTileVectors)>(head, first, column, bias, bias_stride);
            break;
        case 3:
            score_tile<HeadSize, Count, std::min<std::size_t>(3, kTileVectors)>(head, first, column, bias, bias_stride);
            break;
        default: break;
    }
}

// Softmax of the scores, quantized to int16 with one scale per row.
template <std::size_t Count>
[[gnu::noinline]] void softmax_rows(const Head& head) {
    Floats largest[Count], sums[Count], factors[Count];
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row) {
        largest[row] = load(head.scores + row * head.padded);
        sums[row] = broadcast(0);
    }
    for (std::size_t at = kLanes; at < head.padded; at += kLanes)
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row)
            largest[row] = max(largest[row], load(head.scores + row * head.padded + at));
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row) largest[row] = broadcast(max_of(largest[row]));
    for (std::size_t at = 0; at < head.padded; at += kLanes)
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            float* score = head.scores + row * head.padded + at;
            const Floats probability = fast_exp(load(score) - largest[row]);
            sums[row] = sums[row] + probability;
            store(score, probability);
        }
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row) {
        const float sum = sum_of(sums[row]);
        const float factor = std::min(kWeightMax, kWeightSumMax / sum);  // the largest probability is 1
        head.weight_scales[row] = head.value_scale / (sum * factor);
        factors[row] = broadcast(factor);
    }
    for (std::size_t at = 0; at < head.padded; at += kLanes)
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const std::size_t from = row * head.padded + at;
            store_low(head.weights + from, quantize(head.scores + from, factors[row]));
        }
}

// Some columns of the sums of all values, weighted by attention.
template <std::size_t HeadSize, std::size_t Count, std::size_t Vectors>
[[gnu::noinline]] void weighted_sum_tile(const Head& head, std::size_t first, std::size_t column) {
    Integers sums[Count][Vectors];
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row)
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < Vectors; ++vector) sums[row][vector] = no_integers();
    for (std::size_t key = 0; key < head.length; key += 2) {
        Integers values[Vectors];
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < Vectors; ++vector)
            values[vector] = load_shorts(head.values + key * HeadSize + (column + vector * kLanes) * 2);
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const Integers weight = broadcast_4_bytes(head.weights + row * head.padded + key);
#pragma GCC unroll 4
            for (std::size_t vector = 0; vector < Vectors; ++vector)
                dot_shorts(sums[row][vector], weight, values[vector]);
        }
    }
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row) {
        const Floats scale = broadcast(head.weight_scales[row]);
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < Vectors; ++vector)
            store(head.to + (first + row) * head.stride + column + vector * kLanes,
                  to_floats(sums[row][vector]) * scale);
    }
}

// The sums of all values, weighted by attention.
template <std::size_t HeadSize, std::size_t Count>
inline void weighted_sum_of_values(const Head& head, std::size_t first) {
    constexpr std::size_t vectors = std::min(kTileVectors, HeadSize / kLanes);
    for (std::size_t column = 0; column < HeadSize; column += vectors * kLanes)
        weighted_sum_tile<HeadSize, Count, vectors>(head, first, column);
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
