// Which instruction sets were compiled, and which of them this CPU has. Compiled for any CPU.

#include "sets.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace rerankd {

namespace {

struct CompiledSet {
    const InstructionSet* set;
    bool (*supported)();
};

#if defined(__x86_64__)

bool has_avx2() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool has_avx512_vnni() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}

[[maybe_unused]] bool has_avx_vnni() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

// Linux saves the tiles of a process only if it asks for that.
[[maybe_unused]] bool has_amx() {
#if defined(__linux__)
    constexpr int request_permission = 0x1023, tile_data = 18;
    unsigned a = 0, b = 0, c = 0, d = 0;
    return has_avx512_vnni() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 1) && (d >> 25 & 1) &&
           syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}

#elif defined(__aarch64__) && defined(__linux__)

[[maybe_unused]] bool has_neon_dot() { return getauxval(AT_HWCAP) & HWCAP_ASIMDDP; }

[[maybe_unused]] bool has_neon_i8mm() {
    constexpr unsigned long i8mm = 1 << 13;
    return has_neon_dot() && (getauxval(AT_HWCAP2) & i8mm);
}

#endif

// The fastest last.
constexpr CompiledSet kCompiledSets[] = {
#if defined(RERANKD_WITH_AVX2)
    {&kAvx2, has_avx2},
#endif
#if defined(RERANKD_WITH_AVX_VNNI)
    {&kAvxVnni, has_avx_vnni},
#endif
#if defined(RERANKD_WITH_AVX512_VNNI)
    {&kAvx512Vnni, has_avx512_vnni},
#endif
#if defined(RERANKD_WITH_AMX)
    {&kAmx, has_amx},
#endif
#if defined(RERANKD_WITH_NEON_DOT)
    {&kNeonDot, has_neon_dot},
#endif
#if defined(RERANKD_WITH_NEON_I8MM)
    {&kNeonI8mm, has_neon_i8mm},
#endif
#if defined(RERANKD_WITH_EMULATED)
    {&kEmulated, [] { return true; }},
#endif
    {nullptr, nullptr},
};

}  // namespace

const std::vector<const InstructionSet*>& instruction_sets() {
    static const std::vector<const InstructionSet*> supported = [] {
        std::vector<const InstructionSet*> found;
        for (const CompiledSet& compiled : kCompiledSets)
            if (compiled.set != nullptr && compiled.supported()) found.push_back(compiled.set);
        return found;
    }();
    return supported;
}

}  // namespace rerankd
