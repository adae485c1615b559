// An instruction set in plain C++, so that the sanitizers see every load, store and alignment of the layers, and every
// sum that could overflow. Runs on any CPU. Its layout is that of AVX-512 with VNNI.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "layers.h"

// Not inlined, because a kernel has hundreds of calls and would take minutes to compile. Only loads and stores access
// other memory, and only dot products can overflow, so the rest is not instrumented.
#define PURE [[gnu::noinline, gnu::no_sanitize("address", "undefined")]]
#define WATCHED [[gnu::noinline]]

namespace rerankd {

namespace {

constexpr std::size_t kLanes = 16, kTileVectors = 4, kTileRows = 6, kDepth = 4;
constexpr int kZeroPoint = 128;

template <class Number>
struct alignas(64) Vector {
    Number lanes[64 / sizeof(Number)];
};

using Activation = std::uint8_t;
using Floats = Vector<float>;
using Integers = Vector<std::int32_t>;
using Weights = Vector<std::int8_t>;

template <class Number = float, class Function>
Vector<Number> each(Function function) {
    Vector<Number> result;
    for (std::size_t at = 0; at < 64 / sizeof(Number); ++at) result.lanes[at] = static_cast<Number>(function(at));
    return result;
}

template <class To, class From>
To bits(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

PURE inline Floats operator+(const Floats& a, const Floats& b) {
    return each([&](std::size_t at) { return a.lanes[at] + b.lanes[at]; });
}
PURE inline Floats operator-(const Floats& a, const Floats& b) {
    return each([&](std::size_t at) { return a.lanes[at] - b.lanes[at]; });
}
PURE inline Floats operator*(const Floats& a, const Floats& b) {
    return each([&](std::size_t at) { return a.lanes[at] * b.lanes[at]; });
}
PURE inline Floats divide(const Floats& a, const Floats& b) {
    return each([&](std::size_t at) { return a.lanes[at] / b.lanes[at]; });
}
PURE inline Floats broadcast(float value) {
    return each([&](std::size_t) { return value; });
}
PURE inline Floats multiply_add(const Floats& a, const Floats& b, const Floats& c) {
    return each([&](std::size_t at) { return std::fma(a.lanes[at], b.lanes[at], c.lanes[at]); });
}
PURE inline Floats multiply_subtract(const Floats& a, const Floats& b, const Floats& c) {
    return each([&](std::size_t at) { return std::fma(a.lanes[at], b.lanes[at], -c.lanes[at]); });
}
PURE inline Floats max(const Floats& a, const Floats& b) {
    return each([&](std::size_t at) { return a.lanes[at] > b.lanes[at] ? a.lanes[at] : b.lanes[at]; });
}
PURE inline Floats max_magnitude(const Floats& a, const Floats& b) {
    return each([&](std::size_t at) { return std::fmax(std::fabs(a.lanes[at]), std::fabs(b.lanes[at])); });
}
// Halves are added to each other, as compilers do it for AVX-512.
PURE inline float sum_of(Floats a) {
    for (std::size_t half = kLanes / 2; half; half /= 2)
        for (std::size_t at = 0; at < half; ++at) a.lanes[at] += a.lanes[at + half];
    return a.lanes[0];
}
PURE inline float max_of(const Floats& a) {
    float largest = a.lanes[0];
    for (const float lane : a.lanes) largest = lane > largest ? lane : largest;
    return largest;
}

PURE inline Integers no_integers() {
    return each<std::int32_t>([](std::size_t) { return 0; });
}
PURE inline Integers add_integers(const Integers& a, const Integers& b) {
    return each<std::int32_t>([&](std::size_t at) {
        return static_cast<std::uint32_t>(a.lanes[at]) + static_cast<std::uint32_t>(b.lanes[at]);
    });
}
PURE inline Integers to_exponent(const Integers& a) {
    return each<std::int32_t>([&](std::size_t at) { return static_cast<std::uint32_t>(a.lanes[at]) << 23; });
}
PURE inline Integers bits_of(const Floats& a) { return bits<Integers>(a); }
PURE inline Floats floats_of_bits(const Integers& a) { return bits<Floats>(a); }
PURE inline Floats to_floats(const Integers& a) {
    return each([&](std::size_t at) { return static_cast<float>(a.lanes[at]); });
}
// As the instruction does it, a number that does not fit becomes the least.
PURE inline Integers to_integers(const Floats& a) {
    return each<std::int32_t>([&](std::size_t at) {
        const float whole = std::nearbyint(a.lanes[at]);
        return std::fabs(whole) < 2147483648.0f ? static_cast<std::int32_t>(whole) : INT32_MIN;
    });
}
// Not in the order of any instruction.
PURE inline Integers pack_shorts(const Integers& a, const Integers& b) {
    return bits<Integers>(each<std::int16_t>([&](std::size_t at) { return (at % 2 ? b : a).lanes[at / 2]; }));
}
PURE inline Integers interleave_shorts(const Integers& a, const Integers& b) { return pack_shorts(a, b); }
PURE inline void transpose(Integers (&rows)[kLanes]) {
    for (std::size_t row = 0; row < kLanes; ++row)
        for (std::size_t column = 0; column < row; ++column)
            std::swap(rows[row].lanes[column], rows[column].lanes[row]);
}

WATCHED inline Floats load(const float* from) {
    return each([&](std::size_t at) { return from[at]; });
}
WATCHED inline void store(float* to, const Floats& value) { std::memcpy(to, value.lanes, sizeof value); }
WATCHED inline Floats load_first(const float* from, std::size_t count, const Floats& otherwise) {
    return each([&](std::size_t at) { return at < count ? from[at] : otherwise.lanes[at]; });
}
WATCHED inline Integers load_integers(const std::int32_t* from) {
    return each<std::int32_t>([&](std::size_t at) { return from[at]; });
}
WATCHED inline Floats load_int8(const std::int8_t* from) {
    return each([&](std::size_t at) { return from[at]; });
}
template <class Number>
WATCHED inline void store_low(Number* to, const Integers& a) {
    for (std::size_t at = 0; at < kLanes; ++at) to[at] = static_cast<Number>(a.lanes[at]);
}
WATCHED inline Integers broadcast_4_bytes(const void* from) {
    std::int32_t four;
    std::memcpy(&four, from, sizeof four);
    return each<std::int32_t>([&](std::size_t) { return four; });
}
// These are aligned.
WATCHED inline Integers load_shorts(const std::int16_t* from) { return *reinterpret_cast<const Integers*>(from); }
WATCHED inline void store_shorts(std::int16_t* to, const Integers& a) { *reinterpret_cast<Integers*>(to) = a; }
WATCHED inline Weights load_weights(const std::int8_t* from) { return *reinterpret_cast<const Weights*>(from); }

[[gnu::noinline, gnu::no_sanitize("address")]] inline void dot(Integers& sums, const Integers& activations,
                                                               const Weights& weights) {
    const auto values = bits<Vector<std::uint8_t>>(activations);
    for (std::size_t at = 0; at < 64; ++at) sums.lanes[at / 4] += values.lanes[at] * weights.lanes[at];
}
[[gnu::noinline, gnu::no_sanitize("address")]] inline void dot_shorts(Integers& sums, const Integers& a,
                                                                      const Integers& b) {
    const auto one = bits<Vector<std::int16_t>>(a), other = bits<Vector<std::int16_t>>(b);
    for (std::size_t at = 0; at < 32; ++at) sums.lanes[at / 2] += one.lanes[at] * other.lanes[at];
}

template <class Register>
inline void keep(Register&) {}
inline void prefetch_to_l1(const void*) {}
inline void prefetch_to_l2(const void*) {}

}  // namespace

}  // namespace rerankd

#include "isa/gelu.h"
