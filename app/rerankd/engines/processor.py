"""What this processor does with products of int8, which the CPU engines have to know."""

import platform
from pathlib import Path
from typing import Final

_CPUINFO: Final = Path("/proc/cpuinfo")


def int8_sums_overflow(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether this processor adds two products of int8 in 16 bits, which do not hold them: x86 without VNNI
    (docs/adr/0011). One that does not say is taken for such a one.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        flags = cpuinfo.read_text(encoding="utf-8").split()
    except OSError:
        return True
    return not {"avx512_vnni", "avx_vnni"}.intersection(flags)
