// Attention of a sequence's first token alone, which needs nobody's keys and values: the product of a query and a key
// is that of the state and what the query makes of the keys' weights, and a mean of values is the values' weights times
// a mean of states. The keys' bias adds the same to all scores, which changes no weight. States are not even rounded
// for it.
//
// layers.cpp alone includes this, behind its pragma: these functions may use instructions that a processor lacks.

#pragma once

#include "products.h"

namespace rerankd {

namespace {

constexpr std::size_t kStates = 8;    // read at a time
constexpr std::size_t kMeans = 4;     // heads whose means are made at a time
constexpr std::size_t kWeights = 16;  // of four rows and four columns, which lie side by side

// Where the weights of four rows from this one on start, column after column.
inline const std::int8_t* weights_at(const Linear& by, std::size_t row, std::size_t column) {
    return by.panels.get() + column / kPanel * kPanel * by.in + row * kPanel + column % kPanel * 4;
}

inline __m512 floats(const std::int8_t* from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}

// `Size` columns of a matrix times a vector, without the matrix's bias: shape [in], its numbers `kLanes` apart.
template <std::size_t Size>
[[gnu::noinline]] void multiply_columns(const Linear& by, std::size_t first, const float* vector, float* to) {
    const __m512i each_four_times = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    __m512 factors[Size / 4];
#pragma GCC unroll 16
    for (std::size_t at = 0; at < Size; at += 4) {
        const __m128 four = _mm_mul_ps(_mm_loadu_ps(vector + at), _mm_loadu_ps(&by.scales[first + at]));
        factors[at / 4] = _mm512_permutexvar_ps(each_four_times, _mm512_castps128_ps512(four));
    }
    for (std::size_t row = 0; row < by.in; row += 4) {
        const std::int8_t* weights = weights_at(by, row, first);
        __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
#pragma GCC unroll 16
        for (std::size_t four = 0; four < Size / 4; four += 2) {
            even = _mm512_fmadd_ps(floats(weights + four * kWeights), factors[four], even);
            odd = _mm512_fmadd_ps(floats(weights + (four + 1) * kWeights), factors[four + 1], odd);
        }
        const __m512 sums = _mm512_add_ps(even, odd);
        const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps(sums, 1));
        alignas(16) float of_rows[4];
        _mm_store_ps(of_rows, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
        for (std::size_t number = 0; number < 4; ++number) to[(row + number) * kLanes] = of_rows[number];
    }
}

// A vector times `Size` columns of a matrix, with scale and bias.
template <std::size_t Size>
[[gnu::noinline]] void multiply_by_columns(const float* vector, const Linear& by, std::size_t first, float* to) {
    __m512 sums[Size / 4];
#pragma GCC unroll 16
    for (std::size_t four = 0; four < Size / 4; ++four) sums[four] = _mm512_setzero_ps();
    for (std::size_t row = 0; row < by.in; row += 4) {
        const std::int8_t* weights = weights_at(by, row, first);
        const __m512 rows = _mm512_broadcast_f32x4(_mm_loadu_ps(vector + row));
#pragma GCC unroll 16
        for (std::size_t four = 0; four < Size / 4; ++four)
            sums[four] = _mm512_fmadd_ps(floats(weights + four * kWeights), rows, sums[four]);
    }
    for (std::size_t at = 0; at < Size; at += 4) {
        __m512 sum = sums[at / 4];  // of four rows, side by side, in each of its four parts
        sum = _mm512_add_ps(sum, _mm512_permute_ps(sum, 0b10'11'00'01));
        sum = _mm512_add_ps(sum, _mm512_permute_ps(sum, 0b01'00'11'10));
        const __m128 columns = _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, sum));
        const __m128 scales = _mm_loadu_ps(&by.scales[first + at]), bias = _mm_loadu_ps(&by.bias[first + at]);
        _mm_storeu_ps(to + at, _mm_add_ps(_mm_mul_ps(columns, scales), bias));
    }
}

// The first token of one sequence, and 16 heads at most, which lie side by side.
struct FirstRow {
    const float* states;  // [length, width]
    std::size_t length, width;
    float score_scale;
    const float* readers;  // [width, kLanes]: a state times these is the score
    float* shares;         // [length, rounded up to kStates, kLanes]
    float* means;          // [kLanes, width]
};

[[gnu::noinline]] void score_states(const FirstRow& row, const float* bias) {
    for (std::size_t first = 0; first < row.length; first += kStates) {
        const float* states[kStates];
        __m512 scores[kStates];
#pragma GCC unroll 8
        for (std::size_t number = 0; number < kStates; ++number) {
            states[number] = row.states + std::min(first + number, row.length - 1) * row.width;
            scores[number] = _mm512_setzero_ps();
        }
        for (std::size_t column = 0; column < row.width; ++column) {
            const __m512 readers = _mm512_load_ps(row.readers + column * kLanes);
#pragma GCC unroll 8
            for (std::size_t number = 0; number < kStates; ++number)
                scores[number] = _mm512_fmadd_ps(_mm512_set1_ps(states[number][column]), readers, scores[number]);
        }
        const __m512 scale = _mm512_set1_ps(row.score_scale);
#pragma GCC unroll 8
        for (std::size_t number = 0; number < kStates; ++number) {
            const __m512 added = _mm512_set1_ps(bias[std::min(first + number, row.length - 1)]);
            store(row.shares + (first + number) * kLanes, _mm512_fmadd_ps(scores[number], scale, added));
        }
    }
}

// Scores become weights.
void weigh_states(const FirstRow& row) {
    __m512 largest = load(row.shares), sum = _mm512_setzero_ps();
    for (std::size_t at = 1; at < row.length; ++at) largest = _mm512_max_ps(largest, load(row.shares + at * kLanes));
    for (std::size_t at = 0; at < row.length; ++at) {
        const __m512 share = exponential(_mm512_sub_ps(load(row.shares + at * kLanes), largest));
        sum = _mm512_add_ps(sum, share);
        store(row.shares + at * kLanes, share);
    }
    const __m512 factor = _mm512_div_ps(_mm512_set1_ps(1), sum);
    for (std::size_t at = 0; at < row.length; ++at)
        store(row.shares + at * kLanes, _mm512_mul_ps(load(row.shares + at * kLanes), factor));
}

[[gnu::noinline]] void mean_states(const FirstRow& row, std::size_t heads) {
    for (std::size_t column = 0; column < row.width; column += kPanel) {
        for (std::size_t first = 0; first < heads; first += kMeans) {
            __m512 sums[kMeans][kVectors];
#pragma GCC unroll 4
            for (std::size_t head = 0; head < kMeans; ++head)
#pragma GCC unroll 4
                for (std::size_t vector = 0; vector < kVectors; ++vector) sums[head][vector] = _mm512_setzero_ps();
            for (std::size_t at = 0; at < row.length; ++at) {
                const float* state = row.states + at * row.width + column;
                const float* shares = row.shares + at * kLanes + first;
#pragma GCC unroll 4
                for (std::size_t head = 0; head < kMeans; ++head) {
                    const __m512 share = _mm512_set1_ps(shares[head]);
#pragma GCC unroll 4
                    for (std::size_t vector = 0; vector < kVectors; ++vector)
                        sums[head][vector] = _mm512_fmadd_ps(share, load(state + vector * kLanes), sums[head][vector]);
                }
            }
#pragma GCC unroll 4
            for (std::size_t head = 0; head < kMeans; ++head)
#pragma GCC unroll 4
                for (std::size_t vector = 0; vector < kVectors; ++vector)
                    store(row.means + (first + head) * row.width + column + vector * kLanes, sums[head][vector]);
        }
    }
}

}  // namespace

}  // namespace rerankd
