#include "emulated.h"
//
#include "gemm.h"
//
#include "encoder.h"
#include "isa/sets.h"

namespace rerankd {

const InstructionSet kEmulated = instruction_set("emulated");

}  // namespace rerankd
