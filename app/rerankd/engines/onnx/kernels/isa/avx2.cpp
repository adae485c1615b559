#include "avx2.h"

#include "../gemm.h"
//
#include "../encoder.h"
#include "sets.h"

namespace rerankd {

const InstructionSet kAvx2 = instruction_set("avx2");

}  // namespace rerankd
