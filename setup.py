"""The kernels of rerankd/engines/onnx, and WordPiece. Where they cannot be compiled, all works without, but slower."""

import platform
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext, has_flag
from setuptools import setup

ParallelCompile(default=0).install()  # on all CPUs

_KERNELS_MODULE: Final = "rerankd.engines.onnx.kernels._compiled"
_KERNELS: Final = "app/rerankd/engines/onnx/kernels"
# The same bits in every compiler: a product and a sum are never merged unless the source says so.
_FLAGS: Final = ["-O3", "-ffp-contract=off"]
_AVX2: Final = ["-mavx2", "-mfma"]
_AVX512: Final = [*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"]
# The instruction sets of a machine and their flags. Which one is used is decided when the module is loaded.
_X86: Final = {
    "avx2": _AVX2,
    "avx_vnni": [*_AVX2, "-mavxvnni"],
    "avx512_vnni": _AVX512,
    "amx": [*_AVX512, "-mamx-tile", "-mamx-int8"],
}
_ARM: Final = {"neon_dot": ["-march=armv8.2-a+dotprod"], "neon_i8mm": ["-march=armv8.2-a+dotprod+i8mm"]}
_SETS: Final[Mapping[str, Mapping[str, Sequence[str]]]] = {
    "x86_64": _X86,
    "amd64": _X86,
    "aarch64": _ARM,
    "arm64": _ARM,
}


class _BuildKernels(build_ext):
    """Compiles each instruction set that the compiler knows with flags of its own, and the rest for any CPU."""

    def build_extension(self, ext: Pybind11Extension) -> None:
        if ext.name == _KERNELS_MODULE:
            self._add_instruction_sets(ext)
        super().build_extension(ext)

    def _add_instruction_sets(self, ext: Pybind11Extension) -> None:
        sets = _SETS.get(platform.machine().lower(), {})
        known = {name: flags for name, flags in sets.items() if all(has_flag(self.compiler, flag) for flag in flags)}
        ext.define_macros += [(f"RERANKD_WITH_{name.upper()}", None) for name in known]

        def compile_set(name: str) -> list[str]:
            objects: list[str] = self.compiler.compile(
                [f"{_KERNELS}/isa/{name}.cpp"],
                output_dir=self.build_temp,
                extra_postargs=[*ext.extra_compile_args, *known[name]],
                depends=ext.depends,
            )
            return objects

        with ThreadPoolExecutor() as pool:
            for objects in pool.map(compile_set, known):
                ext.extra_objects += objects


setup(
    cmdclass={"build_ext": _BuildKernels},
    ext_modules=[
        Pybind11Extension(
            _KERNELS_MODULE,
            [f"{_KERNELS}/module.cpp", f"{_KERNELS}/layers.cpp", f"{_KERNELS}/isa/sets.cpp"],
            depends=[str(source) for source in Path(_KERNELS).rglob("*") if source.suffix in {".h", ".cpp"}],
            cxx_std=17,
            extra_compile_args=_FLAGS,
            optional=True,
        ),
        Pybind11Extension(
            "rerankd.scorers.wordpiece._compiled",
            ["app/rerankd/scorers/wordpiece/module.cpp"],
            cxx_std=17,
            extra_compile_args=["-O3"],
            optional=True,
        ),
    ],
)
