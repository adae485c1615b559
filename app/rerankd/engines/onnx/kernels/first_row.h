// Attention of a sequence's first token only. Since QK^T = (Q W_K^T) H^T, we fold W_K into the query and never compute
// K. Likewise, W_V is applied to the weighted sum of states instead of to each state. The bias of K adds the same
// constant to all scores, which softmax cancels. The states stay in float32.
//
// Included by layers.cpp only, after its target pragma: the functions use instructions that a CPU may lack.

#pragma once

#include "gemm.h"

namespace rerankd {

namespace {

constexpr std::size_t kTokensAtOnce = 8;       // tokens per step
constexpr std::size_t kHeadsAtOnce = 4;        // heads per step
constexpr std::size_t kWeightsPerVector = 16;  // four rows of four columns, interleaved

// The interleaved weights of four rows, starting at this row and column.
inline const std::int8_t* weights_at(const Linear& linear, std::size_t row, std::size_t column) {
    return linear.panels.get() + column / kPanelColumns * kPanelColumns * linear.in + row * kPanelColumns +
           column % kPanelColumns * 4;
}

inline __m512 to_floats(const std::int8_t* from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}

// `HeadSize` columns of a matrix times a vector, without bias. The result has shape [in] and stride `kLanes`.
template <std::size_t HeadSize>
[[gnu::noinline]] void multiply_by_vector(const Linear& linear, std::size_t first, const float* vector, float* to) {
    const __m512i each_four_times = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    __m512 factors[HeadSize / 4];
#pragma GCC unroll 16
    for (std::size_t at = 0; at < HeadSize; at += 4) {
        const __m128 four = _mm_mul_ps(_mm_loadu_ps(vector + at), _mm_loadu_ps(&linear.scales[first + at]));
        factors[at / 4] = _mm512_permutexvar_ps(each_four_times, _mm512_castps128_ps512(four));
    }
    for (std::size_t row = 0; row < linear.in; row += 4) {
        const std::int8_t* weights = weights_at(linear, row, first);
        __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
#pragma GCC unroll 16
        for (std::size_t four = 0; four < HeadSize / 4; four += 2) {
            even = _mm512_fmadd_ps(to_floats(weights + four * kWeightsPerVector), factors[four], even);
            odd = _mm512_fmadd_ps(to_floats(weights + (four + 1) * kWeightsPerVector), factors[four + 1], odd);
        }
        const __m512 sums = _mm512_add_ps(even, odd);
        const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps(sums, 1));
        alignas(16) float of_rows[4];
        _mm_store_ps(of_rows, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
        for (std::size_t number = 0; number < 4; ++number) to[(row + number) * kLanes] = of_rows[number];
    }
}

// A vector times `HeadSize` columns of a matrix, plus the bias.
template <std::size_t HeadSize>
[[gnu::noinline]] void multiply_vector_by(const float* vector, const Linear& linear, std::size_t first, float* to) {
    __m512 sums[HeadSize / 4];
#pragma GCC unroll 16
    for (std::size_t four = 0; four < HeadSize / 4; ++four) sums[four] = _mm512_setzero_ps();
    for (std::size_t row = 0; row < linear.in; row += 4) {
        const std::int8_t* weights = weights_at(linear, row, first);
        const __m512 rows = _mm512_broadcast_f32x4(_mm_loadu_ps(vector + row));
#pragma GCC unroll 16
        for (std::size_t four = 0; four < HeadSize / 4; ++four)
            sums[four] = _mm512_fmadd_ps(to_floats(weights + four * kWeightsPerVector), rows, sums[four]);
    }
    for (std::size_t at = 0; at < HeadSize; at += 4) {
        __m512 sum = sums[at / 4];  // each 128-bit part holds the sums of four rows of one column
        sum = _mm512_add_ps(sum, _mm512_permute_ps(sum, 0b10'11'00'01));
        sum = _mm512_add_ps(sum, _mm512_permute_ps(sum, 0b01'00'11'10));
        const __m128 columns = _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, sum));
        const __m128 scales = _mm_loadu_ps(&linear.scales[first + at]), bias = _mm_loadu_ps(&linear.bias[first + at]);
        _mm_storeu_ps(to + at, _mm_add_ps(_mm_mul_ps(columns, scales), bias));
    }
}

// The first token of one sequence, for at most 16 heads, interleaved.
struct FirstRow {
    const float* states;  // [length, width]
    std::size_t length, width;
    float score_scale;
    const float* folded_query;  // [width, kLanes]: a state times this is the score
    float* probabilities;       // [length rounded up to kTokensAtOnce, kLanes]
    float* means;               // [kLanes, width]
};

[[gnu::noinline]] void score_states(const FirstRow& row, const float* bias) {
    for (std::size_t first = 0; first < row.length; first += kTokensAtOnce) {
        const float* states[kTokensAtOnce];
        __m512 scores[kTokensAtOnce];
#pragma GCC unroll 8
        for (std::size_t number = 0; number < kTokensAtOnce; ++number) {
            states[number] = row.states + std::min(first + number, row.length - 1) * row.width;
            scores[number] = _mm512_setzero_ps();
        }
        for (std::size_t column = 0; column < row.width; ++column) {
            const __m512 folded_query = _mm512_load_ps(row.folded_query + column * kLanes);
#pragma GCC unroll 8
            for (std::size_t number = 0; number < kTokensAtOnce; ++number)
                scores[number] = _mm512_fmadd_ps(_mm512_set1_ps(states[number][column]), folded_query, scores[number]);
        }
        const __m512 scale = _mm512_set1_ps(row.score_scale);
#pragma GCC unroll 8
        for (std::size_t number = 0; number < kTokensAtOnce; ++number) {
            const __m512 added = _mm512_set1_ps(bias[std::min(first + number, row.length - 1)]);
            store(row.probabilities + (first + number) * kLanes, _mm512_fmadd_ps(scores[number], scale, added));
        }
    }
}

// Softmax of the scores, in place.
void softmax_states(const FirstRow& row) {
    __m512 largest = load(row.probabilities), sum = _mm512_setzero_ps();
    for (std::size_t at = 1; at < row.length; ++at)
        largest = _mm512_max_ps(largest, load(row.probabilities + at * kLanes));
    for (std::size_t at = 0; at < row.length; ++at) {
        const __m512 probability = fast_exp(_mm512_sub_ps(load(row.probabilities + at * kLanes), largest));
        sum = _mm512_add_ps(sum, probability);
        store(row.probabilities + at * kLanes, probability);
    }
    const __m512 factor = _mm512_div_ps(_mm512_set1_ps(1), sum);
    for (std::size_t at = 0; at < row.length; ++at)
        store(row.probabilities + at * kLanes, _mm512_mul_ps(load(row.probabilities + at * kLanes), factor));
}

[[gnu::noinline]] void weighted_sum_of_states(const FirstRow& row, std::size_t heads) {
    for (std::size_t column = 0; column < row.width; column += kPanelColumns) {
        for (std::size_t first = 0; first < heads; first += kHeadsAtOnce) {
            __m512 sums[kHeadsAtOnce][kTileVectors];
#pragma GCC unroll 4
            for (std::size_t head = 0; head < kHeadsAtOnce; ++head)
#pragma GCC unroll 4
                for (std::size_t vector = 0; vector < kTileVectors; ++vector) sums[head][vector] = _mm512_setzero_ps();
            for (std::size_t at = 0; at < row.length; ++at) {
                const float* state = row.states + at * row.width + column;
                const float* probabilities = row.probabilities + at * kLanes + first;
#pragma GCC unroll 4
                for (std::size_t head = 0; head < kHeadsAtOnce; ++head) {
                    const __m512 probability = _mm512_set1_ps(probabilities[head]);
#pragma GCC unroll 4
                    for (std::size_t vector = 0; vector < kTileVectors; ++vector)
                        sums[head][vector] =
                            _mm512_fmadd_ps(probability, load(state + vector * kLanes), sums[head][vector]);
                }
            }
#pragma GCC unroll 4
            for (std::size_t head = 0; head < kHeadsAtOnce; ++head)
#pragma GCC unroll 4
                for (std::size_t vector = 0; vector < kTileVectors; ++vector)
                    store(row.means + (first + head) * row.width + column + vector * kLanes, sums[head][vector]);
        }
    }
}

}  // namespace

}  // namespace rerankd
