"""The kernels of app/engines/kernels. Where they cannot be compiled, everything works without them, but slower."""

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

_KERNELS = "app/engines/kernels"

setup(
    ext_modules=[
        Pybind11Extension(
            "app.engines.kernels._compiled",
            [f"{_KERNELS}/layers.cpp", f"{_KERNELS}/module.cpp"],
            depends=[f"{_KERNELS}/layers.h"],
            cxx_std=17,
            extra_compile_args=["-O3"],
            optional=True,
        )
    ]
)
