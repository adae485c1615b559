"""Fixtures that several suites share: tiny models, with torch and without.

`tiny_model` is committed and needs no torch. Every fixture in `_NEEDS_TORCH` builds its model when first asked for;
tests that use one are marked slow.
"""

import gc
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from math import inf
from pathlib import Path
from typing import Final

import pytest
from filelock import FileLock

from tests.tiny_causal import CAUSAL_FAMILIES
from tests.tiny_models import FAMILIES, TINY_BERT

Folder = Callable[[str], Path]
Built = Callable[[str, Callable[[Path], object]], Path]

_NEEDS_TORCH: Final = {
    "torch_folder",
    "onnx_folder",
    "causal_folder",
    *(f"tiny_{family}{suffix}" for family in FAMILIES for suffix in ("", "_onnx")),
}


# Where the files are that take minutes: of tests that run in parallel they must not come last.
_LONGEST: Final = "quality", "contract", "loadtest", "integration"
# What is tested there is mostly outside of app/, or in processes of its own: `make coverage` leaves it out.
_UNCOVERED: Final = "quality", "loadtest", "conformance"
# Real processes under load, which a busy machine may starve. Such a test may fail once; pytest reports that as a rerun.
_STARVABLE: Final = "loadtest", "integration", "conformance"


@pytest.hookimpl(tryfirst=True)  # before pytest's own -m looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _NEEDS_TORCH & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
        if item.path.parent.name in _UNCOVERED:
            item.add_marker(pytest.mark.uncovered)
        if item.path.parent.name in _STARVABLE or item.get_closest_marker("timed"):
            item.add_marker(pytest.mark.flaky(reruns=1))
    items.sort(key=lambda item: _LONGEST.index(item.path.parent.name) if item.path.parent.name in _LONGEST else inf)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A command that a test runs in this process logs to that test's output, which is closed after it."""
    handlers, level = list(logging.root.handlers), logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture(scope="session", autouse=True)
def _no_profiles_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    """For this process and those that tests start: what somebody tuned on this machine is none of a test's business."""
    os.environ["RERANKD_PROFILES"] = str(tmp_path_factory.mktemp("profiles"))


@pytest.fixture(scope="session", autouse=True)
def _no_caches_of_the_user(request: pytest.FixtureRequest) -> None:
    """Matplotlib's list of fonts lies in the checkout: what the tests leave behind goes with `make clean`."""
    os.environ.setdefault("MPLCONFIGDIR", str(request.config.rootpath / ".pytest_cache" / "matplotlib"))


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """A folder that the engine `onnx` serves as it is: a BERT with one output and golden pairs (tests/data)."""
    return TINY_BERT


@pytest.fixture(scope="session")
def _torch_on_one_thread() -> None:
    """More than one only stand in each other's way in models this small."""
    import torch  # noqa: PLC0415 - only slow tests have torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Gives the folder of a name, which is made by filling an empty one: once, for all processes that tests run in."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def folder(name: str, fill: Callable[[Path], object]) -> Path:
        ready = root / name
        with FileLock(root / f"{name}.lock"):
            if not ready.exists():
                unfinished = tmp_path_factory.mktemp(name)
                fill(unfinished)
                unfinished.rename(ready)
        return ready

    return folder


@pytest.fixture(scope="session")
def torch_folder(built: Built, _torch_on_one_thread: None) -> Folder:
    """Gives the folder of a family's tiny model: safetensors, config, tokenizer."""
    return lambda family: built(f"{family}-torch", FAMILIES[family])


@pytest.fixture(scope="session")
def causal_folder(built: Built, _torch_on_one_thread: None) -> Folder:
    """Gives the folder of a family's tiny causal language model."""
    return lambda family: built(f"{family}-causal", CAUSAL_FAMILIES[family])


@pytest.fixture(scope="session")
def onnx_folder(built: Built, torch_folder: Folder) -> Folder:
    """Gives the folder that our own export makes of a family's tiny model, in every precision."""

    def export(family: str, folder: Path) -> None:
        from rerankd.tools.exporting import export_classifier  # noqa: PLC0415 - imports torch
        from rerankd.tools.graph_files import GRAPHS  # noqa: PLC0415 - imports onnxruntime

        export_classifier(torch_folder(family), folder, precisions=list(GRAPHS))

    return lambda family: built(f"{family}-onnx", partial(export, family))


@pytest.fixture(scope="session")
def tiny_bert(torch_folder: Folder) -> Path:
    return torch_folder("bert")


@pytest.fixture(scope="session")
def tiny_xlmr(torch_folder: Folder) -> Path:
    return torch_folder("xlmr")


@pytest.fixture(scope="session")
def tiny_modernbert(torch_folder: Folder) -> Path:
    return torch_folder("modernbert")


@pytest.fixture(scope="session")
def tiny_deberta(torch_folder: Folder) -> Path:
    return torch_folder("deberta")


@pytest.fixture(scope="session")
def tiny_bert_onnx(onnx_folder: Folder) -> Path:
    return onnx_folder("bert")


@pytest.fixture(scope="session")
def tiny_xlmr_onnx(onnx_folder: Folder) -> Path:
    return onnx_folder("xlmr")


@pytest.fixture(scope="session")
def tiny_modernbert_onnx(onnx_folder: Folder) -> Path:
    return onnx_folder("modernbert")


@pytest.fixture(scope="session")
def tiny_deberta_onnx(onnx_folder: Folder) -> Path:
    return onnx_folder("deberta")


@pytest.fixture
def service_collector() -> Iterator[None]:
    """Python's garbage collector as the service has it. Else it walks all that the tests imported, again and again."""
    from rerankd.api.server import tune_garbage_collector  # noqa: PLC0415 - few tests need the application

    thresholds = gc.get_threshold()
    tune_garbage_collector()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)
