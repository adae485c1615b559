// A table for the activation of feed-forward networks.
//
// layers.cpp alone includes this, before its pragma: the table is computed when the module is loaded, so without any
// instruction that a processor may lack.

#pragma once

#include <cmath>

namespace rerankd {

namespace {

// The even part of GELU, x times the normal distribution's function less a half, around 32 points from 0 on: the
// parabola through three of its values, and from the last point on the line that it comes to.
struct EvenGelu {
    static constexpr float kEnd = 4.999f, kSteps = 6.3f;  // so many to 1: the last point is kEnd's nearest
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
