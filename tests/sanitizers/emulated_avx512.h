// Emulates the kernels' instructions in plain C++, so that the sanitizers see every load, store and alignment. Runs on
// any CPU with AVX2.
//
// GCC and clang have the vector types __m512 and __m512i without AVX-512 too; only the functions are missing.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

// Not inlined, because a kernel has hundreds of calls and would take minutes to compile. Only loads and stores access
// other memory, and only dot products can overflow, so the rest is not instrumented.
#define PURE [[gnu::noinline, gnu::no_sanitize("address", "undefined")]]
#define WATCHED [[gnu::noinline]]

namespace emulated {

using Floats = __m512;
using Integers = std::int32_t __attribute__((vector_size(64), may_alias));
using Bytes = std::int8_t __attribute__((vector_size(64), may_alias));
using UnsignedBytes = std::uint8_t __attribute__((vector_size(64), may_alias));
using Shorts = std::int16_t __attribute__((vector_size(64), may_alias));

inline Integers integers(__m512i value) { return (Integers)value; }
inline __m512i raw(Integers value) { return (__m512i)value; }

template <class Function>
Floats each(Function function) {
    Floats result{};
    for (int at = 0; at < 16; ++at) result[at] = function(at);
    return result;
}

template <class Function>
__m512i each_integer(Function function) {
    Integers result{};
    for (int at = 0; at < 16; ++at) result[at] = function(at);
    return raw(result);
}

template <class To, class From>
To bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <class To>
To unaligned(const void* from) {
    To to;
    std::memcpy(&to, from, sizeof to);
    return to;
}

PURE inline Floats set1_ps(float value) {
    return each([&](int) { return value; });
}
PURE inline Floats setzero_ps() { return set1_ps(0); }
PURE inline __m512i set1_epi32(std::int32_t value) {
    return each_integer([&](int) { return value; });
}
PURE inline __m512i setzero_si512() { return set1_epi32(0); }
PURE inline __m512i set_epi32(int p, int o, int n, int m, int l, int k, int j, int i, int h, int g, int f, int e, int d,
                              int c, int b, int a) {
    return raw(Integers{a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p});
}

PURE inline Floats add_ps(Floats a, Floats b) { return a + b; }
PURE inline Floats sub_ps(Floats a, Floats b) { return a - b; }
PURE inline Floats mul_ps(Floats a, Floats b) { return a * b; }
PURE inline Floats div_ps(Floats a, Floats b) { return a / b; }
PURE inline Floats fmadd_ps(Floats a, Floats b, Floats c) {
    return each([&](int at) { return std::fma(a[at], b[at], c[at]); });
}
PURE inline Floats fmsub_ps(Floats a, Floats b, Floats c) {
    return each([&](int at) { return std::fma(a[at], b[at], -c[at]); });
}
PURE inline Floats max_ps(Floats a, Floats b) {
    return each([&](int at) { return a[at] > b[at] ? a[at] : b[at]; });
}
PURE inline Floats abs_ps(Floats a) {
    return each([&](int at) { return std::fabs(a[at]); });
}
// The larger (0b1011) or smaller (0b1010) of two magnitudes, without a sign.
template <int Control>
PURE Floats range_ps(Floats a, Floats b) {
    static_assert(Control == 0b1011 || Control == 0b1010);
    return each([&](int at) {
        const float one = std::fabs(a[at]), other = std::fabs(b[at]);
        return Control == 0b1011 ? std::fmax(one, other) : std::fmin(one, other);
    });
}
// Halves are added to each other, as GCC's and clang's functions do.
PURE inline float reduce_add_ps(Floats a) {
    for (int half = 8; half; half /= 2)
        for (int at = 0; at < half; ++at) a[at] += a[at + half];
    return a[0];
}
PURE inline float reduce_max_ps(Floats a) {
    float largest = a[0];
    for (int at = 1; at < 16; ++at) largest = a[at] > largest ? a[at] : largest;
    return largest;
}

PURE inline __m512i add_epi32(__m512i a, __m512i b) {
    return each_integer([&](int at) {
        return static_cast<std::int32_t>(static_cast<std::uint32_t>(integers(a)[at]) +
                                         static_cast<std::uint32_t>(integers(b)[at]));
    });
}
PURE inline __m512i slli_epi32(__m512i a, unsigned by) {
    return each_integer(
        [&](int at) { return static_cast<std::int32_t>(static_cast<std::uint32_t>(integers(a)[at]) << by); });
}
// For each bit of the three, one of eight bits.
PURE inline __m512i ternarylogic_epi32(__m512i a, __m512i b, __m512i c, int table) {
    return each_integer([&](int at) {
        std::uint32_t result = 0;
        for (int bit = 0; bit < 32; ++bit) {
            const auto of = [&](__m512i value) { return static_cast<std::uint32_t>(integers(value)[at]) >> bit & 1; };
            result |= (static_cast<std::uint32_t>(table) >> (of(a) << 2 | of(b) << 1 | of(c)) & 1) << bit;
        }
        return static_cast<std::int32_t>(result);
    });
}

PURE inline Floats cvtepi32_ps(__m512i a) {
    return each([&](int at) { return static_cast<float>(integers(a)[at]); });
}
PURE inline __m512i cvtps_epi32(Floats a) {
    return each_integer([&](int at) {
        const float whole = std::nearbyint(a[at]);
        const bool fits = whole >= -2147483648.0f && whole < 2147483648.0f;
        return fits ? static_cast<std::int32_t>(whole) : std::numeric_limits<std::int32_t>::min();
    });
}
PURE inline __m512i cvtepi8_epi32(__m128i a) {
    const auto bytes = bits<Bytes>(__m512i{a[0], a[1]});
    return each_integer([&](int at) { return static_cast<std::int32_t>(bytes[at]); });
}
PURE inline __m128i cvtepi32_epi8(__m512i a) {
    std::int8_t bytes[16];
    for (int at = 0; at < 16; ++at) bytes[at] = static_cast<std::int8_t>(integers(a)[at] & 0xFF);
    return unaligned<__m128i>(bytes);
}
PURE inline __m256i cvtepi32_epi16(__m512i a) {
    std::int16_t shorts[16];
    for (int at = 0; at < 16; ++at) shorts[at] = static_cast<std::int16_t>(integers(a)[at] & 0xFFFF);
    return unaligned<__m256i>(shorts);
}
// Four numbers of one and four of the other, in each part of 128 bits, cut to 16 bits.
PURE inline __m512i packs_epi32(__m512i a, __m512i b) {
    Shorts result{};
    for (int at = 0; at < 32; ++at) {
        const Integers from = integers(at % 8 < 4 ? a : b);
        const std::int32_t value = from[at / 8 * 4 + at % 4];
        result[at] = static_cast<std::int16_t>(value > 32767 ? 32767 : value < -32768 ? -32768 : value);
    }
    return (__m512i)result;
}

PURE inline Floats castsi512_ps(__m512i a) { return bits<Floats>(a); }
PURE inline __m512i castps_si512(Floats a) { return bits<__m512i>(a); }
PURE inline __m256 castps512_ps256(Floats a) { return unaligned<__m256>(&a); }
PURE inline __m128 castps512_ps128(Floats a) { return unaligned<__m128>(&a); }
// What is not there is undefined: here it is nothing that a sum could hide.
PURE inline Floats castps128_ps512(__m128 a) {
    return each([&](int at) { return at < 4 ? a[at] : std::numeric_limits<float>::quiet_NaN(); });
}
PURE inline Floats broadcast_f32x4(__m128 a) {
    return each([&](int at) { return a[at % 4]; });
}
PURE inline __m256 extractf32x8_ps(Floats a, int half) {
    float part[8];
    for (int at = 0; at < 8; ++at) part[at] = a[8 * half + at];
    return unaligned<__m256>(part);
}

PURE inline Floats permute_ps(Floats a, int order) {
    return each([&](int at) { return a[at / 4 * 4 + (order >> at % 4 * 2 & 3)]; });
}
PURE inline Floats permutexvar_ps(__m512i at_each, Floats a) {
    return each([&](int at) { return a[integers(at_each)[at] & 15]; });
}
PURE inline Floats permutex2var_ps(Floats a, __m512i at_each, Floats b) {
    return each([&](int at) {
        const std::int32_t from = integers(at_each)[at];
        return from & 16 ? b[from & 15] : a[from & 15];
    });
}
PURE inline Floats maskz_compress_ps(__mmask16 mask, Floats a) {
    Floats result{};
    for (int at = 0, to = 0; at < 16; ++at)
        if (mask >> at & 1) result[to++] = a[at];
    return result;
}
PURE inline __m512i shuffle_i32x4(__m512i a, __m512i b, int order) {
    return each_integer([&](int at) {
        const int part = order >> at / 4 * 2 & 3;
        return integers(at < 8 ? a : b)[part * 4 + at % 4];
    });
}
// From each part of 128 bits its first or second half, numbers of `Width` of both in turns.
template <int Width, bool High>
PURE __m512i unpack(__m512i a, __m512i b) {
    return each_integer([&](int at) {
        const int within = at % 4, number = within / Width;
        const int from = at / 4 * 4 + (High ? 2 : 0) + number / 2 * Width + within % Width;
        return integers(number % 2 ? b : a)[from];
    });
}

WATCHED inline Floats loadu_ps(const void* from) { return unaligned<Floats>(from); }
WATCHED inline __m512i loadu_si512(const void* from) { return unaligned<__m512i>(from); }
WATCHED inline void storeu_ps(void* to, Floats value) { std::memcpy(to, &value, sizeof value); }
WATCHED inline Floats load_ps(const void* from) { return *static_cast<const Floats*>(from); }
WATCHED inline __m512i load_si512(const void* from) { return *static_cast<const __m512i*>(from); }
WATCHED inline void store_si512(void* to, __m512i value) { *static_cast<__m512i*>(to) = value; }
WATCHED inline Floats mask_loadu_ps(Floats otherwise, __mmask16 mask, const float* from) {
    return each([&](int at) { return mask >> at & 1 ? from[at] : otherwise[at]; });
}

}  // namespace emulated

namespace rerankd {

namespace {

[[gnu::noinline, gnu::no_sanitize("address")]] inline void dot_accumulate_u8s8(__m512i& sums, __m512i values,
                                                                               __m512i weights) {
    const auto unsigned_bytes = (emulated::UnsignedBytes)values;
    const auto bytes = (emulated::Bytes)weights;
    emulated::Integers result = emulated::integers(sums);
    for (int at = 0; at < 64; ++at) result[at / 4] += unsigned_bytes[at] * bytes[at];
    sums = emulated::raw(result);
}

[[gnu::noinline, gnu::no_sanitize("address")]] inline void dot_accumulate_s16(__m512i& sums, __m512i values,
                                                                              __m512i weights) {
    const auto one = (emulated::Shorts)values, other = (emulated::Shorts)weights;
    emulated::Integers result = emulated::integers(sums);
    for (int at = 0; at < 32; ++at) result[at / 2] += one[at] * other[at];
    sums = emulated::raw(result);
}

inline bool cpu_has_instructions() { return true; }

}  // namespace

}  // namespace rerankd

#define _mm512_abs_ps emulated::abs_ps
#define _mm512_add_epi32 emulated::add_epi32
#define _mm512_add_ps emulated::add_ps
#define _mm512_broadcast_f32x4 emulated::broadcast_f32x4
#define _mm512_castps128_ps512 emulated::castps128_ps512
#define _mm512_castps512_ps128 emulated::castps512_ps128
#define _mm512_castps512_ps256 emulated::castps512_ps256
#define _mm512_castps_si512 emulated::castps_si512
#define _mm512_castsi512_ps emulated::castsi512_ps
#define _mm512_cvtepi32_epi16 emulated::cvtepi32_epi16
#define _mm512_cvtepi32_epi8 emulated::cvtepi32_epi8
#define _mm512_cvtepi32_ps emulated::cvtepi32_ps
#define _mm512_cvtepi8_epi32 emulated::cvtepi8_epi32
#define _mm512_cvtps_epi32 emulated::cvtps_epi32
#define _mm512_div_ps emulated::div_ps
#undef _mm512_extractf32x8_ps
#define _mm512_extractf32x8_ps emulated::extractf32x8_ps
#define _mm512_fmadd_ps emulated::fmadd_ps
#define _mm512_fmsub_ps emulated::fmsub_ps
#define _mm512_load_ps emulated::load_ps
#define _mm512_load_si512 emulated::load_si512
#define _mm512_loadu_ps emulated::loadu_ps
#define _mm512_loadu_si512 emulated::loadu_si512
#define _mm512_mask_loadu_ps emulated::mask_loadu_ps
#define _mm512_maskz_compress_ps emulated::maskz_compress_ps
#define _mm512_max_ps emulated::max_ps
#define _mm512_mul_ps emulated::mul_ps
#define _mm512_packs_epi32 emulated::packs_epi32
#undef _mm512_permute_ps
#define _mm512_permute_ps emulated::permute_ps
#define _mm512_permutex2var_ps emulated::permutex2var_ps
#define _mm512_permutexvar_ps emulated::permutexvar_ps
#undef _mm512_range_ps
#define _mm512_range_ps(a, b, control) emulated::range_ps<control>(a, b)
#define _mm512_reduce_add_ps emulated::reduce_add_ps
#define _mm512_reduce_max_ps emulated::reduce_max_ps
#define _mm512_set1_epi32 emulated::set1_epi32
#define _mm512_set1_ps emulated::set1_ps
#define _mm512_set_epi32 emulated::set_epi32
#define _mm512_setzero_ps emulated::setzero_ps
#define _mm512_setzero_si512 emulated::setzero_si512
#undef _mm512_shuffle_i32x4
#define _mm512_shuffle_i32x4 emulated::shuffle_i32x4
#undef _mm512_slli_epi32
#define _mm512_slli_epi32 emulated::slli_epi32
#define _mm512_store_si512 emulated::store_si512
#define _mm512_storeu_ps emulated::storeu_ps
#define _mm512_sub_ps emulated::sub_ps
#undef _mm512_ternarylogic_epi32
#define _mm512_ternarylogic_epi32 emulated::ternarylogic_epi32
#define _mm512_unpackhi_epi32 emulated::unpack<1, true>
#define _mm512_unpackhi_epi64 emulated::unpack<2, true>
#define _mm512_unpacklo_epi32 emulated::unpack<1, false>
#define _mm512_unpacklo_epi64 emulated::unpack<2, false>
