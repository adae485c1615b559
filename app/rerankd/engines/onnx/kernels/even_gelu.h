// A lookup table for GELU.
//
// Included by layers.cpp only, before its target pragma: the table is computed when the module is loaded, on any CPU.

#pragma once

#include <cmath>

namespace rerankd {

namespace {

// The even part of GELU, x (Phi(x) - 1/2), as a piecewise parabola around 32 points, starting at 0. Each parabola goes
// through three values of the function; the last piece is its asymptote.
struct EvenGelu {
    static constexpr float kEnd = 4.999f, kSteps = 6.3f;  // points per unit; kEnd rounds to the last point
    alignas(64) float constant[32], linear[32], square[32];

    EvenGelu() {
        const auto at = [](double x) { return x * std::erf(x / std::sqrt(2.0)) / 2; };
        const double apart = std::sqrt(3.0) / 4 / kSteps;
        for (int step = 0; step < 31; ++step) {
            const double middle = step / static_cast<double>(kSteps);
            const double bend = (at(middle + apart) - 2 * at(middle) + at(middle - apart)) / (2 * apart * apart);
            const double slope = (at(middle + apart) - at(middle - apart)) / (2 * apart);
            constant[step] = static_cast<float>(at(middle) - slope * middle + bend * middle * middle);
            linear[step] = static_cast<float>(slope - 2 * bend * middle);
            square[step] = static_cast<float>(bend);
        }
        constant[31] = square[31] = 0;
        linear[31] = 0.5f;
    }
};

const EvenGelu kEvenGelu;

}  // namespace

}  // namespace rerankd
