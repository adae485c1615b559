"""Provence and XProvence prune as their authors do, from the request to the answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerankd.config.settings import Settings
from rerankd.domain import PruneWishes, QueryWishes, RerankRequest, RerankResult, ScoreOptions, Side, Truncation
from rerankd.errors import InvalidRequest
from rerankd.serving.assembly import running_service
from rerankd.serving.service import RerankService
from rerankd.telemetry.observer import Silent
from tests.registry_files import write_registry
from tests.tiny_models import TINY_BERT, build_provence
from tests.transcriptions import provence

pytestmark = pytest.mark.slow

QUERY = "Where is the Capital of Austria, and how large is it?"
SENTENCES = [
    "What is the capital of France?",
    "Paris is the capital and largest city of France.",
    "Vienna is the capital of Austria and Madrid the capital of Spain.",
    "Thirst and dark urine are symptoms of dehydration.",
    "Hamlet is a tragedy by William Shakespeare.",
    "Die größte Stadt Österreichs ist Wien.",
    "Столица России - Москва.",
]
# Of one block, of several, and one whose sentences stand apart.
DOCUMENTS = [SENTENCES[:3], SENTENCES[2:3], [*SENTENCES, *SENTENCES[::-1]] * 2, SENTENCES[3:]]
TEXTS = [" ".join(sentences) for sentences in DOCUMENTS]
TOLERANCE = 1e-4


@asynccontextmanager
async def _served(root: Path, folder: Path) -> AsyncIterator[RerankService]:
    models: list[dict[str, Any]] = [
        {"name": "m", "path": folder, "scorer": "auto", "engine": "auto", "passages": {"max_passages": 8}},
        {"name": "plain", "path": TINY_BERT},
        {"name": "both", "stages": ["plain", "m"]},
    ]
    settings = Settings(registry=write_registry(root, models), cache_url="memory://")
    async with running_service(settings, Silent()) as service:
        for model in service.models:
            await model.settled()
        yield service


@pytest.fixture(scope="module", params=[False, True], ids=["provence", "xprovence"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_provence(tmp_path_factory.mktemp("model"), multilingual=request.param)


async def _prune(service: RerankService, texts: list[str], **options: Any) -> RerankResult:
    wishes = {"prune": PruneWishes(threshold=0.5), **options}
    return await service.rerank(RerankRequest(query=QUERY, documents=texts, options=ScoreOptions(**wishes)))


def _kept_text(result: RerankResult, texts: list[str], index: int) -> str:
    assert result.scores.kept is not None
    return " ".join(" ".join(texts[index][start:end].split()) for start, end in result.scores.kept[index])


async def test_scores_and_kept_sentences_are_the_authors(folder: Path, tmp_path: Path) -> None:
    """In mixed batches, alone and from the cache."""
    async with _served(tmp_path, folder) as service:
        shares = []
        for threshold, title in ((0.1, True), (0.7, True), (0.7, False), (0.8, True), (0.8, False), (0.95, True)):
            expected = provence(folder, QUERY, DOCUMENTS, threshold=threshold, title=title)
            wishes = PruneWishes(threshold=threshold, always_select_title=title)
            asked = [TEXTS, *([text] for text in TEXTS)]
            results = await asyncio.gather(*(_prune(service, texts, prune=wishes) for texts in asked))
            together, *alone = results
            scores = np.array([one.score for one in expected])
            assert np.abs(together.scores.values - scores).max() <= TOLERANCE
            assert np.abs(np.array([one.scores.values[0] for one in alone]) - scores).max() <= TOLERANCE
            for index, (sentences, pruned) in enumerate(zip(DOCUMENTS, expected, strict=True)):
                text = " ".join(sentence for sentence, kept in zip(sentences, pruned.kept, strict=True) if kept)
                assert _kept_text(together, TEXTS, index) == text
                assert _kept_text(alone[index], [TEXTS[index]], 0) == text
            # The threshold is no part of what is cached.
            again = await _prune(service, TEXTS, prune=wishes)
            assert again.cached == len(TEXTS)
            assert again.scores.kept is not None
            assert together.scores.kept is not None
            assert again.scores.kept.tolist() == together.scores.kept.tolist()
            shares.append(np.mean([kept for one in expected for kept in one.kept]))
        assert len(set(shares)) > 4, "all sentences fare alike"


async def test_how_documents_are_read_is_the_request_s_wish_and_some_models_cannot(
    folder: Path, tmp_path: Path
) -> None:
    async with _served(tmp_path, folder) as service:
        first = await _prune(service, TEXTS)
        chunked = await _prune(service, TEXTS, truncation=Truncation.CHUNK)
        assert (chunked.scores.values >= first.scores.values).all()
        assert chunked.scores.passages is not None
        assert chunked.scores.passages.counts[2] > 1
        assert chunked.scores.kept is not None
        assert first.scores.kept is not None
        assert chunked.scores.kept.tolist() == first.scores.kept.tolist()
        short = await _prune(service, TEXTS, max_tokens_per_doc=30, prune=PruneWishes(threshold=0))
        assert short.scores.kept is not None
        assert short.scores.kept[2][-1][1] < 200
        assert short.dropped_tokens > 100
        whole = await _prune(service, TEXTS, prune=PruneWishes(threshold=0))
        assert whole.scores.kept is not None
        assert list(whole.scores.kept) == [((0, len(text)),) for text in TEXTS]
        assert whole.dropped_tokens == 0
        with pytest.raises(InvalidRequest, match=r"cannot be read whole"):
            await _prune(service, TEXTS, truncation=Truncation.ERROR)
        assert len((await _prune(service, TEXTS[:2], truncation=Truncation.ERROR)).results) == 2
        with pytest.raises(InvalidRequest, match="truncation_side or prune"):
            await _prune(service, TEXTS, truncation_side=Side.LEFT)
        with_blank = await _prune(service, [TEXTS[0], " \n"])
        assert with_blank.scores.kept is not None
        assert with_blank.scores.kept[0] == first.scores.kept[0]
        assert with_blank.scores.kept[1] is None
        several = await _prune(service, TEXTS, queries=QueryWishes(others=["another question"]))
        assert several.scores.kept is not None
        assert several.scores.kept.tolist() == first.scores.kept.tolist(), "they are kept for the query itself"
        plain = await service.rerank(RerankRequest(query=QUERY, documents=TEXTS[:2]))
        assert np.abs(plain.scores.values - first.scores.values[:2]).max() <= TOLERANCE
        assert plain.scores.kept is None

        for model in ("plain", "both"):
            request = RerankRequest(
                query=QUERY, documents=TEXTS, model=model, options=ScoreOptions(prune=PruneWishes())
            )
            with pytest.raises(InvalidRequest, match=f"model '{model}' does not prune documents"):
                await service.rerank(request)
