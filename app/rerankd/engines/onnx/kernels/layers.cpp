// What runs on any CPU: the choice of an instruction set, the layout of weights, and packing.

#include "layers.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace rerankd {

namespace {

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

// The place of a weight in its linear layer's panels.
std::size_t place(const Layout& layout, std::size_t in, std::size_t row, std::size_t column) {
    return column / layout.columns * layout.columns * in + row / layout.depth * layout.depth * layout.columns +
           column % layout.columns * layout.depth + row % layout.depth;
}

}  // namespace

const EvenGelu kEvenGelu;

EvenGelu::EvenGelu() {
    const auto at = [](double x) { return x * std::erf(x / std::sqrt(2.0)) / 2; };
    const double apart = std::sqrt(3.0) / 4 / kSteps;
    for (int step = 0; step < 31; ++step) {
        const double middle = step / static_cast<double>(kSteps);
        const double bend = (at(middle + apart) - 2 * at(middle) + at(middle - apart)) / (2 * apart * apart);
        const double slope = (at(middle + apart) - at(middle - apart)) / (2 * apart);
        constant[step] = static_cast<float>(at(middle) - slope * middle + bend * middle * middle);
        linear[step] = static_cast<float>(slope - 2 * bend * middle);
        square[step] = static_cast<float>(bend);
    }
    constant[31] = square[31] = 0;
    linear[31] = 0.5f;
}

void AlignedDelete::operator()(void* memory) const { std::free(memory); }

Linear::Linear(const InstructionSet& set, const std::int8_t* weights, const float* scales, const float* bias,
               std::size_t in, std::size_t out)
    : set(set), in(in), out(out), offsets(out), scales(scales, scales + out), bias(bias, bias + out) {
    auto* memory = static_cast<std::int8_t*>(std::aligned_alloc(64, in * out));
    if (memory == nullptr) throw std::bad_alloc();
    panels.reset(memory);
    for (std::size_t row = 0; row < in; ++row) {
        for (std::size_t column = 0; column < out; ++column) {
            const std::int8_t weight = weights[row * out + column];
            panels[place(set.layout, in, row, column)] = weight;
            offsets[column] -= set.layout.zero_point * weight;
        }
    }
}

std::int8_t Linear::weight(std::size_t row, std::size_t column) const {
    return panels[place(set.layout, in, row, column)];
}

Rotary::Rotary(std::vector<float> frequencies) : frequencies_(std::move(frequencies)) {
    void* memory = std::aligned_alloc(64, kMaxLength * head_size() * sizeof(float));
    if (memory == nullptr) throw std::bad_alloc();
    turns_.reset(static_cast<float*>(memory));
}

const float* Rotary::turns(std::size_t length) const {
    if (computed_.load(std::memory_order_acquire) < length) {
        const std::lock_guard<std::mutex> lock(computing_);
        const std::size_t half = frequencies_.size();
        for (std::size_t position = computed_.load(std::memory_order_relaxed); position < length; ++position)
            for (std::size_t at = 0; at < half; ++at) {
                // Models multiply in float32.
                const double angle = static_cast<float>(position) * frequencies_[at];
                turns_[2 * position * half + at] = static_cast<float>(std::cos(angle));
                turns_[(2 * position + 1) * half + at] = static_cast<float>(std::sin(angle));
            }
        computed_.store(std::max(length, computed_.load(std::memory_order_relaxed)), std::memory_order_release);
    }
    return turns_.get();
}

std::vector<std::int8_t> key_value_rows(const Linear& query_key_value) {
    const std::size_t width = query_key_value.in;
    std::vector<std::int8_t> rows(2 * width * width);
    for (std::size_t row = 0; row < width; ++row)
        for (std::size_t column = 0; column < 2 * width; ++column)
            rows[row * 2 * width + column] = query_key_value.weight(row, width + column);
    return rows;
}

// The end of the block of sequences that starts at `from`. A block has at least one sequence.
std::size_t Packed::block_end(std::size_t from) const {
    std::size_t end = from + 1;
    while (end < sequences() && tokens(from, end + 1) <= kBlockTokens) ++end;
    return end;
}

void embed(const InstructionSet& set, const std::vector<EmbeddingTable>& tables, const LayerNorm& norm,
           const std::vector<RowIndices>& indices, std::size_t sequences, std::size_t length, float* result) {
    set.embed(tables, norm, indices, sequences, length, result);
}

void forward(const std::vector<Layer>& layers, float* hidden, std::size_t sequences, std::size_t length,
             const AttentionBias& bias, float* result) {
    const std::size_t width = layers.front().output->in;
    const Packed packed = pack(hidden, sequences, length, width, bias, layers.back().first_row);
    layers.front().output->set.forward(layers, hidden, packed, bias, result);
    if (!layers.back().first_row) unpack(hidden, packed, width, result);
}

}  // namespace rerankd
