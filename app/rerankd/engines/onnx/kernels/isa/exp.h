// The exponential function. Included by headers of instruction sets.

#pragma once

namespace rerankd {

namespace {

// Adding this rounds a float to an integer, which is then in its lowest bits.
constexpr float kRoundToInteger = 12582912;  // 1.5 2^23

// exp(x) for x <= 0, with a relative error of 4e-6, clamped at 2^-115. Computes 2^(x log2 e) with a polynomial for the
// fraction.
inline Floats fast_exp(Floats x) {
    const Floats log2e = broadcast(1.44269504f), whole = broadcast(kRoundToInteger);
    const Floats within = max(x, broadcast(-80));
    const Floats power = multiply_add(within, log2e, whole);
    const Floats rest = multiply_subtract(within, log2e, power - whole);
    Floats sum = broadcast(0.00957010191f);
    for (const float factor : {0.0559178603f, 0.240247448f, 0.693121815f, 0.999999261f})
        sum = multiply_add(sum, rest, broadcast(factor));
    return floats_of_bits(add_integers(bits_of(sum), to_exponent(bits_of(power))));
}

}  // namespace

}  // namespace rerankd
