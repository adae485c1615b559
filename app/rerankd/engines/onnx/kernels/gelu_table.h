// A lookup table for GELU, for instruction sets that look up 32 floats in one instruction.

#pragma once

namespace rerankd {

// The even part of GELU, x (Phi(x) - 1/2), as a piecewise parabola around 32 points, starting at 0. Each parabola goes
// through three values of the function; the last piece is its asymptote.
struct EvenGelu {
    static constexpr float kEnd = 4.999f, kSteps = 6.3f;  // points per unit; kEnd rounds to the last point
    alignas(64) float constant[32], linear[32], square[32];

    EvenGelu();
};

extern const EvenGelu kEvenGelu;

}  // namespace rerankd
