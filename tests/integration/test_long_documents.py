"""Long documents through a real tokenizer, engine and cache: what a registry says, and what requests may ask for."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerankd.config.registry import read_registry
from rerankd.config.settings import Settings
from rerankd.domain import (
    Aggregation,
    Document,
    PassageWishes,
    RerankRequest,
    RerankResult,
    ScoreOptions,
    Side,
    Truncation,
)
from rerankd.errors import ConfigError, InvalidRequest
from rerankd.serving.assembly import running_service
from rerankd.serving.service import RerankService
from rerankd.telemetry.observer import Silent
from tests.registry_files import write_registry
from tests.tiny_models import CORPUS, TINY_BERT

_QUERY = "what is the capital of france"
_LONG = " ".join(f"{number}. {CORPUS[number % len(CORPUS)]}" for number in range(40))
_CHUNK = ScoreOptions(truncation=Truncation.CHUNK)


@asynccontextmanager
async def _service(folder: Path, **spec: Any) -> AsyncIterator[RerankService]:
    registry = write_registry(folder, [{"name": "tiny", "path": TINY_BERT, **spec}])
    async with running_service(Settings(registry=registry), Silent()) as service:
        await service.models[0].settled()
        yield service


async def _rerank(service: RerankService, *documents: str, options: ScoreOptions = _CHUNK) -> RerankResult:
    return await service.rerank(RerankRequest(query=_QUERY, documents=documents, options=options))


async def _passage_values(service: RerankService, document: str, passages: PassageWishes) -> list[float]:
    """The raw score of each passage, found by asking for one passage more at a time."""
    values: list[float] = []
    while True:
        options = ScoreOptions(
            truncation=Truncation.CHUNK,
            passages=PassageWishes(tokens=passages.tokens, max_passages=len(values) + 1, aggregation=Aggregation.MEAN),
        )
        result = await _rerank(service, document, options=options)
        total = result.results[0].value * (len(values) + 1)
        values.append(total - sum(values))
        if not result.dropped_tokens:
            return values


async def test_the_best_passage_decides_and_can_be_asked_alone(tmp_path: Path) -> None:
    async with _service(tmp_path) as service:
        result = await _rerank(service, "short", _LONG, "also short")
        passages = result.scores.passages
        assert passages is not None
        assert passages.counts[1] > 10
        assert result.dropped_tokens == 0
        best = _LONG[int(passages.starts[1]) : int(passages.ends[1])]
        alone = await _rerank(service, best, options=ScoreOptions())
        assert alone.scores.values[0] == result.scores.values[1]
        assert alone.cached == 1, "the cache knows the passage"
        assert alone.dropped_tokens == 0
        cut = await _rerank(service, _LONG, options=ScoreOptions())
        assert cut.dropped_tokens > 900
        assert cut.scores.values[0] != result.scores.values[1]


async def test_every_aggregation_is_what_its_passages_say(tmp_path: Path) -> None:
    passages = PassageWishes(tokens=60)
    async with _service(tmp_path, passages={"max_passages": 100}) as service:
        values = await _passage_values(service, _LONG, passages)
        expected = {
            Aggregation.MAX: max(values),
            Aggregation.FIRST: values[0],
            Aggregation.MEAN: float(np.mean(values)),
            Aggregation.TOP_K_MEAN: float(np.mean(sorted(values)[-3:])),
        }
        assert len(set(expected.values())) == 4
        for aggregation, value in expected.items():
            asked = PassageWishes(tokens=60, aggregation=aggregation)
            options = ScoreOptions(truncation=Truncation.CHUNK, passages=asked)
            result = await _rerank(service, _LONG, options=options)
            assert result.results[0].value == pytest.approx(value, abs=1e-3)
            assert result.cached == 1, "other sums over passages that are known"


async def test_a_registry_sets_the_policy_and_its_bounds(tmp_path: Path) -> None:
    spec = {"truncation": "chunk", "passages": {"tokens": 32, "overlap": 0, "max_passages": 5, "aggregation": "first"}}
    async with _service(tmp_path, **spec) as service:
        result = await _rerank(service, _LONG, options=ScoreOptions())
        assert result.scores.passages is not None
        assert result.scores.passages.counts.tolist() == [5]
        assert result.scores.passages.starts.tolist() == [0]
        assert result.dropped_tokens > 0
        more = ScoreOptions(passages=PassageWishes(max_passages=50, aggregation=Aggregation.MAX))
        wider = await _rerank(service, _LONG, options=more)
        assert wider.scores.passages is not None
        assert wider.scores.passages.counts.tolist() == [5], "a request cannot exceed the bound"
        whole = await _rerank(service, _LONG, options=ScoreOptions(truncation=Truncation.TRUNCATE))
        assert whole.scores.passages is None


async def test_an_image_is_refused_by_the_name_of_the_model(tmp_path: Path) -> None:
    async with _service(tmp_path) as service:
        name = service.models[0].name
        with pytest.raises(InvalidRequest, match=f"model '{name}' reads text only"):
            await _rerank(service, "short", Document("short", image=b"\x89PNG"), options=ScoreOptions())


async def test_the_end_of_a_document_is_read_when_its_left_is_cut(tmp_path: Path) -> None:
    async with _service(tmp_path) as service:
        result = await _rerank(service, _LONG, options=ScoreOptions(truncation_side=Side.LEFT))
        passages = result.scores.passages
        assert passages is not None
        assert int(passages.ends[0]) == len(_LONG)
        alone = await _rerank(service, _LONG[int(passages.starts[0]) :], options=ScoreOptions())
        assert alone.scores.values[0] == result.scores.values[0]
        assert alone.dropped_tokens == 0


async def test_passages_that_the_model_itself_selects_score_as_all_of_them(tmp_path: Path) -> None:
    async with _service(tmp_path, passage_selector="tiny") as service:
        whole = await _rerank(service, _LONG, CORPUS[0], _LONG[500:])
        chosen = replace(_CHUNK, passages=PassageWishes(select=1))
        selected = await _rerank(service, _LONG, CORPUS[0], _LONG[500:], options=chosen)
        assert selected.scores.values.tolist() == whole.scores.values.tolist()
        assert whole.scores.passages is not None
        assert selected.scores.passages is not None
        assert selected.scores.passages.starts.tolist() == whole.scores.passages.starts.tolist()
        assert selected.scores.passages.counts.tolist() == [1, 1, 1]
        assert selected.dropped_tokens > whole.dropped_tokens


def test_a_selector_that_is_not_served_is_named(tmp_path: Path) -> None:
    registry = write_registry(tmp_path, [{"name": "tiny", "path": TINY_BERT, "passage_selector": "tyni"}])
    with pytest.raises(ConfigError, match=r"passage_selector of 'tiny'.*no model has the name or alias 'tyni'"):
        read_registry(registry)
