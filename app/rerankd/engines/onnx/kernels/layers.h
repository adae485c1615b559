// Embeddings and layers of encoders of BERT's kind with int8 weights, each computed as one: products, attention,
// normalisation and rounding, a block of tokens at a time, whose numbers stay in the processor's cache. docs/adr/0012
// says why.
//
// A token is rounded by itself, to 16 bits in attention with those of its own sequence: what it becomes does not depend
// on what else is computed with it, as long as padding is hidden from every query.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace rerankd {

// Whether this processor has the instructions that the kernels are made of: AVX-512 with VNNI.
bool supported();

struct Free {
    void operator()(void* memory) const;
};

// A product with a constant matrix: weights of shape [in, out], a scale and a bias for each column. Both sizes are
// multiples of 64.
struct Linear {
    Linear(const std::int8_t* weights, const float* scales, const float* bias, std::size_t in, std::size_t out);

    std::size_t in, out;
    // 64 columns after 64 columns; in each four rows after four rows; in these a column's four weights side by side.
    std::unique_ptr<std::int8_t[], Free> panels;
    // What is added to a column's sum because activations are stored as 1 to 255 instead of -127 to 127.
    std::vector<std::int32_t> offsets;
    std::vector<float> scales, bias;
};

struct Normalisation {
    std::vector<float> weight, bias;
    float epsilon;
};

// Int8 vectors of shape [rows, width], a scale for each.
struct Table {
    const std::int8_t* vectors;
    const float* scales;
};

// Which rows of a table, shape [sequences, length]; a stride of 0: the same for all.
struct Indices {
    const std::int64_t* values;
    std::size_t sequence_stride;
};

struct Layer {
    std::shared_ptr<const Linear> query_key_value, output, up, down;
    Normalisation after_attention, after_feed_forward;
    std::size_t heads;
    // What a product of query and key is multiplied with.
    float score_scale;
    // Whether only the first token of each sequence goes on. The last layer's alone may.
    bool first_row;
};

// The longest sequence, in tokens.
constexpr std::size_t kLongest = 16384;

// A bias up to this one hides a key: its weight is 1e-26 of what it would be.
constexpr float kUnseen = -60;

// What is added to the scores of attention, shape [sequences, queries, keys]; a stride of 0: the same for all.
struct AttentionBias {
    const float* values;
    std::size_t sequence_stride, query_stride;
};

// The normalised sums of a vector of each table, shape [sequences, length, width].
void embed(const std::vector<Table>& tables, const Normalisation& by, const std::vector<Indices>& indices,
           std::size_t sequences, std::size_t length, float* result);

// What one or more layers make of hidden states, shape [sequences, length, width], which are overwritten. The result
// has the same shape, or one row for each sequence. On one thread. Padding costs nothing, and its result is 0: tokens
// at a sequence's end that the bias hides from every query, also their own; or, where only the first row goes on, from
// all before them.
void forward(const std::vector<Layer>& layers, float* hidden, std::size_t sequences, std::size_t length,
             const AttentionBias& bias, float* result);

}  // namespace rerankd
