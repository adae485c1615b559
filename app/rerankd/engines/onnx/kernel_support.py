"""Tells whether the compiled kernels (engines/onnx/kernels) can be used here, or why not and what to install.

    python -m rerankd.engines.onnx.kernel_support

prints the answer, and the instruction set that they use. It exits with 1 if the kernels were not compiled, so that the
build of an image can require them. A CPU that cannot run them is not an error.
"""

import platform
import shutil
import sys
import sysconfig
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Final

# ONNX Runtime's operator for the matmuls that the kernels compute.
INT8_MATMUL: Final = "MatMulIntegerToFloat"
NO_INT8_LAYERS: Final = (
    "the graph has no int8 encoder layer like BERT's or ModernBERT's, as `rerankd export` writes them"
)
# `make install` alone does nothing if no file has changed.
_AGAIN: Final = "install rerankd again from its source (in a checkout: make clean install)"
KERNELS: Final = Path(__file__).parent / "kernels"
_INSTRUCTION_SET: Final = "RERANKD_INSTRUCTION_SET"
_COMPILERS: Final = ("c++", "g++", "clang++", "cl")


def mentions_int8_matmuls(graph: Path) -> bool:
    """Whether a graph's file may hold int8 matmuls. Fast, even if it has gigabytes."""
    with graph.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        return content.find(INT8_MATMUL.encode()) >= 0


def why_not_compiled(folder: Path = KERNELS, *, find_program: Callable[[str], str | None] = shutil.which) -> str | None:
    """Why the kernels cannot be imported, and what to do; None if they can."""
    if find_spec("onnx") is None:
        return "the package onnx is not installed; install the extra `cpu`"
    built = sorted(path.name for path in folder.glob("_compiled*") if path.suffix in {".so", ".pyd", ".dll"})
    if any(name == f"_compiled{suffix}" for name in built for suffix in EXTENSION_SUFFIXES):
        return _why_not_importable()
    if built:
        return f"they were compiled for another Python or machine ({', '.join(built)}); {_AGAIN}"
    if not any(find_program(name) for name in _COMPILERS):
        return f"no C++ compiler was found; install one (Debian: g++ and python3-dev), then {_AGAIN}"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        return f"Python's headers are not installed ({header}; Debian: python3-dev); then {_AGAIN}"
    return "the compiler failed; pip install --verbose with rerankd's source shows why (in a checkout: --no-deps -e .)"


def why_not_usable() -> str | None:
    """Why the kernels cannot run on this machine; None if they can."""
    reason = why_not_compiled()
    if reason is not None:
        return f"the compiled kernels are missing: {reason}"
    from rerankd.engines.onnx.kernels import instruction_sets  # noqa: PLC0415 - it fails where it was not compiled

    if instruction_sets():
        return None
    return (
        "the kernels need AVX2 (x86-64) or the dot product (Arm, on Linux), and a compiler that knows it; "
        f"this CPU is {platform.machine()}"
    )


def _why_not_importable() -> str | None:
    try:
        import_module("rerankd.engines.onnx.kernels")
    except ImportError as error:
        if str(error).startswith(_INSTRUCTION_SET):
            return f"they cannot be used ({error}); correct or unset the variable"
        return f"they cannot be loaded ({error}); {_AGAIN}"
    return None


def main() -> int:
    """Print whether the kernels can be used here."""
    reason = why_not_usable()
    if reason is None:
        from rerankd.engines.onnx.kernels import instruction_set  # noqa: PLC0415 - as above

        print(f"kernels: compiled, and this CPU runs them with {instruction_set()}")  # noqa: T201 - a command of its own
    else:
        print(f"kernels: {reason}. rerankd works without them, at about half the speed.")  # noqa: T201 - as above
    return 0 if why_not_compiled() is None else 1


if __name__ == "__main__":
    sys.exit(main())
