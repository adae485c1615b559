"""The shipped graph, read and written back."""

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from rerankd.tools.training.shipped import (
    GRAPH,
    SHIPPED,
    changed_integers,
    read_shipped,
    write_shipped,
)

pytestmark = pytest.mark.slow


def test_a_graph_that_is_read_and_written_back_is_the_same(tmp_path: Path) -> None:
    model = read_shipped(SHIPPED)
    write_shipped(model, SHIPPED, tmp_path / "same.onnx")
    assert (tmp_path / "same.onnx").read_bytes() == (SHIPPED / GRAPH).read_bytes()
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[0] = torch.linspace(-1, 1, 1536)
    write_shipped(model, SHIPPED, tmp_path / "other.onnx")
    changed, count = changed_integers(SHIPPED / GRAPH, tmp_path / "other.onnx")
    assert 0 < changed < count / 100
