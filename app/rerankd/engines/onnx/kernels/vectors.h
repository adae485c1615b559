// Layer norm and quantization to 8 bits.
//
// Included after the header of an instruction set (isa/).

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

#include "isa/exp.h"
#include "layers.h"

namespace rerankd {

namespace {

constexpr float kInt8Max = 127;
constexpr float kMinScale = 1e-12f;

std::size_t round_up(std::size_t count, std::size_t to) { return (count + to - 1) / to * to; }

// Memory aligned to a cache line.
template <class T>
Aligned<T> allocate_aligned(std::size_t count) {
    void* memory = std::aligned_alloc(64, round_up(count * sizeof(T), 64));
    if (memory == nullptr) throw std::bad_alloc();
    return Aligned<T>(static_cast<T*>(memory));
}

// Quantized vectors, shape [rows, width], and their scales.
struct QuantizedRows {
    Activation* values;
    float* scales;

    QuantizedRows from(std::size_t row, std::size_t width) const { return {values + row * width, scales + row}; }
};

// Quantize each row by its largest magnitude.
template <std::size_t Count>
inline void quantize_rows(const float* rows, std::size_t width, const Floats (&magnitudes)[Count],
                          const QuantizedRows& to) {
    Floats factors[Count];
#pragma GCC unroll 4
    for (std::size_t row = 0; row < Count; ++row) {
        to.scales[row] = std::max(max_of(magnitudes[row]) / kInt8Max, kMinScale);
        factors[row] = broadcast(1 / to.scales[row]);
    }
    const Floats whole = broadcast(kRoundToInteger + kZeroPoint);
    for (std::size_t column = 0; column < width; column += kLanes)
#pragma GCC unroll 4
        for (std::size_t row = 0; row < Count; ++row) {
            const std::size_t at = row * width + column;
            store_low(to.values + at, bits_of(multiply_add(load(rows + at), factors[row], whole)));
        }
}

template <std::size_t Count>
inline void quantize_rows(const float* rows, std::size_t width, const QuantizedRows& to) {
    Floats magnitudes[Count];
#pragma GCC unroll 4
    for (std::size_t row = 0; row < Count; ++row) magnitudes[row] = broadcast(0);
    for (std::size_t column = 0; column < width; column += kLanes)
#pragma GCC unroll 4
        for (std::size_t row = 0; row < Count; ++row)
            magnitudes[row] = max_magnitude(magnitudes[row], load(rows + row * width + column));
    quantize_rows<Count>(rows, width, magnitudes, to);
}

// Layer norm of each row, to another place or the same one. Also returns the largest magnitudes, one per lane.
template <std::size_t Count>
inline void layer_norm_rows(const float* rows, std::size_t width, const LayerNorm& norm, float* to,
                            Floats (&magnitudes)[Count]) {
    Floats sums[Count], means[Count], squares[Count], factors[Count];
#pragma GCC unroll 4
    for (std::size_t row = 0; row < Count; ++row) sums[row] = squares[row] = magnitudes[row] = broadcast(0);
    for (std::size_t column = 0; column < width; column += kLanes)
#pragma GCC unroll 4
        for (std::size_t row = 0; row < Count; ++row) sums[row] = sums[row] + load(rows + row * width + column);
#pragma GCC unroll 4
    for (std::size_t row = 0; row < Count; ++row) means[row] = broadcast(sum_of(sums[row]) / static_cast<float>(width));
    for (std::size_t column = 0; column < width; column += kLanes)
#pragma GCC unroll 4
        for (std::size_t row = 0; row < Count; ++row) {
            const Floats apart = load(rows + row * width + column) - means[row];
            squares[row] = multiply_add(apart, apart, squares[row]);
        }
#pragma GCC unroll 4
    for (std::size_t row = 0; row < Count; ++row) {
        const float variance = sum_of(squares[row]) / static_cast<float>(width);
        factors[row] = broadcast(1 / std::sqrt(variance + norm.epsilon));
    }
    for (std::size_t column = 0; column < width; column += kLanes) {
        const Floats weight = load(&norm.weight[column]), bias = load(&norm.bias[column]);
#pragma GCC unroll 4
        for (std::size_t row = 0; row < Count; ++row) {
            const std::size_t at = row * width + column;
            const Floats apart = (load(rows + at) - means[row]) * factors[row];
            const Floats value = multiply_add(apart, weight, bias);
            magnitudes[row] = max_magnitude(magnitudes[row], value);
            store(to + at, value);
        }
    }
}

template <std::size_t Count>
inline void layer_norm_rows(float* rows, std::size_t width, const LayerNorm& norm) {
    Floats magnitudes[Count];
    layer_norm_rows<Count>(rows, width, norm, rows, magnitudes);
}

template <std::size_t Count>
inline void layer_norm_quantize_rows(const float* rows, std::size_t width, const LayerNorm& norm, float* normalized,
                                     const QuantizedRows& to) {
    Floats magnitudes[Count];
    layer_norm_rows<Count>(rows, width, norm, normalized, magnitudes);
    quantize_rows<Count>(normalized, width, magnitudes, to);
}

// Any number of rows, four at a time.
void quantize_all(const float* rows, std::size_t width, std::size_t count, const QuantizedRows& to) {
    std::size_t row = 0;
    for (; row + 4 <= count; row += 4) quantize_rows<4>(rows + row * width, width, to.from(row, width));
    for (; row < count; ++row) quantize_rows<1>(rows + row * width, width, to.from(row, width));
}

// In place. With `scratch`, which holds four rows, only the quantized rows are normalized.
void layer_norm_quantize_all(float* rows, std::size_t width, std::size_t count, const LayerNorm& norm,
                             const QuantizedRows& to, float* scratch) {
    std::size_t row = 0;
    for (; row + 4 <= count; row += 4) {
        float* at = rows + row * width;
        layer_norm_quantize_rows<4>(at, width, norm, scratch ? scratch : at, to.from(row, width));
    }
    for (; row < count; ++row) {
        float* at = rows + row * width;
        layer_norm_quantize_rows<1>(at, width, norm, scratch ? scratch : at, to.from(row, width));
    }
}

}  // namespace

}  // namespace rerankd
