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

// These, and all below, may use the instructions.
#include "attention.h"
#include "first_row.h"
#include "products.h"
#include "vectors.h"

namespace rerankd {

namespace {

constexpr std::size_t kBlock = 128;  // tokens whose vectors stay in the second-level cache through a layer

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
    Room<std::uint8_t> rounded, rounded_inner, first_rows;
    Room<float> scales, inner_scales, query_key_value, context, scores, weight_scales, inner;
    Room<std::int16_t> rounded_queries, keys, values, weights;
    Room<float> first_scales, queries, readers, shares, means;
};

// Sequences that lie one after another without padding; `first` has one entry more than there are sequences.
struct Packed {
    std::vector<std::size_t> first;
    std::size_t length;  // with padding, which is the stride of the bias

    std::size_t sequences() const { return first.size() - 1; }
    std::size_t tokens() const { return first.back(); }
    std::size_t tokens(std::size_t from, std::size_t end) const { return first[end] - first[from]; }

    // The end of the sequences from one on that a block holds, or of that one.
    std::size_t block_end(std::size_t from) const {
        std::size_t end = from + 1;
        while (end < sequences() && tokens(from, end + 1) <= kBlock) ++end;
        return end;
    }
};

// How many tokens of a sequence anything reads: as many as any token sees or, where only the first one goes on, it and
// those that it sees and so on. The others are padding.
std::size_t length_without_padding(const float* bias, std::size_t query_stride, std::size_t length, bool first_row) {
    std::size_t seen = 1;
    for (std::size_t query = 0; query < (first_row ? seen : length); ++query) {
        std::size_t key = length;
        while (key > seen && bias[query * query_stride + key - 1] <= kUnseen) --key;
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
        const std::size_t count = length_without_padding(of_sequence, bias.query_stride, length, first_row);
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

// Attention of all tokens of the sequences from `first` to before `end`: their queries, keys and values, head by head,
// have the shape [3, heads, tokens, Size].
template <std::size_t Size>
void attend_all(const Layer& layer, const float* query_key_value, const Packed& packed, std::size_t first,
                std::size_t end, const AttentionBias& bias, Rooms& rooms, float* context) {
    const std::size_t width = layer.output->in, longest = rounded_up(packed.length, kLanes);
    const std::size_t tokens = packed.tokens(first, end);
    std::int16_t* queries = rooms.rounded_queries.of(Size * longest);
    std::int16_t* keys = rooms.keys.of(Size * longest);
    std::int16_t* values = rooms.values.of(Size * longest);
    Head head;
    head.queries = queries;
    head.keys = keys;
    head.values = values;
    head.scores = rooms.scores.of(kRows * longest);
    head.weights = rooms.weights.of(kRows * longest);
    head.weight_scales = rooms.weight_scales.of(kRows);
    head.stride = width;
    for (std::size_t sequence = first; sequence < end; ++sequence) {
        const std::size_t before = packed.tokens(first, sequence), length = packed.tokens(sequence, sequence + 1);
        const float* of_sequence = bias.values + sequence * bias.sequence_stride;
        head.length = length;
        head.padded = rounded_up(length, kLanes);
        for (std::size_t number = 0; number < layer.heads; ++number) {
            const float* query = query_key_value + (number * tokens + before) * Size;
            const float *key = query + tokens * width, *value = key + tokens * width;
            const float query_scale = scale_of(query, length * Size, kLargestInScore<Size>);
            const float key_scale = scale_of(key, length * Size, kLargestInScore<Size>);
            head.value_scale = scale_of(value, length * Size, kLargestValue);
            head.score_scale = layer.score_scale * query_scale * key_scale;
            round_queries<Size>(query, length, query_scale, queries);
            round_keys<Size>(key, length, head.padded, key_scale, keys);
            round_values<Size>(value, length, head.value_scale, values);
            head.to = context + before * width + number * Size;
            attend<Size>(head, of_sequence, bias.query_stride);
        }
    }
}

// Attention of one sequence's first token, whose query this is, from the states of all.
template <std::size_t Size>
void attend_first_row(const Layer& layer, const float* query, const float* states, std::size_t length,
                      const float* bias, Rooms& rooms, float* context) {
    const Linear& by = *layer.query_key_value;
    float* readers = rooms.readers.of(by.in * kLanes);
    const FirstRow row{states,
                       length,
                       by.in,
                       layer.score_scale,
                       readers,
                       rooms.shares.of(rounded_up(length, kStates) * kLanes),
                       rooms.means.of(kLanes * by.in)};
    for (std::size_t first = 0; first < layer.heads; first += kLanes) {
        const std::size_t heads = std::min(kLanes, layer.heads - first);
        std::fill_n(readers, by.in * kLanes, 0.0f);
        for (std::size_t head = 0; head < heads; ++head) {
            const std::size_t column = (first + head) * Size;
            multiply_columns<Size>(by, by.in + column, query + column, readers + head);
        }
        score_states(row, bias);
        weigh_states(row);
        mean_states(row, heads);
        for (std::size_t head = 0; head < heads; ++head) {
            const std::size_t column = (first + head) * Size;
            multiply_by_columns<Size>(row.means + head * by.in, by, 2 * by.in + column, context + column);
        }
    }
}

// The second half of a layer for a block of tokens, from what attention has read for them to their new states.
void feed_forward(const Layer& layer, const float* context, float* states, const Rounded& rounded, std::size_t count,
                  Rooms& rooms) {
    const std::size_t width = layer.output->out, inner_width = layer.up->out;
    float* inner = rooms.inner.of(count * inner_width);
    const Rounded inner_rounded{rooms.rounded_inner.of(count * inner_width), rooms.inner_scales.of(count)};
    const auto add = [&](std::size_t row, std::size_t column, __m512 value) {
        float* state = states + row * width + column;
        store(state, _mm512_add_ps(load(state), value));
    };
    round_all(context, width, count, rounded);
    multiply(*layer.output, rounded, count, add);
    normalise_and_round_all(states, width, count, layer.after_attention, rounded);
    multiply(*layer.up, rounded, count, [&](std::size_t row, std::size_t column, __m512 value) {
        store(inner + row * inner_width + column, gelu(value));
    });
    round_all(inner, inner_width, count, inner_rounded);
    multiply(*layer.down, inner_rounded, count, add);
    normalise_and_round_all(states, width, count, layer.after_feed_forward, rounded);
}

// The same for any number of tokens, in blocks of about the same size.
void feed_forward_all(const Layer& layer, const float* context, float* states, const Rounded& rounded,
                      std::size_t count, Rooms& rooms) {
    const std::size_t width = layer.output->out, blocks = (count + kBlock - 1) / kBlock;
    const std::size_t size = rounded_up((count + blocks - 1) / blocks, kRows);
    for (std::size_t first = 0; first < count; first += size)
        feed_forward(layer, context + first * width, states + first * width, rounded.from(first, width),
                     std::min(size, count - first), rooms);
}

// `rounded` are the states of before, and then those of after.
template <std::size_t Size>
void forward_all(const Layer& layer, float* hidden, const Rounded& rounded, const Packed& packed,
                 const AttentionBias& bias, Rooms& rooms) {
    const std::size_t width = layer.output->out;
    for (std::size_t first = 0, end; first < packed.sequences(); first = end) {
        end = packed.block_end(first);
        const std::size_t tokens = packed.tokens(first, end);
        const Rounded of_block = rounded.from(packed.first[first], width);
        float* query_key_value = rooms.query_key_value.of(tokens * 3 * width);
        multiply(*layer.query_key_value, of_block, tokens, [&](std::size_t row, std::size_t column, __m512 value) {
            store(query_key_value + (column / Size * tokens + row) * Size + column % Size, value);
        });
        float* context = rooms.context.of(tokens * width);
        attend_all<Size>(layer, query_key_value, packed, first, end, bias, rooms, context);
        feed_forward_all(layer, context, hidden + packed.first[first] * width, of_block, tokens, rooms);
    }
}

// The same for each sequence's first token alone.
template <std::size_t Size>
void forward_first_row(const Layer& layer, const float* hidden, const Rounded& rounded, const Packed& packed,
                       const AttentionBias& bias, Rooms& rooms, float* result) {
    const std::size_t width = layer.output->out, sequences = packed.sequences();
    const Rounded rows{rooms.first_rows.of(sequences * width), rooms.first_scales.of(sequences)};
    for (std::size_t sequence = 0; sequence < sequences; ++sequence) {
        const std::size_t first = packed.first[sequence];
        std::copy_n(hidden + first * width, width, result + sequence * width);
        std::copy_n(rounded.values + first * width, width, rows.values + sequence * width);
        rows.scales[sequence] = rounded.scales[first];
    }
    float* queries = rooms.queries.of(sequences * width);
    multiply(*layer.query_key_value, rows, sequences, {0, width},
             [&](std::size_t row, std::size_t column, __m512 value) { store(queries + row * width + column, value); });
    float* context = rooms.context.of(sequences * width);
    for (std::size_t sequence = 0; sequence < sequences; ++sequence)
        attend_first_row<Size>(layer, queries + sequence * width, hidden + packed.first[sequence] * width,
                               packed.tokens(sequence, sequence + 1), bias.values + sequence * bias.sequence_stride,
                               rooms, context + sequence * width);
    feed_forward_all(layer, context, result, rows, sequences, rooms);
}

template <std::size_t Size>
void forward_layer(const Layer& layer, float* hidden, const Rounded& rounded, const Packed& packed,
                   const AttentionBias& bias, Rooms& rooms, float* result) {
    if (layer.first_row) forward_first_row<Size>(layer, hidden, rounded, packed, bias, rooms, result);
    else forward_all<Size>(layer, hidden, rounded, packed, bias, rooms);
}

}  // namespace

bool supported() { return has_instructions(); }

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

void embed(const std::vector<Table>& tables, const Normalisation& by, const std::vector<Indices>& indices,
           std::size_t sequences, std::size_t length, float* result) {
    const std::size_t width = by.weight.size(), tokens = sequences * length;
    const auto row_of = [&](std::size_t number, std::size_t token) {
        return indices[number].values[token / length * indices[number].sequence_stride + token % length];
    };
    for (std::size_t token = 0; token < tokens; ++token) {
        float* to = result + token * width;
        for (std::size_t number = 0; number < tables.size(); ++number) {
            const Table& table = tables[number];
            // Vectors lie anywhere in memory: those of a later token are on their way meanwhile.
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
        if (token % 4 == 3) normalise_rows<4>(to - 3 * width, width, by);
        else if (token + 1 == tokens)
            for (std::size_t left = 0; left <= token % 4; ++left) normalise_rows<1>(to - left * width, width, by);
    }
}

void forward(const std::vector<Layer>& layers, float* hidden, std::size_t sequences, std::size_t length,
             const AttentionBias& bias, float* result) {
    static thread_local Rooms rooms;
    const std::size_t width = layers.front().output->in;
    const Packed packed = pack(hidden, sequences, length, width, bias, layers.back().first_row);
    const Rounded rounded{rooms.rounded.of(packed.tokens() * width), rooms.scales.of(packed.tokens())};
    round_all(hidden, width, packed.tokens(), rounded);
    for (const Layer& layer : layers) {
        if (layer.output->in / layer.heads == 32)
            forward_layer<32>(layer, hidden, rounded, packed, bias, rooms, result);
        else forward_layer<64>(layer, hidden, rounded, packed, bias, rooms, result);
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

void Free::operator()(void* memory) const { std::free(memory); }

Linear::Linear(const std::int8_t*, const float*, const float*, std::size_t in, std::size_t out) : in(in), out(out) {}

void embed(const std::vector<Table>&, const Normalisation&, const std::vector<Indices>&, std::size_t, std::size_t,
           float*) {
    throw std::logic_error("these kernels are for x86-64");
}

void forward(const std::vector<Layer>&, float*, std::size_t, std::size_t, const AttentionBias&, float*) {
    throw std::logic_error("these kernels are for x86-64");
}

}  // namespace rerankd

#endif
