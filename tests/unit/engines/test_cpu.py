"""What is known about int8 matmuls on this CPU."""

import platform
from pathlib import Path

import pytest

from rerankd.engines.cpu import int8_sums_overflow


@pytest.mark.skipif(platform.machine() != "x86_64", reason="concerns x86 CPUs")
@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fma avx2", True), ("avx2 avx512f avx512bw", True), ("avx2 avx_vnni", False), ("avx512f avx512_vnni", False)],
)
def test_cpus_whose_sums_overflow_are_known(tmp_path: Path, flags: str, expected: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\nflags\t\t: fpu {flags}\nbugs : none\n")
    assert int8_sums_overflow(cpuinfo) == expected
    assert int8_sums_overflow(tmp_path / "nowhere")
