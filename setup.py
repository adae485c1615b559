"""The kernels of rerankd/engines/onnx. Where they cannot be compiled, everything works without them, but slower."""

from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup

ParallelCompile(default=0).install()  # on all CPUs

_KERNELS = "app/rerankd/engines/onnx/kernels"

setup(
    ext_modules=[
        Pybind11Extension(
            "rerankd.engines.onnx.kernels._compiled",
            [f"{_KERNELS}/layers.cpp", f"{_KERNELS}/module.cpp"],
            depends=[str(header) for header in Path(_KERNELS).glob("*.h")],
            cxx_std=17,
            extra_compile_args=["-O3"],
            optional=True,
        )
    ]
)
