#include "avx512_vnni.h"

#include "../gemm.h"
//
#include "../encoder.h"
#include "sets.h"

namespace rerankd {

const InstructionSet kAvx512Vnni = instruction_set("avx512_vnni");

}  // namespace rerankd
