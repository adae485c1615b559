"""Packing: what lies where, and attention that stays within a sequence. Needs torch."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerankd.engines import load_engine
from rerankd.engines.base import EngineSpec
from rerankd.errors import ConfigError
from rerankd.tasks.encoding import Encoding
from tests.tiny_models import build_gte

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from rerankd.engines.torch.packing import _means, attend_one_by_one, pack  # noqa: E402

pytestmark = pytest.mark.slow

THREE = [Encoding(np.array([2, 5, 3, 7, 3]), 3), Encoding(np.array([2, 3, 3]), 2), Encoding(np.array([9]), 1)]


def test_sequences_lie_end_to_end_and_positions_start_anew() -> None:
    batch = pack(THREE)
    assert batch.tokens.tolist() == [
        [2, 5, 3, 7, 3, 2, 3, 3, 9],
        [0, 1, 2, 3, 4, 0, 1, 2, 0],
        [0, 0, 0, 1, 1, 0, 0, 1, 0],
    ]
    assert batch.bounds.tolist() == [0, 5, 8, 9]
    assert batch.longest == 5


@pytest.mark.parametrize("furthest", [-1, 0, 1, 3, 100])
def test_attention_is_a_softmax_over_the_own_sequence_within_reach(furthest: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 9, 2, 4, generator=generator)
    bounds = [0, 5, 8, 9]
    mixed = attend_one_by_one(query, key, value, torch.tensor(bounds), scale=0.3, furthest=furthest)
    sequence = np.repeat(np.arange(3), np.diff(bounds))
    at = np.arange(9)
    seen = sequence[:, None] == sequence[None, :]
    if furthest >= 0:
        seen &= np.abs(at[:, None] - at[None, :]) <= furthest
    for head in range(2):
        weights = np.exp(0.3 * query[:, head].numpy() @ key[:, head].numpy().T) * seen
        expected = weights / weights.sum(axis=1, keepdims=True) @ value[:, head].numpy()
        np.testing.assert_allclose(mixed[:, head].numpy(), expected, atol=1e-5)


def test_means_are_of_each_sequence() -> None:
    hidden = torch.tensor([[1.0], [3.0], [5.0], [7.0]])
    assert _means(hidden, torch.tensor([0, 1, 4])).tolist() == [[1.0], [5.0]]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_both_poolings_of_modernbert_agree_with_padded(tmp_path: Path, tiny_modernbert: Path, pooling: str) -> None:
    folder = _with_config(tiny_modernbert, tmp_path, classifier_pooling=pooling)
    padded, packed = _engine(folder), _engine(folder, packed=True)
    assert packed.name == "torch/cpu/float32/packed"
    np.testing.assert_allclose(packed.run(THREE), padded.run(THREE), atol=1e-5)


def test_gte_packed_agrees_with_padded(tmp_path: Path) -> None:
    folder = build_gte(tmp_path)
    np.testing.assert_allclose(_engine(folder, packed=True).run(THREE), _engine(folder).run(THREE), atol=1e-5)


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's compiler uses what torch deprecates
def test_compiled_layers_give_the_same_logits(tiny_bert: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    np.testing.assert_allclose(_engine(tiny_bert, compile=True).run(THREE), _engine(tiny_bert).run(THREE), atol=1e-5)


def test_a_family_that_cannot_be_packed_is_named(tiny_deberta: Path) -> None:
    with pytest.raises(ConfigError, match="a deberta-v2 model cannot be packed"):
        _engine(tiny_deberta, packed=True)


def _engine(folder: Path, **options: Any) -> Any:
    return load_engine("torch-encoder", EngineSpec(folder=folder, pad_id=0, options={"device": "cpu", **options}))


def _with_config(source: Path, target: Path, **changes: object) -> Path:
    folder = Path(shutil.copytree(source, target / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder
