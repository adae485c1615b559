"""Language models as rerankers: ours against plain transcriptions of the methods, on tiny models of every family."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.config import SHIPPED_REGISTRY
from app.domain import Encoding, FloatArray
from app.engines import load_engine
from app.engines.base import Engine, EngineSpec
from app.scorers import load_list_scorer, load_scorer
from app.scorers.base import ListScorer, PairScorer, ScorerSpec
from tests.tiny_causal import FIRST_TEMPLATES
from tests.tiny_models import CORPUS
from tests.transcriptions import first_logits, qwen3_reranker_logits

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Folder = Callable[[str], Path]

TEMPLATES = (SHIPPED_REGISTRY.parent / "templates",)
QUERIES = ("what is the capital of France?", "who wrote [12] Hamlet")
DOCUMENTS = (*CORPUS, "one", "a text that says [B] > [A] and [3], {query} too", " white \n\n space\tof   all kinds ")
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"

SHARING = pytest.mark.parametrize("share_prefixes", [True, False], ids=["shared", "unshared"])
FAMILY = pytest.mark.parametrize("family", list(FIRST_TEMPLATES))


def first_scorer(folder: Path, family: str, **options: Any) -> ListScorer:
    template = {"template": FIRST_TEMPLATES[family]}
    return load_list_scorer("first", ScorerSpec(folder=folder, templates=TEMPLATES, options={**template, **options}))


def yes_no_scorer(folder: Path, **spec: Any) -> PairScorer:
    options = {"template": "qwen3-reranker"}
    return load_scorer("yes-no", ScorerSpec(folder=folder, templates=TEMPLATES, options=options, **spec))


def torch_engine(folder: Path, scorer: ListScorer | PairScorer, **options: Any) -> Engine:
    return load_engine(
        "torch-causal",
        EngineSpec(
            folder=folder,
            pad_id=scorer.pad_id,
            output_tokens=scorer.output_tokens,
            options={"device": "cpu", **options},
        ),
    )


def in_batches(engine: Engine, encodings: Sequence[Encoding]) -> list[FloatArray]:
    """Logits by encoding, of every mix: alone, in pairs, in threes in another order, and all at once, twice."""
    rounds = []
    for size, seed in ((1, None), (2, 1), (3, 2), (len(encodings), None), (len(encodings), 3)):
        order = list(range(len(encodings)))
        if seed is not None:
            np.random.default_rng(seed).shuffle(order)
        logits = np.empty((len(encodings), 0), dtype=np.float32)
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            rows = engine.forward([encodings[index] for index in batch])
            logits = logits if logits.shape[1] else np.empty((len(encodings), rows.shape[1]), dtype=np.float32)
            logits[batch] = rows
        rounds.append(logits)
    return rounds


def windows() -> list[tuple[str, Sequence[str]]]:
    return [(query, DOCUMENTS[start : start + size]) for query in QUERIES for start, size in ((0, 1), (1, 3), (3, 10))]


@FAMILY
@SHARING
def test_first_gives_the_logits_of_a_plain_transcription(
    causal_folder: Folder, family: str, share_prefixes: bool
) -> None:
    folder = causal_folder(family)
    scorer = first_scorer(folder, family)
    engine = torch_engine(folder, scorer, share_prefixes=share_prefixes)
    encodings = [
        scorer.encode_window(query, documents, max_document_tokens=None).encoding for query, documents in windows()
    ]
    expected = [first_logits(family, folder, query, documents) for query, documents in windows()]
    for logits in in_batches(engine, encodings):
        for row, wanted in zip(logits, expected, strict=True):
            ours = scorer.interpret_window(row, candidates=len(wanted))
            np.testing.assert_allclose(ours, wanted, atol=1e-5)
    assert np.std(np.concatenate(expected)) > 0.5


@SHARING
@pytest.mark.parametrize("instruction", [None, "Find the capital"])
def test_yes_no_gives_the_scores_of_the_model_card(
    causal_folder: Folder, share_prefixes: bool, instruction: str | None
) -> None:
    folder = causal_folder("qwen3")
    scorer = yes_no_scorer(folder)
    engine = torch_engine(folder, scorer, share_prefixes=share_prefixes)
    encodings: list[Encoding] = []
    for query in QUERIES:
        pairs = scorer.encode(query, DOCUMENTS, max_document_tokens=None, instruction=instruction)
        assert not pairs.dropped.any()
        encodings += pairs.encodings
    expected = np.concatenate(
        [qwen3_reranker_logits(folder, query, DOCUMENTS, instruction=instruction or INSTRUCTION) for query in QUERIES]
    )
    for logits in in_batches(engine, encodings):
        np.testing.assert_allclose(scorer.interpret(logits), expected, atol=1e-5)
    assert expected.std() > 0.1
