#include "neon.h"
//
#include "i8mm_gemm.h"
//
#include "../encoder.h"
#include "sets.h"

namespace rerankd {

const InstructionSet kNeonI8mm = instruction_set("neon_i8mm");

}  // namespace rerankd
