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
constexpr std::size_t kBlock = 96;              // rows whose feed-forward vectors stay in the second-level cache
constexpr float kLargest = 127;
constexpr int kMiddle = 128;
constexpr float kLeastScale = 1e-12f;
constexpr float kUnseen = -1e4f;                // a bias below it hides a key

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
};

inline __m512 load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, __m512 value) { _mm512_storeu_ps(to, value); }

// Add the products of 64 unsigned and 64 signed bytes, four at a time. Not the intrinsic: compilers copy its sums around.
inline void add_products(__m512i& sums, __m512i values, __m512i weights) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(values), "v"(weights));
}

// 2^(x log2 e) to 3e-7 of it, by a polynomial for the power's fraction; 0 below -80.
inline __m512 exponential(__m512 x) {
    const __mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-80), _CMP_GT_OQ);
    const __m512 power = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
    const __m512 whole = _mm512_roundscale_ps(power, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 rest = _mm512_sub_ps(power, whole);
    __m512 sum = _mm512_set1_ps(0.00134004322f);
    for (const float factor : {0.0096760371f, 0.0555032721f, 0.240221074f, 0.693147207f, 1.00000008f})
        sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(factor));
    return _mm512_maskz_scalef_ps(counts, sum, whole);
}

// x times the normal distribution's function (Hendrycks and Gimpel, arXiv:1606.08415), to 2e-6: up to 5 by a polynomial in
// 2 x^2 / 25 - 1, and by its end beyond.
inline __m512 gelu(__m512 x) {
    const __m512 near = _mm512_max_ps(_mm512_min_ps(x, _mm512_set1_ps(5)), _mm512_set1_ps(-5));
    const __m512 u = _mm512_fmsub_ps(_mm512_mul_ps(near, near), _mm512_set1_ps(0.08f), _mm512_set1_ps(1));
    __m512 sum = _mm512_set1_ps(-0.00109637366f);
    for (const float factor : {0.0031944713f, -0.00388683202f, 0.00511324007f, -0.0101654853f, 0.0169101552f,
                               -0.0236249425f, 0.0313567191f, -0.0403919854f, 0.0515253976f, -0.0702982327f,
                               0.141363748f})
        sum = _mm512_fmadd_ps(sum, u, _mm512_set1_ps(factor));
    return _mm512_mul_ps(x, _mm512_fmadd_ps(near, sum, _mm512_set1_ps(0.5f)));
}

// Bring a vector to [-127, 127] by its largest magnitude, and round it.
inline void round_row(const float* row, std::size_t width, __m512 magnitudes, std::uint8_t* to, float* scale) {
    const float largest = _mm512_reduce_max_ps(magnitudes);
    *scale = std::max(largest / kLargest, kLeastScale);
    const __m512 factor = _mm512_set1_ps(1 / *scale);
    const __m512i middle = _mm512_set1_epi32(kMiddle);
    for (std::size_t column = 0; column < width; column += kLanes) {
        const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(load(row + column), factor));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + column), _mm512_cvtepi32_epi8(_mm512_add_epi32(whole, middle)));
    }
}

inline void round_row(const float* row, std::size_t width, std::uint8_t* to, float* scale) {
    __m512 magnitudes = _mm512_setzero_ps();
    for (std::size_t column = 0; column < width; column += kLanes)
        magnitudes = _mm512_max_ps(magnitudes, _mm512_abs_ps(load(row + column)));
    round_row(row, width, magnitudes, to, scale);
}

inline void normalise_row(float* row, std::size_t width, const Normalisation& by, std::uint8_t* to, float* scale) {
    __m512 sum = _mm512_setzero_ps();
    for (std::size_t column = 0; column < width; column += kLanes) sum = _mm512_add_ps(sum, load(row + column));
    const float mean = _mm512_reduce_add_ps(sum) / static_cast<float>(width);
    const __m512 means = _mm512_set1_ps(mean);
    __m512 squares = _mm512_setzero_ps();
    for (std::size_t column = 0; column < width; column += kLanes) {
        const __m512 apart = _mm512_sub_ps(load(row + column), means);
        squares = _mm512_fmadd_ps(apart, apart, squares);
    }
    const float variance = _mm512_reduce_add_ps(squares) / static_cast<float>(width);
    const __m512 factor = _mm512_set1_ps(1 / std::sqrt(variance + by.epsilon));
    __m512 magnitudes = _mm512_setzero_ps();
    for (std::size_t column = 0; column < width; column += kLanes) {
        const __m512 apart = _mm512_mul_ps(_mm512_sub_ps(load(row + column), means), factor);
        const __m512 value = _mm512_fmadd_ps(apart, load(&by.weight[column]), load(&by.bias[column]));
        magnitudes = _mm512_max_ps(magnitudes, _mm512_abs_ps(value));
        store(row + column, value);
    }
    round_row(row, width, magnitudes, to, scale);
}

// One tile of a product: `Count` rows, 64 columns. `finish(row, column, values)` takes 16 results.
template <std::size_t Count, class Finish>
inline void multiply_tile(const Linear& by, std::size_t panel, const std::uint8_t* values, const float* row_scales,
                          Finish finish) {
    const std::size_t first = panel * kPanel;
    const std::int8_t* weights = by.panels.get() + first * by.in;
    __m512i sums[Count][kVectors];
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row)
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < kVectors; ++vector)
            sums[row][vector] = _mm512_loadu_si512(&by.offsets[first + vector * kLanes]);
    for (std::size_t depth = 0; depth < by.in; depth += 4, weights += 4 * kPanel) {
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
    for (std::size_t panel = columns.first / kPanel; panel * kPanel < columns.end; ++panel) {
        for (std::size_t first = 0; first < count; first += kRows) {
            const std::uint8_t* values = rows.values + first * by.in;
            const float* scales = rows.scales + first;
            const auto shifted = [&](std::size_t row, std::size_t column, __m512 value) {
                finish(first + row, column, value);
            };
            switch (std::min(kRows, count - first)) {
                case 1: multiply_tile<1>(by, panel, values, scales, shifted); break;
                case 2: multiply_tile<2>(by, panel, values, scales, shifted); break;
                case 3: multiply_tile<3>(by, panel, values, scales, shifted); break;
                case 4: multiply_tile<4>(by, panel, values, scales, shifted); break;
                case 5: multiply_tile<5>(by, panel, values, scales, shifted); break;
                default: multiply_tile<kRows>(by, panel, values, scales, shifted);
            }
        }
    }
}

template <class Finish>
void multiply(const Linear& by, const Rounded& rows, std::size_t count, Finish finish) {
    multiply(by, rows, count, {0, by.out}, finish);
}

// One head of one sequence. Vectors of queries, of values and of the result are so far apart; keys come transposed.
struct Head {
    const float* queries;
    std::size_t query_stride, count;
    const float* keys;  // [Size, padded]
    const float* values;
    std::size_t value_stride, length, padded;
    float scale;
    float* scores;  // [kRows, padded]
    float* to;
    std::size_t to_stride;
};

template <std::size_t Size, std::size_t Count, std::size_t Vectors>
inline void score_tile(const Head& head, std::size_t first, std::size_t column, const float* bias,
                       std::size_t bias_stride) {
    __m512 sums[Count][Vectors];
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row)
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < Vectors; ++vector) sums[row][vector] = _mm512_setzero_ps();
    const float* queries = head.queries + first * head.query_stride;
    for (std::size_t depth = 0; depth < Size; ++depth) {
        __m512 keys[Vectors];
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < Vectors; ++vector)
            keys[vector] = load(head.keys + depth * head.padded + column + vector * kLanes);
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const __m512 query = _mm512_set1_ps(queries[row * head.query_stride + depth]);
#pragma GCC unroll 4
            for (std::size_t vector = 0; vector < Vectors; ++vector)
                sums[row][vector] = _mm512_fmadd_ps(query, keys[vector], sums[row][vector]);
        }
    }
    const __m512 scale = _mm512_set1_ps(head.scale);
    const __m512 nothing = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
#pragma GCC unroll 4
    for (std::size_t vector = 0; vector < Vectors; ++vector) {
        const std::size_t start = column + vector * kLanes;
        const std::size_t left = head.length - start;
        const auto within = static_cast<__mmask16>(left >= kLanes ? 0xFFFF : (1u << left) - 1);
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const __m512 added = _mm512_mask_loadu_ps(nothing, within, bias + row * bias_stride + start);
            store(head.scores + row * head.padded + start, _mm512_fmadd_ps(sums[row][vector], scale, added));
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

// Scores become exponentials; a row's share is one over their sum.
template <std::size_t Count>
inline void exponentiate_rows(const Head& head, float* shares) {
    for (std::size_t row = 0; row < Count; ++row) {
        float* scores = head.scores + row * head.padded;
        __m512 most = load(scores);
        for (std::size_t at = kLanes; at < head.padded; at += kLanes) most = _mm512_max_ps(most, load(scores + at));
        const __m512 largest = _mm512_set1_ps(_mm512_reduce_max_ps(most));
        __m512 sum = _mm512_setzero_ps();
        for (std::size_t at = 0; at < head.padded; at += kLanes) {
            const __m512 weight = exponential(_mm512_sub_ps(load(scores + at), largest));
            sum = _mm512_add_ps(sum, weight);
            store(scores + at, weight);
        }
        shares[row] = 1 / _mm512_reduce_add_ps(sum);
    }
}

// The means of all values, weighted by what became of the scores.
template <std::size_t Size, std::size_t Count>
inline void weigh_values(const Head& head, std::size_t first, const float* shares) {
    constexpr std::size_t vectors = Size / kLanes;
    __m512 sums[Count][vectors];
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row)
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < vectors; ++vector) sums[row][vector] = _mm512_setzero_ps();
    for (std::size_t key = 0; key < head.length; ++key) {
        __m512 values[vectors];
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < vectors; ++vector)
            values[vector] = load(head.values + key * head.value_stride + vector * kLanes);
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const __m512 weight = _mm512_set1_ps(head.scores[row * head.padded + key]);
#pragma GCC unroll 4
            for (std::size_t vector = 0; vector < vectors; ++vector)
                sums[row][vector] = _mm512_fmadd_ps(weight, values[vector], sums[row][vector]);
        }
    }
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row)
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < vectors; ++vector)
            store(head.to + (first + row) * head.to_stride + vector * kLanes,
                  _mm512_mul_ps(sums[row][vector], _mm512_set1_ps(shares[row])));
}

template <std::size_t Size, std::size_t Count>
inline void attend_rows(const Head& head, std::size_t first, const float* bias, std::size_t bias_stride) {
    float shares[Count];
    score_rows<Size, Count>(head, first, bias, bias_stride);
    exponentiate_rows<Count>(head, shares);
    weigh_values<Size, Count>(head, first, shares);
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

void transpose(const float* from, std::size_t stride, std::size_t length, std::size_t size, float* to,
               std::size_t padded) {
    for (std::size_t key = 0; key < length; ++key)
        for (std::size_t depth = 0; depth < size; ++depth) to[depth * padded + key] = from[key * stride + depth];
    for (std::size_t depth = 0; depth < size; ++depth)
        std::fill(to + depth * padded + length, to + (depth + 1) * padded, 0.0f);
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
    Room<std::uint8_t> rounded, rounded_inner;
    Room<float> scales, inner_scales, query_key_value, context, keys, scores, inner, queries;
};

// Sequences that lie one after another without padding; `first` has one entry more than there are sequences.
struct Packed {
    std::vector<std::size_t> first;
    std::size_t length;  // with padding, which is the stride of the bias

    std::size_t sequences() const { return first.size() - 1; }
    std::size_t tokens() const { return first.back(); }
};

// How many tokens of a sequence anything reads: what no query may see, not even its own, is padding behind it.
std::size_t length_without_padding(const float* bias, std::size_t query_stride, std::size_t length) {
    const std::size_t queries = query_stride == 0 ? 1 : length;
    for (std::size_t key = length; key > 1; --key)
        for (std::size_t query = 0; query < queries; ++query)
            if (bias[query * query_stride + key - 1] > kUnseen) return key;
    return 1;
}

Packed pack(float* hidden, std::size_t sequences, std::size_t length, std::size_t width, const AttentionBias& bias) {
    Packed packed{{0}, length};
    for (std::size_t sequence = 0; sequence < sequences; ++sequence) {
        const float* of_sequence = bias.values + sequence * bias.sequence_stride;
        const std::size_t first = packed.tokens(), count = length_without_padding(of_sequence, bias.query_stride, length);
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

// Attention of all tokens, or of each sequence's first one. Keys and values are the product's of all tokens, queries lie
// `query_stride` apart, wherever they are. The context has a row for each query.
void attend_all(const Layer& layer, const float* queries, std::size_t query_stride, const float* query_key_value,
                const Packed& packed, const AttentionBias& bias, Rooms& rooms, float* context) {
    const std::size_t width = layer.output->in, size = width / layer.heads, longest = rounded_up(packed.length, kLanes);
    float* keys = rooms.keys.of(size * longest);
    float* scores = rooms.scores.of(kRows * longest);
    for (std::size_t sequence = 0; sequence < packed.sequences(); ++sequence) {
        const std::size_t first = packed.first[sequence], length = packed.first[sequence + 1] - first;
        const std::size_t first_query = layer.first_row ? sequence : first;
        const float* of_sequence = bias.values + sequence * bias.sequence_stride;
        for (std::size_t number = 0; number < layer.heads; ++number) {
            const float* head_keys = query_key_value + first * 3 * width + width + number * size;
            Head head;
            head.queries = queries + first_query * query_stride + number * size;
            head.query_stride = query_stride;
            head.count = layer.first_row ? 1 : length;
            head.keys = keys;
            head.values = head_keys + width;
            head.value_stride = 3 * width;
            head.length = length;
            head.padded = rounded_up(length, kLanes);
            head.scale = layer.score_scale;
            head.scores = scores;
            head.to = context + first_query * width + number * size;
            head.to_stride = width;
            transpose(head_keys, 3 * width, length, size, keys, head.padded);
            if (size == 32) attend<32>(head, of_sequence, bias.query_stride);
            else attend<64>(head, of_sequence, bias.query_stride);
        }
    }
}

// The second half of a layer for a block of tokens, from what attention has read for them to their new states.
void feed_forward(const Layer& layer, const float* context, float* states, const Rounded& rounded, std::size_t count,
                  Rooms& rooms) {
    const std::size_t width = layer.output->out, inner_width = layer.up->out;
    float* inner = rooms.inner.of(kBlock * inner_width);
    const Rounded inner_rounded{rooms.rounded_inner.of(kBlock * inner_width), rooms.inner_scales.of(kBlock)};
    const auto add = [&](std::size_t row, std::size_t column, __m512 value) {
        float* state = states + row * width + column;
        store(state, _mm512_add_ps(load(state), value));
    };
    const auto normalise = [&](const Normalisation& by) {
        for (std::size_t row = 0; row < count; ++row)
            normalise_row(states + row * width, width, by, rounded.values + row * width, rounded.scales + row);
    };
    for (std::size_t row = 0; row < count; ++row)
        round_row(context + row * width, width, rounded.values + row * width, rounded.scales + row);
    multiply(*layer.output, rounded, count, add);
    normalise(layer.after_attention);
    multiply(*layer.up, rounded, count, [&](std::size_t row, std::size_t column, __m512 value) {
        store(inner + row * inner_width + column, gelu(value));
    });
    for (std::size_t row = 0; row < count; ++row)
        round_row(inner + row * inner_width, inner_width, inner_rounded.values + row * inner_width,
                  inner_rounded.scales + row);
    multiply(*layer.down, inner_rounded, count, add);
    normalise(layer.after_feed_forward);
}

void feed_forward_all(const Layer& layer, const float* context, float* states, const Rounded& rounded,
                      std::size_t count, Rooms& rooms) {
    const std::size_t width = layer.output->out;
    for (std::size_t first = 0; first < count; first += kBlock) {
        const Rounded block{rounded.values + first * width, rounded.scales + first};
        feed_forward(layer, context + first * width, states + first * width, block, std::min(kBlock, count - first),
                     rooms);
    }
}

// `rounded` are the states of before, and then those of after.
void forward_layer(const Layer& layer, float* hidden, const Rounded& rounded, const Packed& packed,
                   const AttentionBias& bias, Rooms& rooms) {
    const std::size_t width = layer.output->out, tokens = packed.tokens();
    float* query_key_value = rooms.query_key_value.of(tokens * 3 * width);
    multiply(*layer.query_key_value, rounded, tokens, [&](std::size_t row, std::size_t column, __m512 value) {
        store(query_key_value + row * 3 * width + column, value);
    });
    float* context = rooms.context.of(tokens * width);
    attend_all(layer, query_key_value, 3 * width, query_key_value, packed, bias, rooms, context);
    feed_forward_all(layer, context, hidden, rounded, tokens, rooms);
}

// The same for each sequence's first token alone: keys and values are computed of all, and nothing else. The results are the
// first rows of `hidden`.
void forward_first_row(const Layer& layer, float* hidden, const Rounded& rounded, const Packed& packed,
                       const AttentionBias& bias, Rooms& rooms) {
    const std::size_t width = layer.output->out, tokens = packed.tokens(), sequences = packed.sequences();
    float* query_key_value = rooms.query_key_value.of(tokens * 3 * width);
    multiply(*layer.query_key_value, rounded, tokens, {width, 3 * width},
             [&](std::size_t row, std::size_t column, __m512 value) {
                 store(query_key_value + row * 3 * width + column, value);
             });
    for (std::size_t sequence = 0; sequence < sequences; ++sequence) {
        const std::size_t from = packed.first[sequence];
        std::memmove(hidden + sequence * width, hidden + from * width, width * sizeof *hidden);
        std::memmove(rounded.values + sequence * width, rounded.values + from * width, width);
        rounded.scales[sequence] = rounded.scales[from];
    }
    float* queries = rooms.queries.of(sequences * width);
    multiply(*layer.query_key_value, rounded, sequences, {0, width},
             [&](std::size_t row, std::size_t column, __m512 value) { store(queries + row * width + column, value); });
    float* context = rooms.context.of(tokens * width);
    attend_all(layer, queries, width, query_key_value, packed, bias, rooms, context);
    feed_forward_all(layer, context, hidden, rounded, sequences, rooms);
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

void forward(const std::vector<Layer>& layers, float* hidden, std::size_t sequences, std::size_t length,
             const AttentionBias& bias, float* result) {
    static thread_local Rooms rooms;
    const std::size_t width = layers.front().output->in;
    const Packed packed = pack(hidden, sequences, length, width, bias);
    const Rounded rounded{rooms.rounded.of(packed.tokens() * width), rooms.scales.of(packed.tokens())};
    for (std::size_t token = 0; token < packed.tokens(); ++token)
        round_row(hidden + token * width, width, rounded.values + token * width, rounded.scales + token);
    for (const Layer& layer : layers) {
        if (layer.first_row) forward_first_row(layer, hidden, rounded, packed, bias, rooms);
        else forward_layer(layer, hidden, rounded, packed, bias, rooms);
    }
    if (layers.back().first_row) std::copy(hidden, hidden + sequences * width, result);
    else unpack(hidden, packed, width, result);
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

void forward(const std::vector<Layer>&, float*, std::size_t, std::size_t, const AttentionBias&, float*) {
    throw std::logic_error("these kernels are for x86-64");
}

}  // namespace rerankd

#endif
