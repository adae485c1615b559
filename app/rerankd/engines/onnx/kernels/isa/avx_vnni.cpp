#include "avx_vnni.h"

#include "../gemm.h"
//
#include "../encoder.h"
#include "sets.h"

namespace rerankd {

const InstructionSet kAvxVnni = instruction_set("avx_vnni");

}  // namespace rerankd
