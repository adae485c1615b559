// Matmul of quantized activations and constant weights (int8), one tile of rows and columns at a time.
//
// Included after the header of an instruction set (isa/).

#pragma once

#include "vectors.h"

namespace rerankd {

namespace {

constexpr std::size_t kPanelColumns = kTileVectors * kLanes;

// What to prefetch into the L2 cache: the line at `address`, then the one `step` bytes further, and so on.
struct Prefetch {
    const char* address;
    std::size_t step;
};

constexpr Layout kLayout{kPanelColumns, kDepth, kZeroPoint};

// One tile: `Count` rows of a panel. `epilogue(row, column, values)` gets `kLanes` results. Not inlined: GCC 12 would
// spill the sums and run at less than half the speed.
template <std::size_t Count, class Epilogue>
[[gnu::noinline]] void gemm_tile(const Linear& linear, std::size_t panel, const Activation* values,
                                 const float* row_scales, Prefetch prefetch, Epilogue epilogue) {
    const std::size_t first = panel * kPanelColumns;
    const std::int8_t* weights = linear.panels.get() + first * linear.in;
    Integers sums[Count][kTileVectors];
#pragma GCC unroll 8
    for (std::size_t row = 0; row < Count; ++row)
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < kTileVectors; ++vector)
            sums[row][vector] = load_integers(&linear.offsets[first + vector * kLanes]);
    for (std::size_t depth = 0; depth < linear.in;
         depth += kDepth, weights += kDepth * kPanelColumns, prefetch.address += prefetch.step) {
        prefetch_to_l2(prefetch.address);
        Weights columns[kTileVectors];
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < kTileVectors; ++vector)
            columns[vector] = load_weights(weights + kDepth * kLanes * vector);
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const Integers four = broadcast_4_bytes(values + row * linear.in + depth);
#pragma GCC unroll 4
            for (std::size_t vector = 0; vector < kTileVectors; ++vector) dot(sums[row][vector], four, columns[vector]);
        }
    }
#pragma GCC unroll 4
    for (std::size_t vector = 0; vector < kTileVectors; ++vector) {
        const std::size_t column = first + vector * kLanes;
        const Floats scale = load(&linear.scales[column]), bias = load(&linear.bias[column]);
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const Floats unscaled = to_floats(sums[row][vector]) * scale;
            epilogue(row, column, multiply_add(unscaled, broadcast(row_scales[row]), bias));
        }
    }
}

// Columns [first, end) of the result.
struct Columns {
    std::size_t first, end;
};

// Matmul of quantized rows and some columns of the weights. `epilogue(row, column, values)` gets `kLanes` results.
template <class Epilogue>
void gemm(const Linear& linear, const QuantizedRows& rows, std::size_t count, const Columns& columns,
          Epilogue epilogue) {
    const std::size_t step = kDepth * kPanelColumns * kTileRows / round_up(count, kTileRows);
    for (std::size_t panel = columns.first / kPanelColumns; panel * kPanelColumns < columns.end; ++panel) {
        const auto* next = reinterpret_cast<const char*>(linear.panels.get() + (panel + 1) * kPanelColumns * linear.in);
        for (std::size_t first = 0; first < count; first += kTileRows) {
            const Activation* values = rows.values + first * linear.in;
            const float* scales = rows.scales + first;
            const Prefetch prefetch{next + first / kTileRows * linear.in / kDepth * step, step};
            const auto shifted = [&](std::size_t row, std::size_t column, Floats value) {
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

// Multiply-adds on registers and nothing else, `steps` times a tile's. Returns their number.
[[gnu::noinline]] std::size_t peak(std::size_t steps) {
    alignas(64) std::int8_t ones[kDepth * kPanelColumns];
    std::memset(ones, 1, sizeof ones);
    Weights columns[kTileVectors];
#pragma GCC unroll 4
    for (std::size_t vector = 0; vector < kTileVectors; ++vector) {
        columns[vector] = load_weights(ones + kDepth * kLanes * vector);
        keep(columns[vector]);
    }
    Integers four = broadcast_4_bytes(ones);
    Integers sums[kTileRows][kTileVectors];
#pragma GCC unroll 8
    for (std::size_t row = 0; row < kTileRows; ++row)
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < kTileVectors; ++vector) {
            sums[row][vector] = no_integers();
            keep(sums[row][vector]);
        }
    for (std::size_t step = 0; step < steps; ++step)
#pragma GCC unroll 8
        for (std::size_t row = 0; row < kTileRows; ++row) {
            keep(four);
#pragma GCC unroll 4
            for (std::size_t vector = 0; vector < kTileVectors; ++vector) dot(sums[row][vector], four, columns[vector]);
        }
#pragma GCC unroll 8
    for (std::size_t row = 0; row < kTileRows; ++row)
#pragma GCC unroll 4
        for (std::size_t vector = 0; vector < kTileVectors; ++vector) keep(sums[row][vector]);
    return steps * kTileRows * kPanelColumns * kDepth;
}

}  // namespace

}  // namespace rerankd
