#include "layers.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>

#if defined(__x86_64__)

#include "even_gelu.h"
#include "instructions.h"

// From here on, all code may use the instructions.
#include "attention.h"
#include "first_row.h"
#include "gemm.h"
#include "vectors.h"

namespace rerankd {

namespace {

constexpr std::size_t kBlockTokens = 128;  // tokens whose vectors stay in the L2 cache during a layer

// Memory that grows to the largest size so far and is reused.
template <class T>
class Buffer {
  public:
    T* reserve(std::size_t count) {
        if (count > size_) {
            memory_ = allocate_aligned<T>(count);
            size_ = count;
        }
        return memory_.get();
    }

  private:
    std::unique_ptr<T[], AlignedDelete> memory_;
    std::size_t size_ = 0;
};

struct Workspace {
    Buffer<std::uint8_t> quantized, quantized_inner, first_rows;
    Buffer<float> scales, inner_scales, query_key_value, context, scores, weight_scales, inner;
    Buffer<std::int16_t> quantized_queries, keys, values, weights;
    Buffer<float> first_scales, queries, folded_query, probabilities, means;
};

// Sequences packed without padding. Sequence i has the tokens first[i] to first[i + 1] - 1.
struct Packed {
    std::vector<std::size_t> first;
    std::size_t length;  // including padding: the row length of the bias

    std::size_t sequences() const { return first.size() - 1; }
    std::size_t tokens() const { return first.back(); }
    std::size_t tokens(std::size_t from, std::size_t end) const { return first[end] - first[from]; }

    // The end of the block of sequences that starts at `from`. A block has at least one sequence.
    std::size_t block_end(std::size_t from) const {
        std::size_t end = from + 1;
        while (end < sequences() && tokens(from, end + 1) <= kBlockTokens) ++end;
        return end;
    }
};

// The length of a sequence without padding: up to the last token that any query sees. With `first_row`, only queries
// count that the first token depends on, directly or through other tokens.
std::size_t unpadded_length(const float* bias, std::size_t query_stride, std::size_t length, bool first_row) {
    std::size_t seen = 1;
    for (std::size_t query = 0; query < (first_row ? seen : length); ++query) {
        std::size_t key = length;
        while (key > seen && bias[query * query_stride + key - 1] <= kMasked) --key;
        seen = key;
        if (query_stride == 0) break;
    }
    return seen;
}

Packed pack(float* hidden, std::size_t sequences, std::size_t length, std::size_t width, const AttentionBias& bias,
            bool first_row) {
    Packed packed{{0}, length};
    for (std::size_t sequence = 0; sequence < sequences; ++sequence) {
        const float* of_sequence = bias.values + sequence * bias.sequence_stride;
        const std::size_t first = packed.tokens();
        const std::size_t count = unpadded_length(of_sequence, bias.query_stride, length, first_row);
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

// Attention of the sequences [first, end). Their queries, keys and values have the shape [3, heads, tokens, HeadSize].
template <std::size_t HeadSize>
void attend_block(const Layer& layer, const float* query_key_value, const Packed& packed, std::size_t first,
                  std::size_t end, const AttentionBias& bias, Workspace& workspace, float* context) {
    const std::size_t width = layer.output->in, longest = round_up(packed.length, kLanes);
    const std::size_t tokens = packed.tokens(first, end);
    std::int16_t* queries = workspace.quantized_queries.reserve(HeadSize * longest);
    std::int16_t* keys = workspace.keys.reserve(HeadSize * longest);
    std::int16_t* values = workspace.values.reserve(HeadSize * longest);
    Head head;
    head.queries = queries;
    head.keys = keys;
    head.values = values;
    head.scores = workspace.scores.reserve(kTileRows * longest);
    head.weights = workspace.weights.reserve(kTileRows * longest);
    head.weight_scales = workspace.weight_scales.reserve(kTileRows);
    head.stride = width;
    for (std::size_t sequence = first; sequence < end; ++sequence) {
        const std::size_t before = packed.tokens(first, sequence), length = packed.tokens(sequence, sequence + 1);
        const float* of_sequence = bias.values + sequence * bias.sequence_stride;
        head.length = length;
        head.padded = round_up(length, kLanes);
        for (std::size_t number = 0; number < layer.heads; ++number) {
            const float* query = query_key_value + (number * tokens + before) * HeadSize;
            const float *key = query + tokens * width, *value = key + tokens * width;
            const float query_scale = symmetric_scale(query, length * HeadSize, kQueryKeyMax<HeadSize>);
            const float key_scale = symmetric_scale(key, length * HeadSize, kQueryKeyMax<HeadSize>);
            head.value_scale = symmetric_scale(value, length * HeadSize, kValueMax);
            head.score_scale = layer.score_scale * query_scale * key_scale;
            quantize_queries<HeadSize>(query, length, query_scale, queries);
            quantize_keys<HeadSize>(key, length, head.padded, key_scale, keys);
            quantize_values<HeadSize>(value, length, head.value_scale, values);
            head.to = context + before * width + number * HeadSize;
            attend<HeadSize>(head, of_sequence, bias.query_stride);
        }
    }
}

// Attention of one sequence's first token, given its query and the states of all tokens.
template <std::size_t HeadSize>
void attend_first_row(const Layer& layer, const float* query, const float* states, std::size_t length,
                      const float* bias, Workspace& workspace, float* context) {
    const Linear& linear = *layer.query_key_value;
    float* folded_query = workspace.folded_query.reserve(linear.in * kLanes);
    const FirstRow row{states,
                       length,
                       linear.in,
                       layer.score_scale,
                       folded_query,
                       workspace.probabilities.reserve(round_up(length, kTokensAtOnce) * kLanes),
                       workspace.means.reserve(kLanes * linear.in)};
    for (std::size_t first = 0; first < layer.heads; first += kLanes) {
        const std::size_t heads = std::min(kLanes, layer.heads - first);
        std::fill_n(folded_query, linear.in * kLanes, 0.0f);
        for (std::size_t head = 0; head < heads; ++head) {
            const std::size_t column = (first + head) * HeadSize;
            multiply_by_vector<HeadSize>(linear, linear.in + column, query + column, folded_query + head);
        }
        score_states(row, bias);
        softmax_states(row);
        weighted_sum_of_states(row, heads);
        for (std::size_t head = 0; head < heads; ++head) {
            const std::size_t column = (first + head) * HeadSize;
            multiply_vector_by<HeadSize>(row.means + head * linear.in, linear, 2 * linear.in + column,
                                         context + column);
        }
    }
}

// The part of a layer after attention, for a block of tokens: output projection and feed-forward network.
void feed_forward(const Layer& layer, const float* context, float* states, const QuantizedRows& quantized,
                  std::size_t count, Workspace& workspace) {
    const std::size_t width = layer.output->out, inner_width = layer.up->out;
    float* inner = workspace.inner.reserve(count * inner_width);
    const QuantizedRows inner_quantized{workspace.quantized_inner.reserve(count * inner_width),
                                        workspace.inner_scales.reserve(count)};
    const auto add = [&](std::size_t row, std::size_t column, __m512 value) {
        float* state = states + row * width + column;
        store(state, _mm512_add_ps(load(state), value));
    };
    quantize_all(context, width, count, quantized);
    gemm(*layer.output, quantized, count, add);
    layer_norm_quantize_all(states, width, count, layer.attention_norm, quantized);
    gemm(*layer.up, quantized, count, [&](std::size_t row, std::size_t column, __m512 value) {
        store(inner + row * inner_width + column, gelu(value));
    });
    quantize_all(inner, inner_width, count, inner_quantized);
    gemm(*layer.down, inner_quantized, count, add);
    layer_norm_quantize_all(states, width, count, layer.output_norm, quantized);
}

// Any number of tokens, in blocks of about the same size.
void feed_forward_blocks(const Layer& layer, const float* context, float* states, const QuantizedRows& quantized,
                         std::size_t count, Workspace& workspace) {
    const std::size_t width = layer.output->out, blocks = (count + kBlockTokens - 1) / kBlockTokens;
    const std::size_t size = round_up((count + blocks - 1) / blocks, kTileRows);
    for (std::size_t first = 0; first < count; first += size)
        feed_forward(layer, context + first * width, states + first * width, quantized.from(first, width),
                     std::min(size, count - first), workspace);
}

// A layer for all tokens. `quantized` holds the quantized input states and is replaced by the output's.
template <std::size_t HeadSize>
void forward_full(const Layer& layer, float* hidden, const QuantizedRows& quantized, const Packed& packed,
                  const AttentionBias& bias, Workspace& workspace) {
    const std::size_t width = layer.output->out;
    for (std::size_t first = 0, end; first < packed.sequences(); first = end) {
        end = packed.block_end(first);
        const std::size_t tokens = packed.tokens(first, end);
        const QuantizedRows of_block = quantized.from(packed.first[first], width);
        float* query_key_value = workspace.query_key_value.reserve(tokens * 3 * width);
        gemm(*layer.query_key_value, of_block, tokens, [&](std::size_t row, std::size_t column, __m512 value) {
            store(query_key_value + (column / HeadSize * tokens + row) * HeadSize + column % HeadSize, value);
        });
        float* context = workspace.context.reserve(tokens * width);
        attend_block<HeadSize>(layer, query_key_value, packed, first, end, bias, workspace, context);
        feed_forward_blocks(layer, context, hidden + packed.first[first] * width, of_block, tokens, workspace);
    }
}

// A layer for each sequence's first token only.
template <std::size_t HeadSize>
void forward_first_row(const Layer& layer, const float* hidden, const QuantizedRows& quantized, const Packed& packed,
                       const AttentionBias& bias, Workspace& workspace, float* result) {
    const std::size_t width = layer.output->out, sequences = packed.sequences();
    const QuantizedRows rows{workspace.first_rows.reserve(sequences * width),
                             workspace.first_scales.reserve(sequences)};
    for (std::size_t sequence = 0; sequence < sequences; ++sequence) {
        const std::size_t first = packed.first[sequence];
        std::copy_n(hidden + first * width, width, result + sequence * width);
        std::copy_n(quantized.values + first * width, width, rows.values + sequence * width);
        rows.scales[sequence] = quantized.scales[first];
    }
    float* queries = workspace.queries.reserve(sequences * width);
    gemm(*layer.query_key_value, rows, sequences, {0, width},
         [&](std::size_t row, std::size_t column, __m512 value) { store(queries + row * width + column, value); });
    float* context = workspace.context.reserve(sequences * width);
    for (std::size_t sequence = 0; sequence < sequences; ++sequence)
        attend_first_row<HeadSize>(layer, queries + sequence * width, hidden + packed.first[sequence] * width,
                                   packed.tokens(sequence, sequence + 1), bias.values + sequence * bias.sequence_stride,
                                   workspace, context + sequence * width);
    feed_forward_blocks(layer, context, result, rows, sequences, workspace);
}

template <std::size_t HeadSize>
void forward_layer(const Layer& layer, float* hidden, const QuantizedRows& quantized, const Packed& packed,
                   const AttentionBias& bias, Workspace& workspace, float* result) {
    if (layer.first_row) forward_first_row<HeadSize>(layer, hidden, quantized, packed, bias, workspace, result);
    else forward_full<HeadSize>(layer, hidden, quantized, packed, bias, workspace);
}

}  // namespace

bool supported() { return cpu_has_instructions(); }

void AlignedDelete::operator()(void* memory) const { std::free(memory); }

Linear::Linear(const std::int8_t* weights, const float* scales, const float* bias, std::size_t in, std::size_t out)
    : in(in), out(out), panels(allocate_aligned<std::int8_t>(in * out)), offsets(out), scales(scales, scales + out),
      bias(bias, bias + out) {
    for (std::size_t row = 0; row < in; ++row) {
        for (std::size_t column = 0; column < out; ++column) {
            const std::int8_t weight = weights[row * out + column];
            panels[column / kPanelColumns * kPanelColumns * in + row / 4 * 4 * kPanelColumns +
                   column % kPanelColumns * 4 + row % 4] = weight;
            offsets[column] -= kZeroPoint * weight;
        }
    }
}

void embed(const std::vector<EmbeddingTable>& tables, const LayerNorm& norm, const std::vector<RowIndices>& indices,
           std::size_t sequences, std::size_t length, float* result) {
    const std::size_t width = norm.weight.size(), tokens = sequences * length;
    const auto row_of = [&](std::size_t number, std::size_t token) {
        return indices[number].values[token / length * indices[number].sequence_stride + token % length];
    };
    for (std::size_t token = 0; token < tokens; ++token) {
        float* to = result + token * width;
        for (std::size_t number = 0; number < tables.size(); ++number) {
            const EmbeddingTable& table = tables[number];
            // Rows are scattered in memory: prefetch those of a later token.
            const std::int8_t* later = table.vectors + row_of(number, std::min(token + 4, tokens - 1)) * width;
            for (std::size_t at = 0; at < width; at += 64)
                _mm_prefetch(reinterpret_cast<const char*>(later + at), _MM_HINT_T0);
            const std::int64_t row = row_of(number, token);
            const std::int8_t* from = table.vectors + row * width;
            const __m512 scale = _mm512_set1_ps(table.scales[row]);
            for (std::size_t column = 0; column < width; column += kLanes) {
                const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + column));
                const __m512 vector = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)), scale);
                store(to + column, number == 0 ? vector : _mm512_add_ps(vector, load(to + column)));
            }
        }
        if (token % 4 == 3) layer_norm_rows<4>(to - 3 * width, width, norm);
        else if (token + 1 == tokens)
            for (std::size_t left = 0; left <= token % 4; ++left) layer_norm_rows<1>(to - left * width, width, norm);
    }
}

void forward(const std::vector<Layer>& layers, float* hidden, std::size_t sequences, std::size_t length,
             const AttentionBias& bias, float* result) {
    static thread_local Workspace workspace;
    const std::size_t width = layers.front().output->in;
    const Packed packed = pack(hidden, sequences, length, width, bias, layers.back().first_row);
    const QuantizedRows quantized{workspace.quantized.reserve(packed.tokens() * width),
                                  workspace.scales.reserve(packed.tokens())};
    quantize_all(hidden, width, packed.tokens(), quantized);
    for (const Layer& layer : layers) {
        if (layer.output->in / layer.heads == 32)
            forward_layer<32>(layer, hidden, quantized, packed, bias, workspace, result);
        else forward_layer<64>(layer, hidden, quantized, packed, bias, workspace, result);
    }
    if (!layers.back().first_row) unpack(hidden, packed, width, result);
}

}  // namespace rerankd

#if defined(__clang__) && !defined(RERANKD_INSTRUCTIONS)
#pragma clang attribute pop
#endif

#else

namespace rerankd {

bool supported() { return false; }

void AlignedDelete::operator()(void* memory) const { std::free(memory); }

Linear::Linear(const std::int8_t*, const float*, const float*, std::size_t in, std::size_t out) : in(in), out(out) {}

void embed(const std::vector<EmbeddingTable>&, const LayerNorm&, const std::vector<RowIndices>&, std::size_t,
           std::size_t, float*) {
    throw std::logic_error("the kernels need an x86-64 CPU");
}

void forward(const std::vector<Layer>&, float*, std::size_t, std::size_t, const AttentionBias&, float*) {
    throw std::logic_error("the kernels need an x86-64 CPU");
}

}  // namespace rerankd

#endif
