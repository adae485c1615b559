"""Runs the tests of the C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer.

The layers are compiled with an instruction set in plain C++ (emulated.h), so this runs on any CPU. Each load, store and
alignment is checked, and each dot product for overflow. A report ends the tests. It takes about a minute to compile.
"""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pybind11

_ROOT: Final = Path(__file__).resolve().parent.parent.parent
KERNELS: Final = _ROOT / "app" / "rerankd" / "engines" / "onnx" / "kernels"
_TESTS: Final = ("tests/unit/engines/test_kernels.py",)
COMPILER: Final = "g++"
_FLAGS: Final = (
    *("-std=c++17", "-O1", "-g1", "-ffp-contract=off"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-Wno-attributes", "-DRERANKD_WITH_EMULATED"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"),
)


def build(sources: Sequence[Path], target: Path, *, shared: bool) -> None:
    """Compile with both sanitizers and the emulated instruction set, a library or a program.

    Raises:
        subprocess.CalledProcessError: the compiler refuses them; it says why on standard error.
    """
    include = (sysconfig.get_path("include"), pybind11.get_include())
    command = [
        *(COMPILER, *_FLAGS, f"-I{KERNELS}"),
        *(f"-isystem{folder}" for folder in include),
        *(["-shared", "-fPIC"] if shared else []),
        *map(str, sources),
        *("-o", str(target)),
    ]
    subprocess.run(command, check=True)


def build_kernels(target: Path) -> None:
    """The same of the kernels."""
    emulated = Path(__file__).with_name("emulated.cpp")
    build([*sorted(KERNELS.glob("*.cpp")), KERNELS / "isa" / "sets.cpp", emulated], target, shared=True)


def run_tests(kernels: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    """Run the kernels' tests with the compiled file. A report ends them with a status that is not 0."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.sanitizers.plugin", "-p", "no:cacheprovider", "-q"]
    return subprocess.run(
        [*command, *_TESTS, *options], env=_environment(kernels), cwd=_ROOT, check=False, capture_output=True, text=True
    )


def _environment(kernels: Path) -> dict[str, str]:
    # Python itself is not compiled with the sanitizers, so they must be there before it; what it leaks is not ours.
    runtimes = " ".join(_library(name) for name in ("libasan.so", "libubsan.so"))
    return os.environ | {
        "RERANKD_TEST_KERNELS": str(kernels),
        "LD_PRELOAD": runtimes,
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
    }


def _library(name: str) -> str:
    found = subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()
