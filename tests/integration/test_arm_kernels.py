"""The kernels of Arm's instruction sets, compiled for Arm and run by an emulator. Needs the packages
g++-aarch64-linux-gnu and qemu-user (Debian's names).
"""

import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.sanitizers.runner import KERNELS

pytestmark = [pytest.mark.slow, pytest.mark.uncovered]

_COMPILER: Final = "aarch64-linux-gnu-g++"
_EMULATOR: Final = "qemu-aarch64"
_SOURCES: Final = Path(__file__).parents[1] / "sanitizers"
_FLAGS: Final = (
    "-std=c++17",
    "-O2",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Werror",
    f"-I{KERNELS}",
    f"-I{_SOURCES}",
)
_SETS: Final = {"neon_dot": "armv8.2-a+dotprod", "neon_i8mm": "armv8.2-a+dotprod+i8mm"}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compares every set that the CPU has with the emulated one of the sanitizers' tests."""
    for needed in (_COMPILER, _EMULATOR):
        if shutil.which(needed) is None:
            pytest.skip(f"{needed} is not installed; Debian: apt-get install g++-aarch64-linux-gnu qemu-user")
    folder = tmp_path_factory.mktemp("arm")
    objects = []
    for name, architecture in _SETS.items():
        objects.append(folder / f"{name}.o")
        _compile(f"-march={architecture}", "-c", KERNELS / "isa" / f"{name}.cpp", "-o", objects[-1])
    compiled = [f"-DRERANKD_WITH_{name.upper()}" for name in (*_SETS, "emulated")]
    sources = [
        KERNELS / "isa" / "sets.cpp",
        KERNELS / "layers.cpp",
        _SOURCES / "emulated.cpp",
        _SOURCES / "compare.cpp",
    ]
    _compile("-static", *compiled, *sources, *objects, "-o", folder / "compare")
    return folder / "compare"


def _compile(*arguments: str | Path) -> None:
    subprocess.run([_COMPILER, *_FLAGS, *map(str, arguments)], check=True)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("cpu", "sets"),
    [
        ("max", ["neon_dot", "neon_i8mm", "emulated"]),
        ("neoverse-n1", ["neon_dot", "emulated"]),
        ("cortex-a72", ["emulated"]),
    ],
)
def test_arm_computes_what_the_emulated_set_does_with_what_the_cpu_has(
    program: Path, cpu: str, sets: list[str]
) -> None:
    ran = subprocess.run([_EMULATOR, "-cpu", cpu, program], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.split(), ran.stderr) == (0, sets, "")
