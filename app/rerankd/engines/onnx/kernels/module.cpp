// Python bindings. All shapes are checked here, and not again in the kernels.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "layers.h"

namespace py = pybind11;
using rerankd::InstructionSet;
using rerankd::Layer;
using rerankd::LayerNorm;
using rerankd::Linear;
using rerankd::Rotary;

namespace {

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Integers = py::array_t<std::int8_t, py::array::c_style>;

constexpr py::ssize_t kMultiple = 64;

void require(bool holds, const std::string& otherwise) {
    if (!holds) throw std::invalid_argument(otherwise);
}

// The instruction set of everything that is made from now on.
const InstructionSet* chosen = nullptr;

const InstructionSet& instruction_set() {
    require(chosen != nullptr, "the kernels have no instruction set of this CPU");
    return *chosen;
}

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const InstructionSet* set : rerankd::instruction_sets()) names.emplace_back(set->name);
    return names;
}

void use_instruction_set(const std::string& name) {
    for (const InstructionSet* set : rerankd::instruction_sets())
        if (set->name == name) {
            chosen = set;
            return;
        }
    throw std::invalid_argument("this CPU or this build has no instruction set " + name);
}

std::vector<float> vector_of(const Floats& values, std::size_t size, const char* name) {
    require(values.ndim() == 1 && static_cast<std::size_t>(values.size()) == size,
            std::string(name) + ": expected a vector of " + std::to_string(size));
    return {values.data(), values.data() + values.size()};
}

std::shared_ptr<Linear> make_linear(const Integers& weights, const Floats& scales, const Floats& bias) {
    require(weights.ndim() == 2 && weights.shape(0) % kMultiple == 0 && weights.shape(1) % kMultiple == 0 &&
                weights.size() > 0,
            "weights: expected a matrix whose sizes are multiples of 64");
    const auto in = static_cast<std::size_t>(weights.shape(0)), out = static_cast<std::size_t>(weights.shape(1));
    const auto checked_scales = vector_of(scales, out, "scales"), checked_bias = vector_of(bias, out, "bias");
    return std::make_shared<Linear>(instruction_set(), weights.data(), checked_scales.data(), checked_bias.data(), in,
                                    out);
}

LayerNorm make_layer_norm(const Floats& weight, const Floats& bias, float epsilon) {
    const auto size = static_cast<std::size_t>(weight.size());
    return {vector_of(weight, size, "weight"), vector_of(bias, size, "bias"), epsilon};
}

std::shared_ptr<Rotary> make_rotary(const Floats& frequencies) {
    const auto count = static_cast<std::size_t>(frequencies.size());
    require(count == 16 || count == 32, "frequencies: expected one for each pair of a head of 32 or 64");
    return std::make_shared<Rotary>(vector_of(frequencies, count, "frequencies"));
}

Layer make_layer(std::shared_ptr<Linear> query_key_value, std::shared_ptr<Linear> output, std::shared_ptr<Linear> up,
                 std::shared_ptr<Linear> down, LayerNorm attention_norm, LayerNorm output_norm, std::size_t heads,
                 float score_scale, bool first_row, bool pre_norm, std::shared_ptr<Rotary> rotary,
                 std::optional<std::size_t> window) {
    const std::size_t width = output->out, size = heads ? width / heads : 0;
    require(query_key_value->in == width && query_key_value->out == 3 * width && output->in == width &&
                up->in == width && (up->out == down->in || up->out == 2 * down->in) && down->out == width &&
                attention_norm.weight.size() == width && output_norm.weight.size() == width,
            "the sizes of a layer's parts do not match");
    require((size == 32 || size == 64) && size * heads == width, "the head size must be 32 or 64");
    require(!rotary || rotary->head_size() == size, "the rotary positions are for another head size");
    require(!first_row || rotary || !window, "the first row alone has a window only with rotary positions");
    require(!first_row || rotary || !pre_norm, "the first row alone has pre-norm only with rotary positions");
    for (const auto& part : {output, up, down})
        require(&part->set == &query_key_value->set, "a layer's parts are for different instruction sets");
    return {query_key_value,
            output,
            up,
            down,
            std::move(attention_norm),
            std::move(output_norm),
            heads,
            score_scale,
            first_row,
            first_row && !rotary ? rerankd::key_value_rows(*query_key_value) : std::vector<std::int8_t>(),
            pre_norm,
            std::move(rotary),
            std::min(window.value_or(rerankd::kMaxLength), rerankd::kMaxLength)};
}

using Rows = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;

// Keeps references to the tables instead of copying them: with a large vocabulary they are most of the model.
class Embeddings {
  public:
    Embeddings(const std::vector<std::pair<Integers, Floats>>& tables, LayerNorm norm)
        : set_(instruction_set()), arrays_(tables), norm_(std::move(norm)) {
        const auto width = static_cast<py::ssize_t>(norm_.weight.size());
        require(!tables.empty() && width > 0 && width % kMultiple == 0,
                "expected at least one table, with vectors of a multiple of 64");
        for (const auto& [vectors, scales] : arrays_) {
            require(vectors.ndim() == 2 && vectors.shape(1) == width && scales.ndim() == 1 &&
                        scales.size() == vectors.shape(0),
                    "expected tables of shape [rows, " + std::to_string(width) + "] and a scale for each row");
            tables_.push_back({vectors.data(), scales.data()});
        }
    }

    py::array_t<float> forward(const std::vector<Rows>& indices) const {
        require(indices.size() == tables_.size(), "expected indices for each table");
        for (const Rows& rows : indices) require(rows.ndim() == 2, "indices: expected shape [sequences, length]");
        py::ssize_t sequences = 1;
        for (const Rows& rows : indices) sequences = std::max(sequences, rows.shape(0));
        const py::ssize_t length = indices.front().shape(1);
        std::vector<rerankd::RowIndices> checked;
        for (std::size_t number = 0; number < indices.size(); ++number) {
            const Rows& rows = indices[number];
            require((rows.shape(0) == sequences || rows.shape(0) == 1) && rows.shape(1) == length,
                    "indices: expected shape [sequences or 1, length], the same for all tables");
            const py::ssize_t count = arrays_[number].first.shape(0);
            for (py::ssize_t at = 0; at < rows.size(); ++at)
                if (rows.data()[at] < 0 || rows.data()[at] >= count)
                    throw std::out_of_range("row " + std::to_string(rows.data()[at]) + " of a table of " +
                                            std::to_string(count));
            checked.push_back({rows.data(), rows.shape(0) == 1 ? 0 : static_cast<std::size_t>(length)});
        }
        py::array_t<float> result({sequences, length, static_cast<py::ssize_t>(norm_.weight.size())});
        float* to = result.mutable_data();
        {
            const py::gil_scoped_release release;
            rerankd::embed(set_, tables_, norm_, checked, sequences, length, to);
        }
        return result;
    }

  private:
    const InstructionSet& set_;
    std::vector<std::pair<Integers, Floats>> arrays_;
    std::vector<rerankd::EmbeddingTable> tables_;
    LayerNorm norm_;
};

class Layers {
  public:
    explicit Layers(std::vector<Layer> layers) : layers_(std::move(layers)) {
        require(!layers_.empty(), "expected at least one layer");
        for (const Layer& layer : layers_) {
            require(layer.output->out == layers_.front().output->out, "the layers have different widths");
            require(&layer.output->set == &layers_.front().output->set,
                    "the layers are for different instruction sets");
            require(!layer.first_row || &layer == &layers_.back(),
                    "only the last layer may output the first row alone");
            require(layer.pre_norm == layers_.front().pre_norm, "the layers have different kinds of norms");
        }
    }

    py::array_t<float> forward(py::array_t<float, py::array::c_style>& hidden, const Floats& bias) const {
        require(hidden.ndim() == 3 && static_cast<std::size_t>(hidden.shape(2)) == layers_.front().output->out &&
                    hidden.size() > 0,
                "hidden: expected shape [sequences, length, width]");
        require(static_cast<std::size_t>(hidden.shape(1)) <= rerankd::kMaxLength,
                "hidden: expected at most " + std::to_string(rerankd::kMaxLength) + " tokens per sequence");
        const py::ssize_t sequences = hidden.shape(0), length = hidden.shape(1);
        require(bias.ndim() == 4 && (bias.shape(0) == sequences || bias.shape(0) == 1) && bias.shape(1) == 1 &&
                    (bias.shape(2) == length || bias.shape(2) == 1) && bias.shape(3) == length,
                "bias: expected shape [sequences or 1, 1, length or 1, length]");
        const std::size_t query_stride = bias.shape(2) == 1 ? 0 : length;
        const std::size_t sequence_stride = bias.shape(0) == 1 ? 0 : bias.shape(2) * length;
        py::array_t<float> result({sequences, layers_.back().first_row ? 1 : length, hidden.shape(2)});
        float* states = hidden.mutable_data();
        float* results = result.mutable_data();
        const float* biases = bias.data();
        {
            const py::gil_scoped_release release;
            rerankd::forward(layers_, states, sequences, length, {biases, sequence_stride, query_stride}, results);
        }
        return result;
    }

  private:
    std::vector<Layer> layers_;
};

}  // namespace

PYBIND11_MODULE(_compiled, module) {
    if (const char* name = std::getenv("RERANKD_INSTRUCTION_SET")) {
        try {
            use_instruction_set(name);
        } catch (const std::invalid_argument& error) {
            throw py::import_error("RERANKD_INSTRUCTION_SET: " + std::string(error.what()));
        }
    } else if (!rerankd::instruction_sets().empty()) {
        chosen = rerankd::instruction_sets().back();
    }
    module.def("instruction_sets", &instruction_sets);
    module.def("instruction_set", [] { return instruction_set().name; });
    module.def("use_instruction_set", &use_instruction_set, py::arg("name"));
    module.def("lanes", [] { return instruction_set().lanes; });
    module.def(
        "peak", [](std::size_t steps) { return instruction_set().peak(steps); }, py::arg("steps"),
        py::call_guard<py::gil_scoped_release>());
    module.attr("MASKED") = rerankd::kMasked;
    py::class_<Linear, std::shared_ptr<Linear>>(module, "Linear")
        .def(py::init(&make_linear), py::arg("weights"), py::kw_only(), py::arg("scales"), py::arg("bias"));
    py::class_<LayerNorm>(module, "LayerNorm")
        .def(py::init(&make_layer_norm), py::kw_only(), py::arg("weight"), py::arg("bias"), py::arg("epsilon"));
    py::class_<Rotary, std::shared_ptr<Rotary>>(module, "Rotary").def(py::init(&make_rotary), py::arg("frequencies"));
    py::class_<Layer>(module, "Layer")
        .def(py::init(&make_layer), py::kw_only(), py::arg("query_key_value"), py::arg("output"), py::arg("up"),
             py::arg("down"), py::arg("attention_norm"), py::arg("output_norm"), py::arg("heads"),
             py::arg("score_scale"), py::arg("first_row") = false, py::arg("pre_norm") = false,
             py::arg("rotary") = nullptr, py::arg("window") = std::nullopt);
    py::class_<Embeddings>(module, "Embeddings")
        .def(py::init<const std::vector<std::pair<Integers, Floats>>&, LayerNorm>(), py::arg("tables"), py::kw_only(),
             py::arg("norm"))
        .def("forward", &Embeddings::forward, py::arg("indices"));
    py::class_<Layers>(module, "Layers")
        .def(py::init<std::vector<Layer>>(), py::arg("layers"))
        .def("forward", &Layers::forward, py::arg("hidden"), py::arg("bias"));
}
