"""Anchors, from `rerankd anchors` to the answer: what is read, and that its scores are the model's own."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any, Final

import numpy as np
import pytest
from typer.testing import CliRunner

from rerankd.api.dialects.superset import meta_of
from rerankd.cli import cli
from rerankd.config.registry import ModelSpec
from rerankd.config.settings import Settings
from rerankd.domain import QueryWishes, RerankRequest, RerankResult, ScoreOptions, SpanWishes, Terms
from rerankd.errors import ConfigError, DeadlineExceeded
from rerankd.serving.assembly import check_parts, load_parts, running_service
from rerankd.serving.service import RerankService
from tests.fakes import RecordingObserver
from tests.registry_files import write_registry
from tests.tiny_models import CORPUS, TINY_BERT

_WORDS: Final = sorted({word for text in CORPUS for word in text.split()})
_RANDOM: Final = Random(7)
_TEXTS: Final = [" ".join(_RANDOM.choices(_WORDS, k=_RANDOM.randint(3, 12))) for _ in range(24)]
_ASKED: Final = [" ".join(_RANDOM.choices(_WORDS, k=4)) for _ in range(8)]
_QUERY: Final = " ".join(_RANDOM.choices(_WORDS, k=5))
_PLAN: Final = {"file": "made.npz", "anchors": 6, "depth": 10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with the same model with and without anchors, and the anchors that the command made."""
    folder = tmp_path_factory.mktemp("anchors")
    _write(folder / "corpus.jsonl", _TEXTS)
    _write(folder / "queries.jsonl", [*_ASKED, "never asked"])
    registry = write_registry(folder, [_entry("exact"), _entry("anchored", anchors=_PLAN)])
    made = _run(folder, "--model", "exact", "--queries", "8", "--output", folder / "made.npz", registry=registry)
    assert made.exit_code == 0, made.output
    assert "24 documents, 8 queries" in made.output
    return folder


def _write(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(texts)))


def _entry(name: str, **more: Any) -> Mapping[str, Any]:
    return {"name": name, "path": TINY_BERT, **more}


def _run(folder: Path, *options: object, registry: Path) -> Any:
    words = ["anchors", folder / "corpus.jsonl", folder / "queries.jsonl", "--registry", registry, *options]
    return CliRunner().invoke(cli, list(map(str, words)), catch_exceptions=True)


@asynccontextmanager
async def _served(folder: Path) -> AsyncIterator[tuple[RerankService, RecordingObserver]]:
    observer = RecordingObserver()
    async with running_service(Settings(registry=folder / "registry.toml"), observer) as service:
        for name in ("exact", "anchored"):
            await service.model_named(name).settled()
        yield service, observer


def _request(model: str, **options: Any) -> RerankRequest:
    return RerankRequest(model=model, query=_QUERY, documents=_TEXTS, options=ScoreOptions(**options))


def _values(result: RerankResult) -> dict[int, float]:
    return {ranked.index: ranked.value for ranked in result.results if ranked.scored}


async def test_what_is_read_has_its_own_score_and_is_what_the_formula_chooses(folder: Path) -> None:
    async with _served(folder) as (service, _):
        columns = []
        for query in (*_ASKED, _QUERY):
            alone = await service.rerank(RerankRequest(model="exact", query=query, documents=_TEXTS))
            columns.append([_values(alone)[index] for index in range(len(_TEXTS))])
        result = await service.rerank(_request("anchored"))
        matrix, truth = np.array(columns[:-1]), np.array(columns[-1])
        estimates = truth[:6] @ np.linalg.pinv(matrix[:, :6], rcond=0.01) @ matrix[:, 6:]
        chosen = {*range(6), *(6 + np.argsort(-estimates)[:4]).tolist()}
        assert set(_values(result)) == chosen
        assert _values(result) == pytest.approx({index: truth[index] for index in chosen}, abs=1e-4)
        order = [ranked.index for ranked in result.results]
        assert order[:10] == sorted(chosen, key=lambda index: -_values(result)[index])
        assert order[10:] == sorted(set(range(24)) - chosen)
        (warning,) = meta_of(result, ScoreOptions(), version="2")["warnings"]
        assert warning == "14 documents were not scored, because others promised more, and are in your order"


async def test_a_repeated_request_reads_nothing_and_the_cache_is_that_of_pairs(folder: Path) -> None:
    async with _served(folder) as (service, _):
        fresh = await service.rerank(_request("anchored"))
        again = await service.rerank(_request("anchored"))
    assert fresh.scores.cached is not None
    assert again.scores.cached is not None
    assert not fresh.scores.cached.any()
    assert again.scores.cached.sum() == 10
    assert [ranked.index for ranked in again.results] == [ranked.index for ranked in fresh.results]


async def test_several_queries_and_spans_count_beside_anchors(folder: Path) -> None:
    async with _served(folder) as (service, _):
        several = await service.rerank(_request("anchored", queries=QueryWishes(others=[_ASKED[0]])))
        assert 6 <= len(_values(several)) <= 10
        spans = await service.rerank(_request("anchored", spans=SpanWishes(threshold=0)))
        assert spans.scores.spans is not None
        assert all(spans.scores.spans[index] for index in _values(spans))


async def test_a_late_request_is_refused_and_its_repetition_out_of_the_cache_is_not(folder: Path) -> None:
    async with _served(folder) as (service, _):
        late = _request("anchored", terms=Terms(deadline=perf_counter() - 1))
        with pytest.raises(DeadlineExceeded):
            await service.rerank(late)
        read = _values(await service.rerank(_request("anchored")))
        assert _values(await service.rerank(late)) == read


def _spec(folder: Path, **changes: Any) -> tuple[ModelSpec, Settings]:
    settings = Settings(registry=folder / "registry.toml")
    return ModelSpec.model_validate({"name": "m", "path": str(TINY_BERT), "anchors": _PLAN} | changes), settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 64}, "hold scores of another model"),
        ({"anchors": {"file": "none.npz"}}, "cannot read the anchors"),
        ({"anchors": {"file": "corpus.jsonl"}}, "is not a file of anchors"),
    ],
)
def test_anchors_that_do_not_suit_are_refused_at_load_and_by_check(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    spec, settings = _spec(folder, **changes)
    with pytest.raises(ConfigError, match=message):
        load_parts(spec, settings)
    with pytest.raises(ConfigError, match=message):
        check_parts(spec, TINY_BERT, settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "anchored"], "has anchors, and would not read every document"),
        (["--model", "nobody"], "unknown model nobody"),
        (["--model", "exact", "--output", "nowhere/made.npz"], "nowhere"),
    ],
)
def test_the_command_says_what_it_cannot_use(folder: Path, options: list[str], message: str) -> None:
    failed = _run(folder, *options, registry=folder / "registry.toml")
    assert failed.exit_code != 0
    assert message in str(failed.exception)


def test_an_empty_corpus_is_refused(folder: Path, tmp_path: Path) -> None:
    _write(tmp_path / "corpus.jsonl", [])
    _write(tmp_path / "queries.jsonl", _ASKED)
    output = tmp_path / "made.npz"
    failed = _run(tmp_path, "--model", "exact", "--output", output, registry=folder / "registry.toml")
    assert "corpus.jsonl is empty" in str(failed.exception)
    assert not output.exists()
