"""Exports of classifiers beyond an encoder with its usual head: modular ones, and language models with a head.

What is served is the folder that `rerankd export` writes, by its name alone.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from rerankd.cli.exporting import export
from rerankd.config.settings import Settings
from rerankd.domain import FloatArray, RerankRequest
from rerankd.errors import ConfigError
from rerankd.scorers.base import ScorerSpec
from rerankd.serving.assembly import running_service
from rerankd.telemetry.observer import Silent
from tests.integration.test_families import prompted_classifier
from tests.integration.test_poisoned_folders import (
    DOCUMENTS,
    QUERY,
    ROLES,
    _expected,
    build_modular,
    build_qwen3_classifier,
)

PRECISIONS = ["float32", "int8"]
BUILDERS: Mapping[str, Callable[[Path], object]] = {"modular": build_modular, "prompted": prompted_classifier}


@pytest.fixture(scope="module")
def without_pad(
    built: Callable[..., Path], torch_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    torch_folder("bert")  # torch on one thread
    source = built("qwen3-classifier-torch", build_qwen3_classifier)
    folder = Path(shutil.copytree(source, tmp_path_factory.mktemp("classifier") / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    return folder


async def test_a_classifier_whose_tokenizer_alone_names_the_padding_is_exported_and_scored_right(
    without_pad: Path, tmp_path: Path
) -> None:
    from rerankd.tools.exporting import export_classifier  # noqa: PLC0415 - imports torch

    target = tmp_path / "exported"
    spec = ScorerSpec(folder=without_pad, options={"pairs": "plain"})
    [parity] = export_classifier(without_pad, target, precisions=["float32"], spec=spec)
    assert parity.largest_batch_effect < 1e-4
    assert json.loads((target / "rerankd.json").read_text()) == {"scorer": "cross-encoder", "options": spec.options}
    engine, scores = await _by_name(target, "float32")
    assert engine.startswith("onnx/")
    np.testing.assert_allclose(scores, _expected(without_pad), atol=1e-4)


@pytest.mark.parametrize("template", [None, ROLES])
def test_a_classifier_of_which_nobody_says_how_it_reads_pairs_is_not_exported(
    without_pad: Path, tmp_path: Path, template: str | None
) -> None:
    from rerankd.tools.exporting import export_classifier  # noqa: PLC0415 - imports torch

    folder = Path(shutil.copytree(without_pad, tmp_path / "source"))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ConfigError, match='pairs = "plain"'):
        export_classifier(folder, tmp_path / "target", precisions=["float32"])


@pytest.fixture(scope="module")
def exported(built: Callable[..., Path], _torch_on_one_thread: None) -> Callable[[str], tuple[Path, Path]]:
    """The source, and what `rerankd export` makes of it without being told what it is."""

    def folders(kind: str) -> tuple[Path, Path]:
        source = built(f"{kind}-source", BUILDERS[kind])
        return source, built(f"{kind}-exported", lambda folder: export(str(source), folder, precision=PRECISIONS))

    return folders


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("precision", PRECISIONS)
async def test_an_export_is_served_by_its_name_and_scores_as_its_source(
    exported: Callable[[str], tuple[Path, Path]], kind: str, precision: str
) -> None:
    source, target = exported(kind)
    bound = 1e-4 if precision == "float32" else json.loads((target / "golden.json").read_text())["tolerance"]
    engine, scores = await _by_name(target, precision)
    assert engine.startswith("onnx/")
    expected = _expected(source)
    np.testing.assert_allclose(scores, expected, atol=bound)
    assert np.ptp(expected) > 0.1


def test_where_the_head_reads_the_first_row_the_last_layer_computes_no_other(
    exported: Callable[[str], tuple[Path, Path]],
) -> None:
    graph = onnx.load(exported("modular")[1] / "model.onnx").graph
    noted = {info.name: info.type.tensor_type.shape.dim for info in graph.value_info}
    [states] = [node.input[0] for node in graph.node if node.op_type == "Gather" and node.output[0] == "select"]
    assert noted[states][1].dim_value == 1


async def _by_name(folder: Path, precision: str) -> tuple[str, FloatArray]:
    """The engine of a folder that is served by its name, and the relevance of the documents."""
    settings = Settings(model=(str(folder),), model_name=("m",), model_dtype=precision, cache_url="none://")
    async with running_service(settings, Silent()) as service:
        model = await service.model_named("m").settled()
        result = await service.rerank(RerankRequest(query=QUERY, documents=DOCUMENTS))
    ranked = sorted(result.results, key=lambda one: one.index)
    return str(model.details["engine"]), np.array([one.relevance_score for one in ranked], dtype=np.float32)
