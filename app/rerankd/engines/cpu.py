"""What the CPU engines must know about int8 matmuls on this CPU."""

import platform
from pathlib import Path
from typing import Final

_CPUINFO: Final = Path("/proc/cpuinfo")


def int8_sums_overflow(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether this CPU accumulates int8 matmuls in pairs of 16 bits, which can overflow: x86 without VNNI
    (docs/adr/0011). True where that is unknown.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        flags = cpuinfo.read_text(encoding="utf-8").split()
    except OSError:
        return True
    return not {"avx512_vnni", "avx_vnni"}.intersection(flags)
