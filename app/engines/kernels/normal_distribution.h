// A table for the activation of feed-forward networks.
//
// layers.cpp alone includes this, before its pragma: the table is computed when the module is loaded, so without any
// instruction that a processor may lack.

#pragma once

#include <cmath>

namespace rerankd {

namespace {

// The normal distribution's function less a half, from 0 to 5 around 32 points: the parabola through three of its values.
struct NormalDistribution {
    static constexpr float kEnd = 4.999f, kSteps = 6.3f;  // so many to 1: the last point is kEnd's nearest
    alignas(64) float constant[32], linear[32], square[32];

    NormalDistribution() {
        const auto at = [](double x) { return std::erf(x / std::sqrt(2.0)) / 2; };
        const double apart = std::sqrt(3.0) / 4 / kSteps;
        for (int step = 0; step < 32; ++step) {
            const double middle = step / static_cast<double>(kSteps);
            const double bend = (at(middle + apart) - 2 * at(middle) + at(middle - apart)) / (2 * apart * apart);
            const double slope = (at(middle + apart) - at(middle - apart)) / (2 * apart);
            constant[step] = static_cast<float>(at(middle) - slope * middle + bend * middle * middle);
            linear[step] = static_cast<float>(slope - 2 * bend * middle);
            square[step] = static_cast<float>(bend);
        }
    }
};

const NormalDistribution kNormal;

}  // namespace

}  // namespace rerankd
