// Matmul of quantized activations (uint8) and constant weights (int8), one tile of rows and columns at a time.
//
// Included by layers.cpp only, after its target pragma: the functions use instructions that a CPU may lack.

#pragma once

#include "vectors.h"

namespace rerankd {

namespace {

constexpr std::size_t kTileVectors = 4;  // registers per row of a tile
constexpr std::size_t kPanelColumns = kTileVectors * kLanes;
constexpr std::size_t kTileRows = 6;  // 24 sums, 4 vectors of weights and a broadcast take 29 of 32 registers

// What to prefetch into the L2 cache: the line at `address`, then the one `step` bytes further, and so on.
struct Prefetch {
    const char* address;
    std::size_t step;
};

// One tile: `Count` rows, 64 columns. `epilogue(row, column, values)` gets 16 results. Not inlined: GCC 12 would spill
// the sums and run at less than half the speed.
template <std::size_t Count, class Epilogue>
[[gnu::noinline]] void gemm_tile(const Linear& linear, std::size_t panel, const std::uint8_t* values,
                                 const float* row_scales, Prefetch prefetch, Epilogue epilogue) {
    const std::size_t first = panel * kPanelColumns;
    const std::int8_t* weights = linear.panels.get() + first * linear.in;
    __m512i sums[Count][kTileVectors];
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row)
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < kTileVectors; ++vector)
            sums[row][vector] = _mm512_loadu_si512(&linear.offsets[first + vector * kLanes]);
    for (std::size_t depth = 0; depth < linear.in;
         depth += 4, weights += 4 * kPanelColumns, prefetch.address += prefetch.step) {
        _mm_prefetch(prefetch.address, _MM_HINT_T1);
        __m512i columns[kTileVectors];
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < kTileVectors; ++vector)
            columns[vector] = _mm512_load_si512(weights + 4 * kLanes * vector);
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const __m512i four = broadcast_4_bytes(values + row * linear.in + depth);
#pragma GCC unroll 4
            for (std::size_t vector = 0; vector < kTileVectors; ++vector)
                dot_accumulate_u8s8(sums[row][vector], four, columns[vector]);
        }
    }
#pragma GCC unroll 4
    for (std::size_t vector = 0; vector < kTileVectors; ++vector) {
        const std::size_t column = first + vector * kLanes;
        const __m512 scale = load(&linear.scales[column]), bias = load(&linear.bias[column]);
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const __m512 unscaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[row][vector]), scale);
            epilogue(row, column, _mm512_fmadd_ps(unscaled, _mm512_set1_ps(row_scales[row]), bias));
        }
    }
}

// Columns [first, end) of the result.
struct Columns {
    std::size_t first, end;
};

// Matmul of quantized rows and some columns of the weights. `epilogue(row, column, values)` gets 16 results.
template <class Epilogue>
void gemm(const Linear& linear, const QuantizedRows& rows, std::size_t count, const Columns& columns,
          Epilogue epilogue) {
    const std::size_t step = 4 * kPanelColumns * kTileRows / round_up(count, kTileRows);
    for (std::size_t panel = columns.first / kPanelColumns; panel * kPanelColumns < columns.end; ++panel) {
        const auto* next = reinterpret_cast<const char*>(linear.panels.get() + (panel + 1) * kPanelColumns * linear.in);
        for (std::size_t first = 0; first < count; first += kTileRows) {
            const std::uint8_t* values = rows.values + first * linear.in;
            const float* scales = rows.scales + first;
            const Prefetch prefetch{next + first / kTileRows * linear.in / 4 * step, step};
            const auto shifted = [&](std::size_t row, std::size_t column, __m512 value) {
                epilogue(first + row, column, value);
            };
            switch (std::min(kTileRows, count - first)) {
                case 1: gemm_tile<1>(linear, panel, values, scales, prefetch, shifted); break;
                case 2: gemm_tile<2>(linear, panel, values, scales, prefetch, shifted); break;
                case 3: gemm_tile<3>(linear, panel, values, scales, prefetch, shifted); break;
                case 4: gemm_tile<4>(linear, panel, values, scales, prefetch, shifted); break;
                case 5: gemm_tile<5>(linear, panel, values, scales, prefetch, shifted); break;
                default: gemm_tile<kTileRows>(linear, panel, values, scales, prefetch, shifted);
            }
        }
    }
}

template <class Epilogue>
void gemm(const Linear& linear, const QuantizedRows& rows, std::size_t count, Epilogue epilogue) {
    gemm(linear, rows, count, {0, linear.out}, epilogue);
}

}  // namespace

}  // namespace rerankd
