// The matmul of gemm.h by tiles of AMX: 16 rows of 64 activations times 64 x 16 weights in one instruction. The integer
// sums are those of every other instruction set.

#pragma once

#include "../vectors.h"

namespace rerankd {

namespace {

// A tile of weights is contiguous, so that a row of tiles does not share sets of the L1 cache.
constexpr std::size_t kPanelColumns = 16;
constexpr Layout kLayout{kPanelColumns, kDepth, kZeroPoint};
constexpr std::size_t kTile = 16;       // rows of a tile; also its columns of int32
constexpr std::size_t kTileBytes = 64;  // bytes in a tile's row
// Tiles 0 to 3 hold sums, of two tiles of rows times two of columns; 4 and 5 activations, 6 and 7 weights.
constexpr std::size_t kSumTiles = 4;
constexpr std::size_t kGroupColumns = 256;  // columns whose weights stay in the L2 cache while all rows pass

struct Columns {
    std::size_t first, end;
};

// Give the tiles their sizes, for `upper` rows in the first tile of rows and `lower` in the second.
inline void configure_tiles(std::size_t upper, std::size_t lower) {
    struct alignas(64) {
        std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
        std::uint16_t row_bytes[16] = {};
        std::uint8_t rows[16] = {};
    } config;
    for (std::size_t tile = 0; tile < 8; ++tile) config.row_bytes[tile] = kTileBytes;
    const std::size_t rows[8] = {upper, upper, lower, lower, upper, lower, kTile, kTile};
    for (std::size_t tile = 0; tile < 8; ++tile)
        config.rows[tile] = static_cast<std::uint8_t>(std::max<std::size_t>(rows[tile], 1));
    // GCC 12 thinks that only the first bytes are read.
    asm volatile("" ::"r"(&config) : "memory");
    _tile_loadconfig(&config);
}

// The sums of one or two tiles of rows and 32 columns, shape [32, 32]. Weights are loaded past the L1 cache, where the
// rows stay.
template <bool Two>
inline void multiply_tiles(const Linear& linear, std::size_t column, const Activation* values, std::int32_t* sums) {
    const std::size_t in = linear.in;
    const std::int8_t* weights = linear.panels.get() + column * in;
    // A stride of 0 loads the same row everywhere.
    _tile_loadd(0, &linear.offsets[column], 0);
    _tile_loadd(1, &linear.offsets[column + kTile], 0);
    if constexpr (Two) {
        _tile_loadd(2, &linear.offsets[column], 0);
        _tile_loadd(3, &linear.offsets[column + kTile], 0);
    }
    for (std::size_t depth = 0; depth < in; depth += kTileBytes, weights += kTileBytes * kTile) {
        _tile_stream_loadd(6, weights, kTileBytes);
        _tile_loadd(4, values + depth, in);
        _tile_dpbusd(0, 4, 6);
        _tile_stream_loadd(7, weights + kTile * in, kTileBytes);
        _tile_dpbusd(1, 4, 7);
        if constexpr (Two) {
            _tile_loadd(5, values + kTile * in + depth, in);
            _tile_dpbusd(2, 5, 6);
            _tile_dpbusd(3, 5, 7);
        }
    }
    constexpr std::size_t stride = 2 * kTile * sizeof *sums;
    _tile_stored(0, sums, stride);
    _tile_stored(1, sums + kTile, stride);
    if constexpr (Two) {
        _tile_stored(2, sums + kTile * 2 * kTile, stride);
        _tile_stored(3, sums + kTile * 2 * kTile + kTile, stride);
    }
}

// Matmul of quantized rows and some columns of the weights. `epilogue(row, column, values)` gets 16 results.
template <class Epilogue>
void gemm(const Linear& linear, const QuantizedRows& rows, std::size_t count, const Columns& columns,
          Epilogue epilogue) {
    alignas(64) std::int32_t sums[2 * kTile][2 * kTile];
    const std::size_t full = count / (2 * kTile) * 2 * kTile;
    // Compilers do not know that tiles are loaded from memory.
    asm volatile("" ::: "memory");
    const auto block = [&](std::size_t column, std::size_t first, std::size_t size) {
        const Activation* values = rows.values + first * linear.in;
        if (size > kTile) multiply_tiles<true>(linear, column, values, sums[0]);
        else multiply_tiles<false>(linear, column, values, sums[0]);
        for (std::size_t vector = 0; vector < 2; ++vector) {
            const std::size_t at = column + vector * kTile;
            const Floats scale = load(&linear.scales[at]), bias = load(&linear.bias[at]);
            for (std::size_t row = 0; row < size; ++row) {
                const Floats unscaled = to_floats(load_integers(&sums[row][vector * kTile])) * scale;
                epilogue(first + row, at, multiply_add(unscaled, broadcast(rows.scales[first + row]), bias));
            }
        }
    };
    if (full) {
        configure_tiles(kTile, kTile);
        for (std::size_t group = columns.first; group < columns.end; group += kGroupColumns)
            for (std::size_t first = 0; first < full; first += 2 * kTile)
                for (std::size_t column = group; column < std::min(group + kGroupColumns, columns.end);
                     column += 2 * kTile)
                    block(column, first, 2 * kTile);
    }
    if (const std::size_t left = count - full) {
        configure_tiles(std::min(left, kTile), left - std::min(left, kTile));
        for (std::size_t column = columns.first; column < columns.end; column += 2 * kTile) block(column, full, left);
    }
    _tile_release();
}

template <class Epilogue>
void gemm(const Linear& linear, const QuantizedRows& rows, std::size_t count, Epilogue epilogue) {
    gemm(linear, rows, count, {0, linear.out}, epilogue);
}

// Multiply-adds on registers and nothing else. Returns their number.
[[gnu::noinline]] std::size_t peak(std::size_t steps) {
    configure_tiles(kTile, kTile);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(6);
    for (std::size_t step = 0; step < steps; ++step) {
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 6);
        _tile_dpbusd(2, 4, 6);
        _tile_dpbusd(3, 4, 6);
    }
    _tile_release();
    return steps * kSumTiles * kTile * kTile * kTileBytes;
}

}  // namespace

}  // namespace rerankd
