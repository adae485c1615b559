// Attention of one head of one sequence, six queries and at most 512 keys at a time, so that the scores stay in the L1
// cache. Memory grows with the length, and not with its square: the softmax of further keys corrects what those before
// have made (Milakov and Gimelshein, arXiv:1805.02867; Rabe and Staats, arXiv:2112.05682).
//
// Included after the header of an instruction set (isa/).

#pragma once

#include <limits>

#include "vectors.h"

namespace rerankd {

namespace {

constexpr std::size_t kTileColumns = kTileVectors * kLanes;
constexpr std::size_t kKeyBlock = 512;               // keys whose scores are held
constexpr std::size_t kQueryBlock = 32 * kTileRows;  // queries that read a block of keys while it is in the cache
constexpr float kLeast = std::numeric_limits<float>::lowest();
constexpr float kNothing = -std::numeric_limits<float>::infinity();

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

// Turn a head's queries or keys, shape [length, HeadSize], by the angles of their positions (Rotary::turns).
template <std::size_t HeadSize>
[[gnu::noinline]] void rotate(float* rows, std::size_t length, const float* turns) {
    constexpr std::size_t half = HeadSize / 2;
    for (std::size_t row = 0; row < length; ++row, rows += HeadSize, turns += HeadSize)
        for (std::size_t at = 0; at < half; at += kLanes) {
            const Floats one = load(rows + at), other = load(rows + half + at);
            const Floats cosine = load(turns + at), sine = load(turns + half + at);
            store(rows + at, multiply_subtract(one, cosine, other * sine));
            store(rows + half + at, multiply_add(other, cosine, one * sine));
        }
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
    const std::int16_t* queries;  // [query_count, HeadSize]
    const std::int16_t* keys;     // [HeadSize / 2, padded, 2]
    const std::int16_t* values;   // [padded / 2, HeadSize, 2]
    std::size_t query_count, length, padded;
    std::size_t window;  // a query sees keys that are at most so far away
    float score_scale, value_scale;
    const float* bias;  // [query_count, length], with this row stride:
    std::size_t bias_stride;
    float* scores;            // [kTileRows, kKeyBlock]
    std::int16_t* weights;    // [kTileRows, kKeyBlock]
    float* weight_scales;     // [kTileRows]
    float* kept;              // [kTileRows]: what the sums before are multiplied by
    float *largest, *totals;  // [kQueryBlock]: of all scores so far, and of their exponentials
    float* window_bias;       // [kTileRows, kKeyBlock]
    const float* edges;       // of the window (mark_edges)
    float* to;                // [query_count, HeadSize], with this row stride:
    std::size_t stride;
};

// Some of a head's keys. `first` is a multiple of `kLanes`, and `padded` is `count` rounded up to one.
struct Keys {
    std::size_t first, count, padded;
};

// Scores of `Count` queries and `Vectors` registers of keys. Not inlined, for the same reason as gemm_tile.
template <std::size_t HeadSize, std::size_t Count, std::size_t Vectors>
[[gnu::noinline]] void score_tile(const Head& head, const Keys& block, std::size_t first, std::size_t column,
                                  const float* bias, std::size_t bias_stride) {
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
            keys[vector] = load_shorts(head.keys + depth * head.padded + (block.first + column + vector * kLanes) * 2);
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const Integers query = broadcast_4_bytes(queries + row * HeadSize + depth);
#pragma GCC unroll 4
            for (std::size_t vector = 0; vector < Vectors; ++vector) dot_shorts(sums[row][vector], query, keys[vector]);
        }
    }
    const Floats nothing = broadcast(kNothing), scale = broadcast(head.score_scale);
#pragma GCC unroll 4
    for (std::size_t vector = 0; vector < Vectors; ++vector) {
        const std::size_t start = column + vector * kLanes;
        const std::size_t within = std::min(kLanes, block.count - start);
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const Floats added = load_first(bias + row * bias_stride + start, within, nothing);
            const Floats product = to_floats(sums[row][vector]);
            store(head.scores + row * block.padded + start, multiply_add(product, scale, added));
        }
    }
}

// Scores of `Count` queries, starting at `first`, and some keys.
template <std::size_t HeadSize, std::size_t Count>
inline void score_rows(const Head& head, const Keys& block, std::size_t first, const float* bias,
                       std::size_t bias_stride) {
    std::size_t column = 0;
    for (; column + kTileColumns <= block.padded; column += kTileColumns)
        score_tile<HeadSize, Count, kTileVectors>(head, block, first, column, bias, bias_stride);
    switch ((block.padded - column) / kLanes) {
        case 1: score_tile<HeadSize, Count, 1>(head, block, first, column, bias, bias_stride); break;
        case 2:
            score_tile<HeadSize, Count, std::min<std::size_t>(2, kTileVectors)>(head, block, first, column, bias,
                                                                                bias_stride);
            break;
        case 3:
            score_tile<HeadSize, Count, std::min<std::size_t>(3, kTileVectors)>(head, block, first, column, bias,
                                                                                bias_stride);
            break;
        default: break;
    }
}

// Softmax of the scores, quantized to int16 with one scale per row. `at_query` is the first query's place in its
// block.
template <std::size_t Count>
[[gnu::noinline]] void softmax_rows(const Head& head, const Keys& block, std::size_t at_query) {
    Floats largest[Count], sums[Count], factors[Count];
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row) {
        largest[row] = load(head.scores + row * block.padded);
        sums[row] = broadcast(0);
    }
    for (std::size_t at = kLanes; at < block.padded; at += kLanes)
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row)
            largest[row] = max(largest[row], load(head.scores + row * block.padded + at));
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row) {
        float* before = head.largest + at_query + row;
        const float most = std::max(max_of(largest[row]), *before);
        largest[row] = broadcast(most);
        head.kept[row] = max_of(fast_exp(broadcast(*before) - largest[row]));
        *before = most;
    }
    for (std::size_t at = 0; at < block.padded; at += kLanes)
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            float* score = head.scores + row * block.padded + at;
            const Floats probability = fast_exp(load(score) - largest[row]);
            sums[row] = sums[row] + probability;
            store(score, probability);
        }
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row) {
        const float sum = sum_of(sums[row]);
        float* total = head.totals + at_query + row;
        const float before = *total * head.kept[row];
        const float factor = std::min(kWeightMax, kWeightSumMax / sum);  // the largest probability is at most 1
        *total = before + sum;
        head.kept[row] = before / *total;
        head.weight_scales[row] = head.value_scale / (*total * factor);
        factors[row] = broadcast(factor);
    }
    for (std::size_t at = 0; at < block.padded; at += kLanes)
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const std::size_t from = row * block.padded + at;
            store_low(head.weights + from, quantize(head.scores + from, factors[row]));
        }
}

// Some columns of the sums of some keys' values, weighted by attention. With `Further` they are added to the sums of
// the keys before.
template <std::size_t HeadSize, std::size_t Count, std::size_t Vectors, bool Further>
[[gnu::noinline]] void weighted_sum_tile(const Head& head, const Keys& block, std::size_t first, std::size_t column) {
    Integers sums[Count][Vectors];
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row)
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < Vectors; ++vector) sums[row][vector] = no_integers();
    for (std::size_t key = 0; key < block.count; key += 2) {
        Integers values[Vectors];
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < Vectors; ++vector)
            values[vector] = load_shorts(head.values + (block.first + key) * HeadSize + (column + vector * kLanes) * 2);
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const Integers weight = broadcast_4_bytes(head.weights + row * block.padded + key);
#pragma GCC unroll 4
            for (std::size_t vector = 0; vector < Vectors; ++vector)
                dot_shorts(sums[row][vector], weight, values[vector]);
        }
    }
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row) {
        const Floats scale = broadcast(head.weight_scales[row]);
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < Vectors; ++vector) {
            float* to = head.to + (first + row) * head.stride + column + vector * kLanes;
            const Floats sum = to_floats(sums[row][vector]) * scale;
            if constexpr (Further) store(to, multiply_add(load(to), broadcast(head.kept[row]), sum));
            else store(to, sum);
        }
    }
}

// The sums of some keys' values, weighted by attention.
template <std::size_t HeadSize, std::size_t Count>
inline void weighted_sum_of_values(const Head& head, const Keys& block, std::size_t first, bool further) {
    constexpr std::size_t vectors = std::min(kTileVectors, HeadSize / kLanes);
    for (std::size_t column = 0; column < HeadSize; column += vectors * kLanes) {
        if (further) weighted_sum_tile<HeadSize, Count, vectors, true>(head, block, first, column);
        else weighted_sum_tile<HeadSize, Count, vectors, false>(head, block, first, column);
    }
}

// The largest distance of a window's edge from the keys that a tile reads.
constexpr std::size_t kEdge = kTileRows + 2 * kLanes;

// 0 for the 2 window + 1 keys that a query sees, and nothing for `kEdge` keys before and behind them.
void mark_edges(std::size_t window, float* edges) {
    std::fill_n(edges, 2 * (window + kEdge) + 1, kNothing);
    std::fill_n(edges + kEdge, 2 * window + 1, 0.0f);
}

// The bias of `Count` queries and some keys, plus the window's.
template <std::size_t Count>
[[gnu::noinline]] void window_bias_rows(const Head& head, const Keys& block, std::size_t first) {
    for (std::size_t row = 0; row < Count; ++row) {
        const float* bias = head.bias + (first + row) * head.bias_stride + block.first;
        // The place of the first key among the edges of this query's window.
        const float* edges = head.edges + (block.first + head.window + kEdge - first - row);
        for (std::size_t at = 0; at < block.padded; at += kLanes) {
            const Floats of_keys = load_first(bias + at, std::min(kLanes, block.count - at), broadcast(kNothing));
            store(head.window_bias + row * block.padded + at, of_keys + load(edges + at));
        }
    }
}

template <std::size_t HeadSize, std::size_t Count>
inline void attend_rows(const Head& head, const Keys& block, std::size_t first, bool further) {
    if (head.window < head.length) {
        window_bias_rows<Count>(head, block, first);
        score_rows<HeadSize, Count>(head, block, first, head.window_bias, block.padded);
    } else {
        const float* bias = head.bias + first * head.bias_stride + block.first;
        score_rows<HeadSize, Count>(head, block, first, bias, head.bias_stride);
    }
    softmax_rows<Count>(head, block, first % kQueryBlock);
    weighted_sum_of_values<HeadSize, Count>(head, block, first, further);
}

template <std::size_t HeadSize>
inline void attend_tile(const Head& head, const Keys& block, std::size_t first, std::size_t count, bool further) {
    switch (count) {
        case 1: attend_rows<HeadSize, 1>(head, block, first, further); break;
        case 2: attend_rows<HeadSize, 2>(head, block, first, further); break;
        case 3: attend_rows<HeadSize, 3>(head, block, first, further); break;
        case 4: attend_rows<HeadSize, 4>(head, block, first, further); break;
        case 5: attend_rows<HeadSize, 5>(head, block, first, further); break;
        default: attend_rows<HeadSize, kTileRows>(head, block, first, further);
    }
}

// A head's places [first, end).
struct Span {
    std::size_t first, end;
};

// The keys that any of these queries sees, and up to `kLanes` - 1 before.
inline Span keys_of(const Head& head, Span queries) {
    const std::size_t first = queries.first > head.window ? queries.first - head.window : 0;
    return {first / kLanes * kLanes, std::min(head.length, queries.end + head.window)};
}

template <std::size_t HeadSize>
void attend(const Head& head) {
    for (std::size_t first = 0; first < head.query_count; first += kQueryBlock) {
        const Span queries{first, std::min(first + kQueryBlock, head.query_count)}, keys = keys_of(head, queries);
        std::fill_n(head.largest, kQueryBlock, kLeast);
        std::fill_n(head.totals, kQueryBlock, 0.0f);
        for (std::size_t key = keys.first; key < keys.end; key += kKeyBlock)
            for (std::size_t query = first; query < queries.end; query += kTileRows) {
                const std::size_t count = std::min(kTileRows, queries.end - query);
                const Span seen = keys_of(head, {query, query + count});
                const std::size_t from = std::max(key, seen.first), end = std::min(key + kKeyBlock, seen.end);
                if (from >= end) continue;
                const Keys block{from, end - from, round_up(end - from, kLanes)};
                attend_tile<HeadSize>(head, block, query, count, from > seen.first);
            }
    }
}

}  // namespace

}  // namespace rerankd
