"""Makes tests use the extension module of the file that `RERANKD_TEST_COMPILED` names, instead of the installed one of
the name `RERANKD_TEST_MODULE`.
"""

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location


def _load(name: str, path: str) -> None:
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not an extension module")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module


_load(os.environ["RERANKD_TEST_MODULE"], os.environ["RERANKD_TEST_COMPILED"])
