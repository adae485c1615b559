// AMX for the matmuls of activations and weights, AVX-512 with VNNI for everything else.

#include "avx512_vnni.h"
//
#include "amx_gemm.h"
//
#include "../encoder.h"
#include "sets.h"

namespace rerankd {

const InstructionSet kAmx = instruction_set("amx");

}  // namespace rerankd
