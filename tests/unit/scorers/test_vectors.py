"""How vectors of texts are compared, and what late interaction makes of a query."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rerankd.errors import ConfigError, InvalidRequest
from rerankd.scorers import load_scorer
from rerankd.scorers.base import ScorerSpec
from rerankd.scorers.bi_encoder import SIMILARITIES
from rerankd.scorers.late_interaction import LateInteractionScorer
from rerankd.scorers.splade import Splade
from tests.tiny_models import TINY_BERT

_QUERY = np.array([1, 2, 2], dtype=np.float32)
_TEXTS = np.array([[1, 2, 2], [2, 1, -2], [0, 0, 0]], dtype=np.float32)


@pytest.mark.parametrize(
    ("similarity", "expected"),
    [("cosine", [1, 0, 0]), ("dot", [9, 0, 0]), ("euclidean", [0, -(18**0.5), -3]), ("manhattan", [0, -6, -5])],
)
def test_the_more_alike_the_higher(similarity: str, expected: list[float]) -> None:
    assert SIMILARITIES[similarity](_TEXTS, _QUERY).tolist() == pytest.approx(expected)  # type: ignore[index]


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_texts_similarity_does_not_depend_on_the_others(similarity: str) -> None:
    random = np.random.default_rng(0)
    query, texts = random.normal(size=96).astype(np.float32), random.normal(size=(37, 96)).astype(np.float32)
    together = SIMILARITIES[similarity](texts, query)  # type: ignore[index]
    alone = [SIMILARITIES[similarity](texts[[place]], query)[0] for place in range(len(texts))]  # type: ignore[index]
    assert together.tolist() == alone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """ColBERT of Stanford, with [UNK] and [SEP] as markers: words that the tiny vocabulary has."""
    target = tmp_path / "model"
    shutil.copytree(TINY_BERT, target)
    _change(target / "config.json", architectures=["HF_ColBERT"])
    _change(target / "tokenizer_config.json", mask_token="[MASK]")
    said = {"dim": 2, "query_token_id": "##0", "doc_token_id": "##1", "query_maxlen": 12, "doc_maxlen": 20}
    (target / "artifact.metadata").write_text(json.dumps(said))
    return target


def test_a_scorer_of_vectors_is_no_scorer_of_pairs(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"'late-interaction' scores no pairs.* cross-encoder"):
        load_scorer("late-interaction", ScorerSpec(folder=folder))
    with pytest.raises(ConfigError, match="unknown scorer 'late'"):
        load_scorer("late", ScorerSpec(folder=folder))


def _change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _ids(scorer: LateInteractionScorer, role: str, text: str) -> list[str]:
    (encoded,) = scorer.encode(role, [text], max_tokens=None).encodings  # type: ignore[arg-type]
    return [scorer._texts._tokenizer.id_to_token(number) for number in encoded.ids.tolist()]


def test_a_query_is_marked_and_filled_and_a_document_is_marked(folder: Path) -> None:
    scorer = LateInteractionScorer.load(ScorerSpec(folder=folder))
    assert _ids(scorer, "query", "the capital") == ["[CLS]", "##0", "the", "capital", "[SEP]", *["[MASK]"] * 7]
    assert _ids(scorer, "document", "Paris.") == ["[CLS]", "##1", "paris", ".", "[SEP]"]
    (query,) = scorer.encode("query", ["the capital"], max_tokens=None).encodings
    assert query.unattended == 7


def test_what_fills_a_query_is_attended_if_the_metadata_says_so(folder: Path) -> None:
    _change(folder / "artifact.metadata", attend_to_mask_tokens=True)
    (query,) = LateInteractionScorer.load(ScorerSpec(folder=folder)).encode("query", ["x"], max_tokens=None).encodings
    assert (len(query.ids), query.unattended) == (12, 0)


def test_a_long_query_is_cut_and_that_is_counted(folder: Path) -> None:
    encoded = LateInteractionScorer.load(ScorerSpec(folder=folder)).encode("query", ["the " * 12], max_tokens=None)
    assert len(encoded.encodings[0].ids) == 12
    assert encoded.dropped.tolist() == [3]


def test_punctuation_of_documents_is_not_compared(folder: Path) -> None:
    scorer = LateInteractionScorer.load(ScorerSpec(folder=folder))
    (document,) = scorer.encode("document", ["Paris."], max_tokens=None).encodings
    rows = np.arange(10, dtype=np.float32).reshape(5, 2)
    assert scorer.vectors(document, rows).tolist() == rows[[0, 1, 2, 4]].tolist()
    (query,) = scorer.encode("query", ["Paris."], max_tokens=None).encodings
    assert len(scorer.vectors(query, np.zeros((12, 2), dtype=np.float32))) == 12


def test_max_sim_is_the_best_token_for_each_of_the_querys(folder: Path) -> None:
    scorer = LateInteractionScorer.load(ScorerSpec(folder=folder))
    query = np.array([[1, 0], [0, 1]], dtype=np.float32)
    texts = [np.array(rows, dtype=np.float32).reshape(-1, 2) for rows in ([[1, 0], [0.5, 0.5]], [[-1, -1]], [])]
    assert scorer.compare(query, texts).tolist() == pytest.approx([1.5, -2, -1e9])


def test_a_token_that_fills_queries_must_be_named(folder: Path) -> None:
    _change(folder / "tokenizer_config.json", mask_token=None)
    with pytest.raises(ConfigError, match="mask_token"):
        LateInteractionScorer.load(ScorerSpec(folder=folder))


def test_sparse_weights_meet_at_the_same_words(tmp_path: Path) -> None:
    shutil.copytree(TINY_BERT, tmp_path / "model")
    _change(tmp_path / "model" / "config.json", architectures=["BertForMaskedLM"])
    scorer = Splade.load(ScorerSpec(folder=tmp_path / "model"))
    words = [[(2, 0.5), (7, 2)], [(7, 3), (900, 1)], [(1, 4)], [], [(2**32 - 1, 5), (7, 1), (8, 1)]]
    texts = [np.array(text, dtype=scorer.form.dtype) for text in words]
    assert scorer.compare(texts[0], texts).tolist() == [4.25, 6, 0, 0, 2]
    assert scorer.compare(texts[3], texts).tolist() == [0] * 5
    with pytest.raises(InvalidRequest, match="instruction"):
        scorer.encode("query", ["x"], max_tokens=None, instruction="judge")
