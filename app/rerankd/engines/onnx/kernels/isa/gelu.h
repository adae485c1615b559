// GELU for instruction sets without a lookup of 32 floats. Included by their headers.

#pragma once

#include "exp.h"

namespace rerankd {

namespace {

// GELU, x Phi(x) (Hendrycks and Gimpel, arXiv:1606.08415). The error function is the approximation 7.1.26 of
// Abramowitz and Stegun, Handbook of Mathematical Functions, with an error of at most 1.5e-7.
inline Floats gelu(Floats x) {
    const Floats magnitude = max_magnitude(x, x), one = broadcast(1);
    const Floats t = divide(one, multiply_add(magnitude, broadcast(0.3275911f * 0.70710678f), one));
    Floats sum = broadcast(1.061405429f);
    for (const float factor : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f})
        sum = multiply_add(sum, t, broadcast(factor));
    // erfc(|x| / sqrt(2)) / 2
    const Floats tail = sum * t * fast_exp(x * x * broadcast(-0.5f)) * broadcast(0.5f);
    // x Phi(x) = max(x, 0) - |x| Phi(-|x|)
    return max(x, broadcast(0)) - magnitude * tail;
}

}  // namespace

}  // namespace rerankd
