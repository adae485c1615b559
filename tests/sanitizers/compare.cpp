// Compares each instruction set of this CPU with the emulated one (emulated.h). Prints the sets that it compared. For
// CPUs that have no Python here, such as one that qemu emulates.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>

#include "isa/sets.h"

using namespace rerankd;

namespace {

std::mt19937 generator(7);

void require(bool holds, const std::string& otherwise) {
    if (holds) return;
    std::fprintf(stderr, "%s\n", otherwise.c_str());
    std::exit(1);
}

std::vector<float> normal(std::size_t count, float mean, float deviation) {
    std::normal_distribution<float> distribution(mean, deviation);
    std::vector<float> numbers(count);
    for (float& number : numbers) number = distribution(generator);
    return numbers;
}

std::vector<std::int8_t> weights(std::size_t count) {
    std::uniform_int_distribution<int> distribution(-127, 127);
    std::vector<std::int8_t> numbers(count);
    for (std::int8_t& number : numbers) number = static_cast<std::int8_t>(distribution(generator));
    return numbers;
}

std::shared_ptr<const Linear> linear(const InstructionSet& set, std::size_t in, std::size_t out) {
    std::vector<float> scales = normal(out, 1, 0.2f);
    for (float& scale : scales) scale /= 75 * std::sqrt(static_cast<float>(in));
    const std::vector<float> bias = normal(out, 0, 0.1f);
    return std::make_shared<Linear>(set, weights(in * out).data(), scales.data(), bias.data(), in, out);
}

enum class Kind { kBert, kModernBert };

// Two layers of 192 columns with six heads or three: the same for every set. Those of ModernBERT's kind have a window
// in the first one.
std::vector<Layer> make_layers(const InstructionSet& set, Kind kind, std::size_t head_size, bool first_row) {
    constexpr std::size_t width = 192, inner = 256;
    generator.seed(11);
    std::vector<float> frequencies;
    for (std::size_t at = 0; at < head_size / 2; ++at)
        frequencies.push_back(std::pow(0.01f, static_cast<float>(at) / static_cast<float>(head_size)));
    const auto rotary = kind == Kind::kBert ? nullptr : std::make_shared<const Rotary>(frequencies);
    std::vector<Layer> layers;
    for (const bool last : {false, true}) {
        Layer layer{linear(set, width, 3 * width),
                    linear(set, width, width),
                    linear(set, width, rotary ? 2 * inner : inner),
                    linear(set, inner, width),
                    {normal(width, 1, 0.1f), normal(width, 0, 0.1f), 1e-12f},
                    {normal(width, 1, 0.1f), normal(width, 0, 0.1f), 1e-12f},
                    width / head_size,
                    1 / std::sqrt(static_cast<float>(head_size)),
                    last && first_row,
                    {},
                    rotary != nullptr,
                    rotary,
                    rotary && !last ? 3 : kMaxLength};
        if (layer.first_row && !rotary) layer.key_value_rows = key_value_rows(*layer.query_key_value);
        layers.push_back(std::move(layer));
    }
    return layers;
}

std::vector<float> run(const std::vector<Layer>& layers, std::vector<float> hidden, std::size_t sequences,
                       const std::vector<float>& bias) {
    const std::size_t width = layers[0].output->out, length = hidden.size() / sequences / width;
    std::vector<float> result(layers.back().first_row ? sequences * width : hidden.size());
    forward(layers, hidden.data(), sequences, length, {bias.data(), length, 0}, result.data());
    return result;
}

void require_near(const std::vector<float>& one, const std::vector<float>& other, const std::string& what) {
    std::vector<float> apart;
    for (std::size_t at = 0; at < one.size(); ++at) apart.push_back(std::fabs(one[at] - other[at]));
    std::sort(apart.begin(), apart.end());
    // The last digit may decide how a number is quantized.
    require(apart[apart.size() / 2] < 1e-5f && apart.back() < 0.1f,
            what + ": " + std::to_string(apart[apart.size() / 2]) + ", " + std::to_string(apart.back()));
}

void compare_layers(const InstructionSet& set, Kind kind) {
    constexpr std::size_t sequences = 3, length = 29, width = 192;
    const std::vector<float> hidden = normal(sequences * length * width, 0, 1);
    std::vector<float> bias(sequences * length, 0);
    const std::size_t lengths[sequences] = {29, 7, 16};
    for (std::size_t sequence = 0; sequence < sequences; ++sequence)
        std::fill(&bias[sequence * length] + lengths[sequence], &bias[sequence * length] + length, -1e30f);
    for (const std::size_t head_size : {32, 64})
        for (const bool first_row : {false, true}) {
            const std::string what = std::string(set.name) + (kind == Kind::kBert ? "" : ", rotary") + ", heads of " +
                                     std::to_string(head_size);
            const std::vector<Layer> layers = make_layers(set, kind, head_size, first_row);
            const std::vector<float> together = run(layers, hidden, sequences, bias);
            const std::vector<Layer> emulated = make_layers(kEmulated, kind, head_size, first_row);
            require_near(together, run(emulated, hidden, sequences, bias), what);
            for (std::size_t sequence = 0; sequence < sequences; ++sequence) {
                const auto first = hidden.begin() + static_cast<std::ptrdiff_t>(sequence * length * width);
                const std::size_t count = lengths[sequence];
                const std::vector<float> alone =
                    run(layers, {first, first + static_cast<std::ptrdiff_t>(count * width)}, 1,
                        std::vector<float>(count, 0));
                const float* same = &together[sequence * (first_row ? 1 : length) * width];
                require(std::memcmp(alone.data(), same, alone.size() * sizeof(float)) == 0,
                        what + ": a sequence depends on its batch");
            }
        }
}

void compare_embeddings(const InstructionSet& set) {
    constexpr std::size_t width = 64, rows = 50, length = 13;
    const std::vector<std::int8_t> vectors = weights(rows * width);
    const std::vector<float> scales = normal(rows, 0.01f, 0.001f);
    const LayerNorm norm{normal(width, 1, 0.1f), normal(width, 0, 0.1f), 1e-12f};
    std::vector<std::int64_t> indices;
    for (std::size_t at = 0; at < length; ++at) indices.push_back(static_cast<std::int64_t>(at * 3));
    std::vector<float> result(length * width), expected(length * width);
    for (const auto& [from, to] : {std::pair(&set, &result), std::pair(&kEmulated, &expected)})
        embed(*from, {{vectors.data(), scales.data()}}, norm, {{indices.data(), length}}, 1, length, to->data());
    require_near(result, expected, std::string(set.name) + ", embeddings");
}

}  // namespace

int main() {
    for (const InstructionSet* set : instruction_sets()) {
        compare_layers(*set, Kind::kBert);
        compare_layers(*set, Kind::kModernBert);
        compare_embeddings(*set);
        require(set->peak(3) > 0, "no peak");
        std::printf("%s\n", set->name);
    }
    return 0;
}
