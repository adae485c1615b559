// Embeddings and encoder layers of BERT's kind with int8 weights. Each layer is one fused kernel: matmuls, attention,
// layer norm and quantization work on a block of tokens that stays in the CPU's cache (docs/adr/0012).
//
// Each token is quantized by itself, and in attention together with its own sequence. So its result does not depend on
// the rest of the batch, provided that padding is masked for every query.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace rerankd {

// Whether this CPU has the instructions that the kernels need: AVX-512 with VNNI.
bool supported();

struct AlignedDelete {
    void operator()(void* memory) const;
};

// A linear layer: int8 weights of shape [in, out], a scale and a bias per column. Both sizes are multiples of 64.
struct Linear {
    Linear(const std::int8_t* weights, const float* scales, const float* bias, std::size_t in, std::size_t out);

    std::size_t in, out;
    // Panels of 64 columns. Within a panel, four rows at a time, with the four weights of a column side by side.
    std::unique_ptr<std::int8_t[], AlignedDelete> panels;
    // Compensates each column's sum for the zero point: activations are stored as 1 to 255 instead of -127 to 127.
    std::vector<std::int32_t> offsets;
    std::vector<float> scales, bias;
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

struct Layer {
    std::shared_ptr<const Linear> query_key_value, output, up, down;
    LayerNorm attention_norm, output_norm;
    std::size_t heads;
    // The factor of QK^T.
    float score_scale;
    // Whether the output is the first token of each sequence only. Allowed for the last layer.
    bool first_row;
};

// The maximum sequence length, in tokens.
constexpr std::size_t kMaxLength = 16384;

// A bias at or below this masks a key: it multiplies the key's weight by 1e-26.
constexpr float kMasked = -60;

// Added to the attention scores, shape [sequences, queries, keys]. A stride of 0 broadcasts.
struct AttentionBias {
    const float* values;
    std::size_t sequence_stride, query_stride;
};

// Layer norm of the sum of one vector from each table, shape [sequences, length, width].
void embed(const std::vector<EmbeddingTable>& tables, const LayerNorm& norm, const std::vector<RowIndices>& indices,
           std::size_t sequences, std::size_t length, float* result);

// Apply one or more layers to hidden states of shape [sequences, length, width], which are overwritten. The result has
// the same shape, or one row per sequence. Runs on the calling thread. Padding is skipped, and its result is 0. Padding
// means trailing tokens that the bias masks for every query, including their own; if only the first row is computed,
// for every query that it depends on.
void forward(const std::vector<Layer>& layers, float* hidden, std::size_t sequences, std::size_t length,
             const AttentionBias& bias, float* result);

}  // namespace rerankd
