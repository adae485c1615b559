"""What some tests need that not every machine has. Without it they are skipped with the reason; where
RERANKD_TEST_STRICT=1 is set (CI), they fail instead, so that nothing is skipped unnoticed.
"""

import os
import shutil
import warnings
from importlib import import_module
from pathlib import Path

import pytest


def require_program(name: str) -> str:
    """The path of a program."""
    path = shutil.which(name)
    if path is None:
        missing(f"the program {name} is not installed; tests/install_servers.sh installs it")
    return str(path)


def require_package(name: str) -> None:
    """Import a package, or leave a whole module of tests out; call it above the imports that need it. Some warn of
    themselves while they are imported.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_module(name)
    except ModuleNotFoundError as error:
        reason = f"the package {error.name} is not installed; pip install {error.name}"
        if os.environ.get("RERANKD_TEST_STRICT") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason, allow_module_level=True)


def require_data(name: str) -> Path:
    """A folder of the ranking data that RERANKD_TEST_DATA names, for example `eval/dl19`."""
    root = os.environ.get("RERANKD_TEST_DATA")
    if not root:
        missing(f"RERANKD_TEST_DATA names no folder with the ranking data ({name} is wanted)")
    folder = Path(str(root)) / name
    if not folder.is_dir():
        missing(f"there is no {folder}; RERANKD_TEST_DATA names the folder that holds it")
    return folder


def missing(reason: str) -> None:
    """Skip the test for want of what `reason` names, or fail it where nothing may be skipped."""
    if os.environ.get("RERANKD_TEST_STRICT") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
