"""What anchors estimate, against the formula written down by itself, and files that are none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerankd.domain import Document, FloatArray
from rerankd.errors import ConfigError
from rerankd.scorers.anchors import Anchors, digest_of

_TEXTS = [f"text number {number}" for number in range(30)]


def _matrix(*, rank: int, queries: int = 12) -> FloatArray:
    """Scores of the texts for some queries, shape [texts, queries]."""
    random = np.random.default_rng(rank)
    left, right = random.normal(size=(len(_TEXTS), rank)), random.normal(size=(rank, queries))
    scores: FloatArray = np.matmul(left, right).astype(np.float32)
    return scores


def _anchors(scores: FloatArray, texts: list[str] = _TEXTS) -> Anchors:
    return Anchors(scores, [digest_of(text) for text in texts], identity="model")


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_a_matrix_of_the_rank_of_its_anchors_is_reconstructed(rank: int) -> None:
    """The query's scores are a new combination of those of the anchor queries."""
    scores = _matrix(rank=rank)
    truth = np.matmul(scores, np.random.default_rng(99).normal(size=scores.shape[1])).astype(np.float32)
    read, others = np.arange(rank), np.arange(rank, len(_TEXTS))
    estimates = _anchors(scores).estimate(read, truth[read], others, cutoff=1e-6)
    assert estimates == pytest.approx(truth[others], abs=1e-3)


@pytest.mark.parametrize("anchors", [1, 5, 12, 20])
@pytest.mark.parametrize("cutoff", [0.0, 0.05, 0.5])
def test_estimates_are_those_of_the_pseudo_inverse(anchors: int, cutoff: float) -> None:
    scores, random = _matrix(rank=12), np.random.default_rng(anchors)
    rows = random.permutation(len(_TEXTS))
    read, others = rows[:anchors], rows[anchors:]
    values = random.normal(size=anchors).astype(np.float32)
    # As the paper has it: queries are rows, documents columns.
    matrix = scores.T.astype(np.float64)
    expected = values @ np.linalg.pinv(matrix[:, read], rcond=cutoff) @ matrix[:, others]
    estimates = _anchors(scores).estimate(read, values, others, cutoff=cutoff)
    assert estimates == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_documents_are_known_by_their_whole_text_and_not_by_images() -> None:
    anchors = _anchors(_matrix(rank=2))
    asked = [_TEXTS[3], _TEXTS[3] + " ", "", "\ud800", Document(_TEXTS[3], image=b"pixels"), _TEXTS[0], _TEXTS[3]]
    assert anchors.rows(asked).tolist() == [3, -1, -1, -1, -1, 0, 3]


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = _anchors(_matrix(rank=2))
    written.write(tmp_path / "anchors.npz")
    read = Anchors.read(tmp_path / "anchors.npz", identity="model")
    assert np.array_equal(read.scores, written.scores)
    assert read.rows(_TEXTS).tolist() == list(range(len(_TEXTS)))


def test_the_anchors_of_another_model_are_refused(tmp_path: Path) -> None:
    _anchors(_matrix(rank=2)).write(tmp_path / "anchors.npz")
    with pytest.raises(ConfigError, match=r"anchors\.npz hold scores of another model.*run rerankd anchors again"):
        Anchors.read(tmp_path / "anchors.npz", identity="other")


_DIGESTS = np.arange(32, dtype=np.uint8).reshape(2, 16)
_GOOD: dict[str, Any] = {
    "scores": np.ones((2, 3), dtype=np.float32),
    "digests": _DIGESTS,
    "identity": np.array("model"),
}


@pytest.mark.parametrize(
    "changed",
    [
        {"scores": np.ones((2, 3))},
        {"scores": np.ones(2, dtype=np.float32)},
        {"scores": np.ones((3, 3), dtype=np.float32)},
        {"scores": np.ones((2, 0), dtype=np.float32)},
        {"scores": np.full((2, 3), np.nan, dtype=np.float32)},
        {"scores": np.full((2, 3), None)},
        {"digests": _DIGESTS[:, :8]},
        {"digests": _DIGESTS.astype(np.int64)},
        {"digests": np.zeros((2, 16), dtype=np.uint8)},
    ],
    ids=["float64", "vector", "rows", "no queries", "nan", "objects", "digest width", "digest type", "digest twice"],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    path = tmp_path / "anchors.npz"
    np.savez(path, **{**_GOOD, **changed})
    with pytest.raises(ConfigError, match=r"anchors\.npz is not a file of anchors .*run rerankd anchors"):
        Anchors.read(path, identity="model")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not an archive at all", b"\x93NUMPY\x01\x00"])
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "anchors.npz"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="anchors"):
        Anchors.read(path, identity="model")


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "anchors.npz"
    _anchors(_matrix(rank=2)).write(path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ConfigError, match="anchors"):
            Anchors.read(path, identity="model")


def test_a_missing_file_and_an_array_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the anchors .*No such file"):
        Anchors.read(tmp_path / "none.npz", identity="model")
    np.save(tmp_path / "array.npy", _GOOD["scores"])
    with pytest.raises(ConfigError, match="is not a file of anchors"):
        Anchors.read(tmp_path / "array.npy", identity="model")
    np.savez(tmp_path / "other.npz", scores=_GOOD["scores"])
    with pytest.raises(ConfigError, match="is not a file of anchors"):
        Anchors.read(tmp_path / "other.npz", identity="model")
