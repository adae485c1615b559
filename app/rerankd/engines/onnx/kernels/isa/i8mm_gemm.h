// The matmul of gemm.h by Arm's matrix multiplication (i8mm): two rows of 8 activations times two columns of 8 weights
// in one instruction. The integer sums are those of every other instruction set.

#pragma once

#include "../vectors.h"

namespace rerankd {

namespace {

constexpr std::size_t kDepth = 8;
constexpr std::size_t kPanelColumns = kTileVectors * kLanes;
constexpr std::size_t kColumnPairs = kPanelColumns / 2;
constexpr Layout kLayout{kPanelColumns, kDepth, kZeroPoint};

struct Columns {
    std::size_t first, end;
};

// One tile: `Count` rows of a panel. `epilogue(row, column, values)` gets four results. Not inlined, as in gemm.h.
template <std::size_t Count, class Epilogue>
[[gnu::noinline]] void gemm_tile(const Linear& linear, std::size_t panel, const Activation* values,
                                 const float* row_scales, Epilogue epilogue) {
    constexpr std::size_t row_pairs = (Count + 1) / 2;
    const std::size_t first = panel * kPanelColumns;
    const std::int8_t* weights = linear.panels.get() + first * linear.in;
    Integers sums[row_pairs][kColumnPairs];  // of two rows and two columns each
#pragma GCC unroll 4
    for (std::size_t pair = 0; pair < row_pairs; ++pair)
#pragma GCC unroll 8
        for (std::size_t column = 0; column < kColumnPairs; ++column) sums[pair][column] = no_integers();
    for (std::size_t depth = 0; depth < linear.in; depth += kDepth, weights += kDepth * kPanelColumns) {
        int8x16_t rows[row_pairs];
#pragma GCC unroll 4
        for (std::size_t pair = 0; pair < row_pairs; ++pair) {
            const Activation* upper = values + 2 * pair * linear.in + depth;
            const Activation* lower = 2 * pair + 1 < Count ? upper + linear.in : upper;
            rows[pair] = vcombine_s8(vld1_s8(upper), vld1_s8(lower));
        }
#pragma GCC unroll 8
        for (std::size_t column = 0; column < kColumnPairs; ++column) {
            const Weights both = load_weights(weights + 2 * column * kDepth);
#pragma GCC unroll 4
            for (std::size_t pair = 0; pair < row_pairs; ++pair)
                sums[pair][column] = vmmlaq_s32(sums[pair][column], rows[pair], both);
        }
    }
#pragma GCC unroll 4
    for (std::size_t vector = 0; vector < kTileVectors; ++vector) {
        const std::size_t column = first + vector * kLanes;
        const Floats scale = load(&linear.scales[column]), bias = load(&linear.bias[column]);
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Count; ++row) {
            const Integers left = sums[row / 2][2 * vector], right = sums[row / 2][2 * vector + 1];
            const Integers sum = row % 2 ? vcombine_s32(vget_high_s32(left), vget_high_s32(right))
                                         : vcombine_s32(vget_low_s32(left), vget_low_s32(right));
            epilogue(row, column, multiply_add(to_floats(sum) * scale, broadcast(row_scales[row]), bias));
        }
    }
}

// Matmul of quantized rows and some columns of the weights. `epilogue(row, column, values)` gets four results.
template <class Epilogue>
void gemm(const Linear& linear, const QuantizedRows& rows, std::size_t count, const Columns& columns,
          Epilogue epilogue) {
    for (std::size_t panel = columns.first / kPanelColumns; panel * kPanelColumns < columns.end; ++panel) {
        for (std::size_t first = 0; first < count; first += kTileRows) {
            const Activation* values = rows.values + first * linear.in;
            const float* scales = rows.scales + first;
            const auto shifted = [&](std::size_t row, std::size_t column, Floats value) {
                epilogue(first + row, column, value);
            };
            switch (std::min(kTileRows, count - first)) {
                case 1: gemm_tile<1>(linear, panel, values, scales, shifted); break;
                case 2: gemm_tile<2>(linear, panel, values, scales, shifted); break;
                case 3: gemm_tile<3>(linear, panel, values, scales, shifted); break;
                case 4: gemm_tile<4>(linear, panel, values, scales, shifted); break;
                case 5: gemm_tile<5>(linear, panel, values, scales, shifted); break;
                default: gemm_tile<kTileRows>(linear, panel, values, scales, shifted);
            }
        }
    }
}

template <class Epilogue>
void gemm(const Linear& linear, const QuantizedRows& rows, std::size_t count, Epilogue epilogue) {
    gemm(linear, rows, count, {0, linear.out}, epilogue);
}

// Multiply-adds on registers and nothing else. Returns their number.
[[gnu::noinline]] std::size_t peak(std::size_t steps) {
    constexpr std::size_t count = 24;
    const Weights ones = vdupq_n_s8(1);
    Integers sums[count];
#pragma GCC unroll 24
    for (Integers& sum : sums) {
        sum = no_integers();
        keep(sum);
    }
    for (std::size_t step = 0; step < steps; ++step)
#pragma GCC unroll 24
        for (Integers& sum : sums) sum = vmmlaq_s32(sum, ones, ones);
#pragma GCC unroll 24
    for (Integers& sum : sums) keep(sum);
    return steps * count * 4 * kDepth;
}

}  // namespace

}  // namespace rerankd
