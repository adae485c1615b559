// Embeddings and encoder layers, written once for all instruction sets.
//
// Included after the header of an instruction set (isa/) and a gemm. All functions are in an unnamed namespace: the
// linker must never take one that was compiled for another CPU.

#pragma once

#include "attention.h"
#include "first_row.h"
#include "vectors.h"

namespace rerankd {

namespace {

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
    Aligned<T> memory_;
    std::size_t size_ = 0;
};

struct Workspace {
    Buffer<Activation> quantized, quantized_inner, first_rows;
    Buffer<float> scales, inner_scales, query_key_value, context, inner, scores, of_rows, of_queries;
    Buffer<float> window_bias, edges;
    Buffer<std::int16_t> quantized_queries, keys, values, weights;
    Buffer<float> first_scales, queries, folded_query, probabilities, means, normalized;
};

// The memory of one head after another, for sequences of at most `longest` tokens.
template <std::size_t HeadSize>
Head make_head(const Layer& layer, std::size_t longest, Workspace& workspace) {
    Head head;
    head.window = layer.window;
    head.scores = workspace.scores.reserve(kTileRows * kKeyBlock);
    head.weights = workspace.weights.reserve(kTileRows * kKeyBlock);
    head.weight_scales = workspace.of_rows.reserve(2 * kTileRows);
    head.kept = head.weight_scales + kTileRows;
    head.largest = workspace.of_queries.reserve(2 * kQueryBlock);
    head.totals = head.largest + kQueryBlock;
    head.stride = layer.output->in;
    if (layer.window < longest) {
        head.window_bias = workspace.window_bias.reserve(kTileRows * kKeyBlock);
        float* edges = workspace.edges.reserve(2 * (layer.window + kEdge) + 1);
        mark_edges(layer.window, edges);
        head.edges = edges;
    }
    return head;
}

// Attention of one head of one sequence, for the first `query_count` of its `length` tokens. Queries and keys are
// turned in place.
template <std::size_t HeadSize>
void attend_head(const Layer& layer, float* query, std::size_t query_count, float* key, const float* value,
                 std::size_t length, Workspace& workspace, Head& head) {
    if (layer.rotary) {
        const float* turns = layer.rotary->turns(length);
        rotate<HeadSize>(query, query_count, turns);
        rotate<HeadSize>(key, length, turns);
    }
    head.query_count = query_count;
    head.length = length;
    head.padded = round_up(length, kLanes);
    std::int16_t* queries = workspace.quantized_queries.reserve(HeadSize * query_count);
    std::int16_t* keys = workspace.keys.reserve(HeadSize * head.padded);
    std::int16_t* values = workspace.values.reserve(HeadSize * head.padded);
    const float query_scale = symmetric_scale(query, query_count * HeadSize, kQueryKeyMax<HeadSize>);
    const float key_scale = symmetric_scale(key, length * HeadSize, kQueryKeyMax<HeadSize>);
    head.value_scale = symmetric_scale(value, length * HeadSize, kValueMax);
    head.score_scale = layer.score_scale * query_scale * key_scale;
    quantize_queries<HeadSize>(query, query_count, query_scale, queries);
    quantize_keys<HeadSize>(key, length, head.padded, key_scale, keys);
    quantize_values<HeadSize>(value, length, head.value_scale, values);
    head.queries = queries;
    head.keys = keys;
    head.values = values;
    attend<HeadSize>(head);
}

// Attention of the sequences [first, end). Their queries, keys and values have the shape [3, heads, tokens, HeadSize].
template <std::size_t HeadSize>
void attend_block(const Layer& layer, float* query_key_value, const Packed& packed, std::size_t first, std::size_t end,
                  const AttentionBias& bias, Workspace& workspace, float* context) {
    const std::size_t width = layer.output->in, tokens = packed.tokens(first, end);
    Head head = make_head<HeadSize>(layer, packed.length, workspace);
    head.bias_stride = bias.query_stride;
    for (std::size_t sequence = first; sequence < end; ++sequence) {
        const std::size_t before = packed.tokens(first, sequence), length = packed.tokens(sequence, sequence + 1);
        head.bias = bias.values + sequence * bias.sequence_stride;
        for (std::size_t number = 0; number < layer.heads; ++number) {
            float* query = query_key_value + (number * tokens + before) * HeadSize;
            float *key = query + tokens * width, *value = key + tokens * width;
            head.to = context + before * width + number * HeadSize;
            attend_head<HeadSize>(layer, query, length, key, value, length, workspace, head);
        }
    }
}

// Attention of one sequence's first token with rotary positions, given its query and the quantized states of all
// tokens. Keys and values are those of the tokens that it sees.
template <std::size_t HeadSize>
void attend_first_of_rotary(const Layer& layer, float* query, const QuantizedRows& quantized, std::size_t length,
                            const float* bias, Workspace& workspace, float* context) {
    const std::size_t width = layer.output->in, seen = std::min(length, layer.window + 1);
    float* key_value = workspace.query_key_value.reserve(2 * seen * width);
    gemm(*layer.query_key_value, quantized, seen, {width, 3 * width},
         [&](std::size_t row, std::size_t column, Floats value) {
             const std::size_t at = column - width;
             store(key_value + (at / HeadSize * seen + row) * HeadSize + at % HeadSize, value);
         });
    Head head = make_head<HeadSize>(layer, seen, workspace);
    head.bias = bias;
    head.bias_stride = 0;
    for (std::size_t number = 0; number < layer.heads; ++number) {
        float *key = key_value + number * seen * HeadSize, *value = key + seen * width;
        head.to = context + number * HeadSize;
        attend_head<HeadSize>(layer, query + number * HeadSize, 1, key, value, seen, workspace, head);
    }
}

// Attention of one sequence's first token without rotary positions, given its query and the states of all tokens.
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
    const auto columns = [&](std::size_t first) {
        return HeadColumns{layer.key_value_rows.data() + first, linear.in, 2 * linear.in,
                           &linear.scales[linear.in + first], &linear.bias[linear.in + first]};
    };
    for (std::size_t first = 0; first < layer.heads; first += kLanes) {
        const std::size_t heads = std::min(kLanes, layer.heads - first);
        std::fill_n(folded_query, linear.in * kLanes, 0.0f);
        for (std::size_t head = 0; head < heads; ++head) {
            const std::size_t column = (first + head) * HeadSize;
            multiply_by_vector<HeadSize>(columns(column), query + column, folded_query + head);
        }
        score_states(row, bias);
        softmax_states(row);
        weighted_sum_of_states(row, heads);
        for (std::size_t head = 0; head < heads; ++head) {
            const std::size_t column = (first + head) * HeadSize;
            multiply_vector_by<HeadSize>(row.means + head * linear.in, columns(linear.in + column), context + column);
        }
    }
}

// The part of a layer after attention, for a block of tokens: output projection and feed-forward network. The last
// layer's output norm is one of states, also with `pre_norm`.
void feed_forward(const Layer& layer, bool last, const float* context, float* states, const QuantizedRows& quantized,
                  std::size_t count, Workspace& workspace) {
    const std::size_t width = layer.output->out, inner_width = layer.down->in;
    float* scratch = layer.pre_norm ? workspace.normalized.reserve(4 * width) : nullptr;
    float* inner = workspace.inner.reserve(count * inner_width);
    const QuantizedRows inner_quantized{workspace.quantized_inner.reserve(count * inner_width),
                                        workspace.inner_scales.reserve(count)};
    const auto add = [&](std::size_t row, std::size_t column, Floats value) {
        float* state = states + row * width + column;
        store(state, load(state) + value);
    };
    quantize_all(context, width, count, quantized);
    gemm(*layer.output, quantized, count, add);
    layer_norm_quantize_all(states, width, count, layer.attention_norm, quantized, scratch);
    gemm(*layer.up, quantized, count, {0, inner_width}, [&](std::size_t row, std::size_t column, Floats value) {
        store(inner + row * inner_width + column, gelu(value));
    });
    if (layer.gated()) {
        gemm(*layer.up, quantized, count, {inner_width, 2 * inner_width},
             [&](std::size_t row, std::size_t column, Floats value) {
                 float* to = inner + row * inner_width + column - inner_width;
                 store(to, load(to) * value);
             });
    }
    quantize_all(inner, inner_width, count, inner_quantized);
    gemm(*layer.down, inner_quantized, count, add);
    layer_norm_quantize_all(states, width, count, layer.output_norm, quantized, last ? nullptr : scratch);
}

// Any number of tokens, in blocks of about the same size.
void feed_forward_blocks(const Layer& layer, bool last, const float* context, float* states,
                         const QuantizedRows& quantized, std::size_t count, Workspace& workspace) {
    const std::size_t width = layer.output->out, blocks = (count + kBlockTokens - 1) / kBlockTokens;
    const std::size_t size = round_up((count + blocks - 1) / blocks, kTileRows);
    for (std::size_t first = 0; first < count; first += size)
        feed_forward(layer, last, context + first * width, states + first * width, quantized.from(first, width),
                     std::min(size, count - first), workspace);
}

// A layer for all tokens. `quantized` holds the quantized input states and is replaced by the output's.
template <std::size_t HeadSize>
void forward_full(const Layer& layer, bool last, float* hidden, const QuantizedRows& quantized, const Packed& packed,
                  const AttentionBias& bias, Workspace& workspace) {
    const std::size_t width = layer.output->out;
    for (std::size_t first = 0, end; first < packed.sequences(); first = end) {
        end = packed.block_end(first);
        const std::size_t tokens = packed.tokens(first, end);
        const QuantizedRows of_block = quantized.from(packed.first[first], width);
        float* query_key_value = workspace.query_key_value.reserve(tokens * 3 * width);
        gemm(*layer.query_key_value, of_block, tokens, [&](std::size_t row, std::size_t column, Floats value) {
            store(query_key_value + (column / HeadSize * tokens + row) * HeadSize + column % HeadSize, value);
        });
        float* context = workspace.context.reserve(tokens * width);
        attend_block<HeadSize>(layer, query_key_value, packed, first, end, bias, workspace, context);
        feed_forward_blocks(layer, last, context, hidden + packed.first[first] * width, of_block, tokens, workspace);
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
         [&](std::size_t row, std::size_t column, Floats value) { store(queries + row * width + column, value); });
    float* context = workspace.context.reserve(sequences * width);
    for (std::size_t sequence = 0; sequence < sequences; ++sequence) {
        const std::size_t first = packed.first[sequence], length = packed.tokens(sequence, sequence + 1);
        const float* of_sequence = bias.values + sequence * bias.sequence_stride;
        float *query = queries + sequence * width, *to = context + sequence * width;
        if (layer.rotary)
            attend_first_of_rotary<HeadSize>(layer, query, quantized.from(first, width), length, of_sequence, workspace,
                                             to);
        else attend_first_row<HeadSize>(layer, query, hidden + first * width, length, of_sequence, workspace, to);
    }
    feed_forward_blocks(layer, true, context, result, rows, sequences, workspace);
}

template <std::size_t HeadSize>
void forward_layer(const Layer& layer, bool last, float* hidden, const QuantizedRows& quantized, const Packed& packed,
                   const AttentionBias& bias, Workspace& workspace, float* result) {
    if (layer.first_row) forward_first_row<HeadSize>(layer, hidden, quantized, packed, bias, workspace, result);
    else forward_full<HeadSize>(layer, last, hidden, quantized, packed, bias, workspace);
}

void embed_tokens(const std::vector<EmbeddingTable>& tables, const LayerNorm& norm,
                  const std::vector<RowIndices>& indices, std::size_t sequences, std::size_t length, float* result) {
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
            for (std::size_t at = 0; at < width; at += 64) prefetch_to_l1(later + at);
            const std::int64_t row = row_of(number, token);
            const std::int8_t* from = table.vectors + row * width;
            const Floats scale = broadcast(table.scales[row]);
            for (std::size_t column = 0; column < width; column += kLanes) {
                const Floats vector = load_int8(from + column) * scale;
                store(to + column, number == 0 ? vector : vector + load(to + column));
            }
        }
        if (token % 4 == 3) layer_norm_rows<4>(to - 3 * width, width, norm);
        else if (token + 1 == tokens)
            for (std::size_t left = 0; left <= token % 4; ++left) layer_norm_rows<1>(to - left * width, width, norm);
    }
}

void forward_layers(const std::vector<Layer>& layers, float* hidden, const Packed& packed, const AttentionBias& bias,
                    float* first_rows) {
    static thread_local Workspace workspace;
    const std::size_t width = layers.front().output->in;
    const QuantizedRows quantized{workspace.quantized.reserve(packed.tokens() * width),
                                  workspace.scales.reserve(packed.tokens())};
    quantize_all(hidden, width, packed.tokens(), quantized);
    for (const Layer& layer : layers) {
        const bool last = &layer == &layers.back();
        if (layer.output->in / layer.heads == 32)
            forward_layer<32>(layer, last, hidden, quantized, packed, bias, workspace, first_rows);
        else forward_layer<64>(layer, last, hidden, quantized, packed, bias, workspace, first_rows);
    }
}

constexpr InstructionSet instruction_set(const char* name) {
    return {name, kLanes, kLayout, embed_tokens, forward_layers, peak};
}

}  // namespace

}  // namespace rerankd
