"""Runs the tests of the C++ kernels and of WordPiece under AddressSanitizer and UndefinedBehaviorSanitizer.

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
WORDPIECE: Final = _ROOT / "app" / "rerankd" / "scorers" / "wordpiece"
KERNELS_MODULE: Final = "rerankd.engines.onnx.kernels._compiled"
WORDPIECE_MODULE: Final = "rerankd.scorers.wordpiece._compiled"
_TESTS: Final = {
    KERNELS_MODULE: "tests/unit/engines/test_kernels.py",
    WORDPIECE_MODULE: "tests/unit/scorers/test_document_tokenizer.py",
}
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


def build_wordpiece(target: Path) -> None:
    """The same of WordPiece."""
    build([WORDPIECE / "module.cpp"], target, shared=True)


def run_tests(module: str, compiled: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    """Run an extension module's tests with the compiled file. A report ends them with a status that is not 0."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.sanitizers.plugin", "-p", "no:cacheprovider", "-q"]
    environment = _environment() | {"RERANKD_TEST_MODULE": module, "RERANKD_TEST_COMPILED": str(compiled)}
    return subprocess.run(
        [*command, _TESTS[module], *options], env=environment, cwd=_ROOT, check=False, capture_output=True, text=True
    )


def _environment() -> dict[str, str]:
    # Python itself is not compiled with the sanitizers, so they must be there before it; what it leaks is not ours.
    runtimes = " ".join(_library(name) for name in ("libasan.so", "libubsan.so"))
    return os.environ | {
        "LD_PRELOAD": runtimes,
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
    }


def _library(name: str) -> str:
    found = subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()
