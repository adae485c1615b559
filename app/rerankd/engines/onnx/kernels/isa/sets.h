// The instruction sets that a build may have: setup.py defines RERANKD_WITH_... for those that it compiles.

#pragma once

#include "../layers.h"

namespace rerankd {

extern const InstructionSet kAvx2, kAvxVnni, kAvx512Vnni, kAmx, kNeonDot, kNeonI8mm, kEmulated;

}  // namespace rerankd
