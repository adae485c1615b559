// Attention of a sequence's first token only. Since QK^T = (Q W_K^T) H^T, we fold W_K into the query and never compute
// K. Likewise, W_V is applied to the weighted sum of states instead of to each state. The bias of K adds the same
// constant to all scores, which softmax cancels. The states stay in float32.
//
// Included after the header of an instruction set (isa/).

#pragma once

#include "attention.h"

namespace rerankd {

namespace {

constexpr std::size_t kTokensAtOnce = 8;  // tokens per step
constexpr std::size_t kHeadsAtOnce = 4;   // heads per step

// `HeadSize` columns of a matrix, at `weights` and with a row stride, and their scales and biases.
struct HeadColumns {
    const std::int8_t* weights;
    std::size_t rows, stride;
    const float *scales, *bias;
};

// A matrix times a vector, without bias. The result has shape [rows] and stride `kLanes`.
template <std::size_t HeadSize>
[[gnu::noinline]] void multiply_by_vector(const HeadColumns& columns, const float* vector, float* to) {
    Floats factors[HeadSize / kLanes];
#pragma GCC unroll 16
    for (std::size_t at = 0; at < HeadSize; at += kLanes)
        factors[at / kLanes] = load(vector + at) * load(columns.scales + at);
    for (std::size_t row = 0; row < columns.rows; ++row) {
        Floats sum = load_int8(columns.weights + row * columns.stride) * factors[0];
#pragma GCC unroll 16
        for (std::size_t at = kLanes; at < HeadSize; at += kLanes)
            sum = multiply_add(load_int8(columns.weights + row * columns.stride + at), factors[at / kLanes], sum);
        to[row * kLanes] = sum_of(sum);
    }
}

// A vector times a matrix, plus the bias.
template <std::size_t HeadSize>
[[gnu::noinline]] void multiply_vector_by(const float* vector, const HeadColumns& columns, float* to) {
    Floats sums[HeadSize / kLanes];
#pragma GCC unroll 16
    for (Floats& sum : sums) sum = broadcast(0);
    for (std::size_t row = 0; row < columns.rows; ++row) {
        const Floats factor = broadcast(vector[row]);
#pragma GCC unroll 16
        for (std::size_t at = 0; at < HeadSize; at += kLanes)
            sums[at / kLanes] =
                multiply_add(load_int8(columns.weights + row * columns.stride + at), factor, sums[at / kLanes]);
    }
#pragma GCC unroll 16
    for (std::size_t at = 0; at < HeadSize; at += kLanes)
        store(to + at, sums[at / kLanes] * load(columns.scales + at) + load(columns.bias + at));
}

// The first token of one sequence, for at most `kLanes` heads, interleaved.
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
        Floats scores[kTokensAtOnce];
#pragma GCC unroll 8
        for (std::size_t number = 0; number < kTokensAtOnce; ++number) {
            states[number] = row.states + std::min(first + number, row.length - 1) * row.width;
            scores[number] = broadcast(0);
        }
        for (std::size_t column = 0; column < row.width; ++column) {
            const Floats folded_query = load(row.folded_query + column * kLanes);
#pragma GCC unroll 8
            for (std::size_t number = 0; number < kTokensAtOnce; ++number)
                scores[number] = multiply_add(broadcast(states[number][column]), folded_query, scores[number]);
        }
        const Floats scale = broadcast(row.score_scale);
#pragma GCC unroll 8
        for (std::size_t number = 0; number < kTokensAtOnce; ++number) {
            const Floats added = broadcast(bias[std::min(first + number, row.length - 1)]);
            store(row.probabilities + (first + number) * kLanes, multiply_add(scores[number], scale, added));
        }
    }
}

// Softmax of the scores, in place.
void softmax_states(const FirstRow& row) {
    Floats largest = load(row.probabilities), sum = broadcast(0);
    for (std::size_t at = 1; at < row.length; ++at) largest = max(largest, load(row.probabilities + at * kLanes));
    for (std::size_t at = 0; at < row.length; ++at) {
        const Floats probability = fast_exp(load(row.probabilities + at * kLanes) - largest);
        sum = sum + probability;
        store(row.probabilities + at * kLanes, probability);
    }
    const Floats factor = divide(broadcast(1), sum);
    for (std::size_t at = 0; at < row.length; ++at)
        store(row.probabilities + at * kLanes, load(row.probabilities + at * kLanes) * factor);
}

[[gnu::noinline]] void weighted_sum_of_states(const FirstRow& row, std::size_t heads) {
    for (std::size_t column = 0; column < row.width; column += kTileColumns) {
        for (std::size_t first = 0; first < heads; first += kHeadsAtOnce) {
            Floats sums[kHeadsAtOnce][kTileVectors];
#pragma GCC unroll 4
            for (std::size_t head = 0; head < kHeadsAtOnce; ++head)
#pragma GCC unroll 4
                for (std::size_t vector = 0; vector < kTileVectors; ++vector) sums[head][vector] = broadcast(0);
            for (std::size_t at = 0; at < row.length; ++at) {
                const float* state = row.states + at * row.width + column;
                const float* probabilities = row.probabilities + at * kLanes + first;
#pragma GCC unroll 4
                for (std::size_t head = 0; head < kHeadsAtOnce; ++head) {
                    const Floats probability = broadcast(probabilities[head]);
#pragma GCC unroll 4
                    for (std::size_t vector = 0; vector < kTileVectors; ++vector)
                        sums[head][vector] =
                            multiply_add(probability, load(state + vector * kLanes), sums[head][vector]);
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
