"""Makes tests use the kernels of the file that `RERANKD_TEST_KERNELS` names, instead of those that were installed."""

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from typing import Final

_MODULE: Final = "rerankd.engines.onnx.kernels._compiled"


def _load(path: str) -> None:
    spec = spec_from_file_location(_MODULE, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not an extension module")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[_MODULE] = module


_load(os.environ["RERANKD_TEST_KERNELS"])
