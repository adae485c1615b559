#include "neon_dot.h"
//
#include "../gemm.h"
//
#include "../encoder.h"
#include "sets.h"

namespace rerankd {

const InstructionSet kNeonDot = instruction_set("neon_dot");

}  // namespace rerankd
