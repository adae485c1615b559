// Embeddings and encoder layers of BERT's and ModernBERT's kinds with int8 weights. Each layer is one fused kernel:
// matmuls, attention, layer norm and quantization work on a block of tokens that stays in the CPU's cache
// (docs/adr/0012).
//
// Each token is quantized by itself, and in attention together with its own sequence. So its result does not depend on
// the rest of the batch, provided that padding is masked for every query.
//
// The layers are written once (encoder.h) and compiled for several instruction sets (isa/). Code that runs on any CPU
// is in layers.cpp.

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "gelu_table.h"

namespace rerankd {

struct InstructionSet;

struct AlignedDelete {
    void operator()(void* memory) const;
};

template <class T>
using Aligned = std::unique_ptr<T[], AlignedDelete>;

// How an instruction set reads weights: panels of columns. Within a panel, `depth` rows at a time, with those weights
// of a column side by side. Activations are stored with `zero_point` added.
struct Layout {
    std::size_t columns, depth;
    int zero_point;
};

// A linear layer: int8 weights of shape [in, out], a scale and a bias per column. Both sizes are multiples of 64.
struct Linear {
    Linear(const InstructionSet& set, const std::int8_t* weights, const float* scales, const float* bias,
           std::size_t in, std::size_t out);

    const InstructionSet& set;
    std::size_t in, out;
    Aligned<std::int8_t> panels;
    // Compensates each column's sum for the zero point.
    std::vector<std::int32_t> offsets;
    std::vector<float> scales, bias;

    std::int8_t weight(std::size_t row, std::size_t column) const;
};

struct LayerNorm {
    std::vector<float> weight, bias;
    float epsilon;
};

// Int8 vectors of shape [rows, width], with a scale per row.
struct EmbeddingTable {
    const std::int8_t* vectors;
    const float* scales;
};

// Row numbers of a table, shape [sequences, length]. A stride of 0 means the same rows for all sequences.
struct RowIndices {
    const std::int64_t* values;
    std::size_t sequence_stride;
};

// The maximum sequence length, in tokens.
constexpr std::size_t kMaxLength = 16384;

// Rotary positions (Su et al., arXiv:2104.09864): in the queries and keys of the token at `position`, number i and the
// one half a head further are turned by the angle `position * frequencies[i]`.
class Rotary {
  public:
    explicit Rotary(std::vector<float> frequencies);

    std::size_t head_size() const { return 2 * frequencies_.size(); }
    // The cosines and then the sines of each position's angles, shape [length, 2, head_size / 2]. The memory of
    // positions that were never asked for is reserved, but not touched.
    const float* turns(std::size_t length) const;

  private:
    std::vector<float> frequencies_;
    Aligned<float> turns_;
    mutable std::atomic<std::size_t> computed_{0};
    mutable std::mutex computing_;
};

struct Layer {
    std::shared_ptr<const Linear> query_key_value, output, up, down;
    // Normalizes before the feed-forward network, and after it.
    LayerNorm attention_norm, output_norm;
    std::size_t heads;
    // The factor of QK^T.
    float score_scale;
    // Whether the output is the first token of each sequence only. Allowed for the last layer.
    bool first_row;
    // With `first_row` and without rotary positions: the weights of keys and values, shape [width, 2 width].
    std::vector<std::int8_t> key_value_rows;
    // Whether residuals skip the norms (Xiong et al., arXiv:2002.04745): only matmuls read what these make, and the
    // output norm is the next layer's. After the last layer it makes the result.
    bool pre_norm = false;
    // None if null.
    std::shared_ptr<const Rotary> rotary = nullptr;
    // A query sees keys that are at most so far away.
    std::size_t window = kMaxLength;

    // Whether the first half of `up` is activated and then multiplied by the second (Shazeer, arXiv:2002.05202).
    bool gated() const { return up->out == 2 * down->in; }
};

// The weights of keys and values, row by row.
std::vector<std::int8_t> key_value_rows(const Linear& query_key_value);

// A bias at or below this masks a key: it multiplies the key's weight by 1e-26.
constexpr float kMasked = -60;

// Added to the attention scores, shape [sequences, queries, keys]. A stride of 0 broadcasts.
struct AttentionBias {
    const float* values;
    std::size_t sequence_stride, query_stride;
};

constexpr std::size_t kBlockTokens = 128;  // tokens whose vectors stay in the L2 cache during a layer

// Sequences packed without padding. Sequence i has the tokens first[i] to first[i + 1] - 1.
struct Packed {
    std::vector<std::size_t> first;
    std::size_t length;  // including padding: the row length of the bias

    std::size_t sequences() const { return first.size() - 1; }
    std::size_t tokens() const { return first[sequences()]; }
    std::size_t tokens(std::size_t from, std::size_t end) const { return first[end] - first[from]; }
    std::size_t block_end(std::size_t from) const;
};

// The kernels, compiled for one instruction set. `peak` runs int8 multiply-adds on registers and nothing else, and
// returns their number.
struct InstructionSet {
    const char* name;
    std::size_t lanes;  // floats per register
    Layout layout;
    void (*embed)(const std::vector<EmbeddingTable>& tables, const LayerNorm& norm,
                  const std::vector<RowIndices>& indices, std::size_t sequences, std::size_t length, float* result);
    void (*forward)(const std::vector<Layer>& layers, float* hidden, const Packed& packed, const AttentionBias& bias,
                    float* first_rows);
    std::size_t (*peak)(std::size_t steps);
};

// Those that were compiled and that this CPU has, the fastest last.
const std::vector<const InstructionSet*>& instruction_sets();

// Layer norm of the sum of one vector from each table, shape [sequences, length, width].
void embed(const InstructionSet& set, const std::vector<EmbeddingTable>& tables, const LayerNorm& norm,
           const std::vector<RowIndices>& indices, std::size_t sequences, std::size_t length, float* result);

// Apply one or more layers to hidden states of shape [sequences, length, width], which are overwritten. The result has
// the same shape, or one row per sequence. Runs on the calling thread. Padding is skipped, and its result is 0. Padding
// means trailing tokens that the bias masks for every query, including their own; if only the first row is computed,
// for every query that it depends on.
void forward(const std::vector<Layer>& layers, float* hidden, std::size_t sequences, std::size_t length,
             const AttentionBias& bias, float* result);

}  // namespace rerankd
