"""Exports of language models with a classifier's head: they know what rows are filled with, and pairs must be said."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rerankd.errors import ConfigError
from tests.integration.test_poisoned_folders import (
    DOCUMENTS,
    ROLES,
    Case,
    _expected,
    _serve,
    build_qwen3_classifier,
)


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
    from rerankd.tools.exporting import export_cross_encoder  # noqa: PLC0415 - imports torch

    target = tmp_path / "exported"
    [parity] = export_cross_encoder(without_pad, target, precisions=["float32"], pairs="plain")
    assert parity.largest_batch_effect < 1e-4
    scores = await _serve(
        target, Case("exported", lambda _: None, engine="onnx", model={"options": {"pairs": "plain"}}), tmp_path
    )
    assert not isinstance(scores, str), scores
    assert len(scores) == len(DOCUMENTS)
    np.testing.assert_allclose(scores, _expected(without_pad), atol=1e-4)


@pytest.mark.parametrize("template", [None, ROLES])
def test_a_classifier_of_which_nobody_says_how_it_reads_pairs_is_not_exported(
    without_pad: Path, tmp_path: Path, template: str | None
) -> None:
    from rerankd.tools.exporting import export_cross_encoder  # noqa: PLC0415 - imports torch

    folder = Path(shutil.copytree(without_pad, tmp_path / "source"))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ConfigError, match='pairs = "plain"'):
        export_cross_encoder(folder, tmp_path / "target", precisions=["float32"])
