// Products with constant matrices, of numbers in 8 bits, a tile of rows and columns at a time.
//
// layers.cpp alone includes this, behind its pragma: these functions may use instructions that a processor lacks.

#pragma once

#include "vectors.h"

namespace rerankd {

namespace {

constexpr std::size_t kVectors = 4;  // registers in a row of a tile
constexpr std::size_t kPanel = kVectors * kLanes;
constexpr std::size_t kRows = 6;  // of a tile: 24 sums, 4 weights and a broadcast are 29 of 32 registers

// What is fetched into the second-level cache meanwhile: a line now, and the one that is `step` bytes further next.
struct Ahead {
    const char* at;
    std::size_t step;
};

// One tile of a product: `Count` rows, 64 columns. `finish(row, column, values)` takes 16 results. Compilers that
// inline it keep its sums in memory, at less than half the speed.
template <std::size_t Count, class Finish>
[[gnu::noinline]] void multiply_tile(const Linear& by, std::size_t panel, const std::uint8_t* values,
                                     const float* row_scales, Ahead ahead, Finish finish) {
    const std::size_t first = panel * kPanel;
    const std::int8_t* weights = by.panels.get() + first * by.in;
    __m512i sums[Count][kVectors];
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row)
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < kVectors; ++vector)
            sums[row][vector] = _mm512_loadu_si512(&by.offsets[first + vector * kLanes]);
    for (std::size_t depth = 0; depth < by.in; depth += 4, weights += 4 * kPanel, ahead.at += ahead.step) {
        _mm_prefetch(ahead.at, _MM_HINT_T1);
        __m512i columns[kVectors];
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < kVectors; ++vector)
            columns[vector] = _mm512_load_si512(weights + 4 * kLanes * vector);
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const __m512i four = four_bytes_everywhere(values + row * by.in + depth);
#pragma GCC unroll 4
            for (std::size_t vector = 0; vector < kVectors; ++vector)
                add_products(sums[row][vector], four, columns[vector]);
        }
    }
#pragma GCC unroll 4
    for (std::size_t vector = 0; vector < kVectors; ++vector) {
        const std::size_t column = first + vector * kLanes;
        const __m512 scale = load(&by.scales[column]), bias = load(&by.bias[column]);
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const __m512 unscaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[row][vector]), scale);
            finish(row, column, _mm512_fmadd_ps(unscaled, _mm512_set1_ps(row_scales[row]), bias));
        }
    }
}

// Of a product's columns those from `first` on, and before `end`.
struct Columns {
    std::size_t first, end;
};

// The product of rounded rows and columns of a matrix. `finish(row, column, values)` takes 16 results.
template <class Finish>
void multiply(const Linear& by, const Rounded& rows, std::size_t count, const Columns& columns, Finish finish) {
    const std::size_t step = 4 * kPanel * kRows / rounded_up(count, kRows);
    for (std::size_t panel = columns.first / kPanel; panel * kPanel < columns.end; ++panel) {
        const auto* next = reinterpret_cast<const char*>(by.panels.get() + (panel + 1) * kPanel * by.in);
        for (std::size_t first = 0; first < count; first += kRows) {
            const std::uint8_t* values = rows.values + first * by.in;
            const float* scales = rows.scales + first;
            const Ahead ahead{next + first / kRows * by.in / 4 * step, step};
            const auto shifted = [&](std::size_t row, std::size_t column, __m512 value) {
                finish(first + row, column, value);
            };
            switch (std::min(kRows, count - first)) {
                case 1: multiply_tile<1>(by, panel, values, scales, ahead, shifted); break;
                case 2: multiply_tile<2>(by, panel, values, scales, ahead, shifted); break;
                case 3: multiply_tile<3>(by, panel, values, scales, ahead, shifted); break;
                case 4: multiply_tile<4>(by, panel, values, scales, ahead, shifted); break;
                case 5: multiply_tile<5>(by, panel, values, scales, ahead, shifted); break;
                default: multiply_tile<kRows>(by, panel, values, scales, ahead, shifted);
            }
        }
    }
}

template <class Finish>
void multiply(const Linear& by, const Rounded& rows, std::size_t count, Finish finish) {
    multiply(by, rows, count, {0, by.out}, finish);
}

}  // namespace

}  // namespace rerankd
