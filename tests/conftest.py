"""Fixtures that several suites share: tiny models, with torch and without.

`tiny_model` is committed and needs no torch. Every fixture in `_NEEDS_TORCH` builds its model when first asked for;
tests that use one are marked slow.
"""

import logging
import os
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import Final

import pytest

from tests.tiny_causal import CAUSAL_FAMILIES
from tests.tiny_models import FAMILIES, TINY_BERT

_NEEDS_TORCH: Final = {
    "torch_folder",
    "onnx_folder",
    "causal_folder",
    *(f"tiny_{family}{suffix}" for family in FAMILIES for suffix in ("", "_onnx")),
}


# Where the files are that take minutes: of tests that run in parallel they must not come last.
_LONGEST: Final = "quality", "contract", "loadtest", "integration"


@pytest.hookimpl(tryfirst=True)  # before pytest's own -m looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _NEEDS_TORCH & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
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


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """A folder that the engine `onnx` serves as it is: a BERT with one output and golden pairs (tests/data)."""
    return TINY_BERT


@pytest.fixture(scope="session")
def torch_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a family's tiny model: safetensors, config, tokenizer. Each is built once a session."""
    built: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in built:
            import torch  # noqa: PLC0415 - only slow tests have torch

            torch.set_num_threads(1)  # more than one only stand in each other's way in models this small
            built[family] = FAMILIES[family](tmp_path_factory.mktemp(f"{family}-torch"))
        return built[family]

    return folder


@pytest.fixture(scope="session")
def causal_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a family's tiny causal language model. Each is built once a session."""
    built: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in built:
            import torch  # noqa: PLC0415 - as above

            torch.set_num_threads(1)
            built[family] = CAUSAL_FAMILIES[family](tmp_path_factory.mktemp(f"{family}-causal"))
        return built[family]

    return folder


@pytest.fixture(scope="session")
def onnx_folder(tmp_path_factory: pytest.TempPathFactory, torch_folder: Callable[[str], Path]) -> Callable[[str], Path]:
    """Gives the folder that our own export makes of a family's tiny model, in every precision."""
    built: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in built:
            from app.exporting import GRAPHS, export_cross_encoder  # noqa: PLC0415 - imports torch

            target = tmp_path_factory.mktemp(f"{family}-onnx")
            export_cross_encoder(torch_folder(family), target, precisions=list(GRAPHS))
            built[family] = target
        return built[family]

    return folder


@pytest.fixture(scope="session")
def tiny_bert(torch_folder: Callable[[str], Path]) -> Path:
    return torch_folder("bert")


@pytest.fixture(scope="session")
def tiny_xlmr(torch_folder: Callable[[str], Path]) -> Path:
    return torch_folder("xlmr")


@pytest.fixture(scope="session")
def tiny_modernbert(torch_folder: Callable[[str], Path]) -> Path:
    return torch_folder("modernbert")


@pytest.fixture(scope="session")
def tiny_deberta(torch_folder: Callable[[str], Path]) -> Path:
    return torch_folder("deberta")


@pytest.fixture(scope="session")
def tiny_bert_onnx(onnx_folder: Callable[[str], Path]) -> Path:
    return onnx_folder("bert")


@pytest.fixture(scope="session")
def tiny_xlmr_onnx(onnx_folder: Callable[[str], Path]) -> Path:
    return onnx_folder("xlmr")


@pytest.fixture(scope="session")
def tiny_modernbert_onnx(onnx_folder: Callable[[str], Path]) -> Path:
    return onnx_folder("modernbert")


@pytest.fixture(scope="session")
def tiny_deberta_onnx(onnx_folder: Callable[[str], Path]) -> Path:
    return onnx_folder("deberta")
