"""The one use case: which model, within limits, scored, ranked."""

from collections.abc import AsyncIterator

import pytest

from rerankd.cache.memory import MemoryCache
from rerankd.domain import RerankRequest, ScoreOptions, Terms
from rerankd.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ModelNotReady,
    RequestTooLarge,
    ScoringFailed,
)
from rerankd.serving.service import RerankService
from tests.fakes import ArithmeticEngine, FakeService, RecordingObserver, WordScorer, score_of


@pytest.fixture
def observer() -> RecordingObserver:
    return RecordingObserver()


@pytest.fixture
async def service(observer: RecordingObserver) -> AsyncIterator[RerankService]:
    fake = FakeService(observer=observer, max_documents=5, max_query_chars=20, scorer=WordScorer(max_length=12))
    async with fake.running() as service:
        yield service


def _request(
    *documents: str, query: str = "query", model: str | None = None, top_n: int | None = None
) -> RerankRequest:
    return RerankRequest(query=query, documents=documents, model=model, top_n=top_n)


async def test_documents_come_back_in_order_of_relevance(service: RerankService, observer: RecordingObserver) -> None:
    documents = ["a", "b b", "c c c", "d"]
    result = await service.rerank(_request(*documents))
    expected = sorted(range(4), key=lambda index: -score_of("query", documents[index]))
    assert [ranked.index for ranked in result.results] == expected
    assert [ranked.value for ranked in result.results] == [score_of("query", documents[index]) for index in expected]
    assert result.model == "fake"
    assert result.tokens == 4 * 2 + 7
    assert (result.dropped_tokens, result.truncated_documents, result.cached) == (0, 0, 0)
    assert observer.named("request_scored")[0]["dropped_tokens"] == 0


async def test_truncation_is_reported(service: RerankService, observer: RecordingObserver) -> None:
    result = await service.rerank(_request("w " * 15, "short", "w " * 11))
    assert (result.dropped_tokens, result.truncated_documents) == (6, 2)
    assert observer.named("request_scored")[0]["dropped_tokens"] == 6


async def test_top_n_leaves_the_best(service: RerankService) -> None:
    whole = await service.rerank(_request("a", "b", "c"))
    assert (await service.rerank(_request("a", "b", "c", top_n=2))).results == whole.results[:2]


@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u3000", "\u00a0 "])
async def test_blank_documents_keep_their_index_and_come_last(service: RerankService, blank: str) -> None:
    result = await service.rerank(_request(blank, "a", blank, "b"))
    assert [ranked.index for ranked in result.results[-2:]] == [0, 2]
    assert {ranked.index: ranked.value for ranked in result.results[:2]} == {
        1: score_of("query", "a"),
        3: score_of("query", "b"),
    }


async def test_nothing_but_blank_documents_needs_no_model(service: RerankService) -> None:
    result = await service.rerank(_request(" ", ""))
    assert [(ranked.index, ranked.relevance_score) for ranked in result.results] == [(0, 0.0), (1, 0.0)]
    assert result.tokens == 0


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (_request("a", query=""), InvalidRequest, "query is empty"),
        (_request("a", query=" \n"), InvalidRequest, "query is empty"),
        (_request("a", query="q" * 20), None, ""),
        (_request("a", query="q" * 21), RequestTooLarge, "at most 20 characters in a query; got 21"),
        (_request(), InvalidRequest, "no documents"),
        (_request(*"abcde"), None, ""),
        (_request(*"abcdef"), RequestTooLarge, "at most 5 documents per request; got 6"),
        (_request("a", model="vendor/fake"), None, ""),
        (_request("a", model="nope"), ModelNotFound, "unknown model 'nope'; known: fake, broken"),
        (_request("a", model="broken"), ModelNotReady, "could not be loaded"),
        (_request("a", "nan"), ScoringFailed, "score of document 1 is not a finite number"),
        (_request("a", "poison"), ScoringFailed, "failed on one of the documents"),
    ],
)
async def test_limits(
    service: RerankService, request_: RerankRequest, error: type[Exception] | None, message: str
) -> None:
    if error is None:
        assert (await service.rerank(request_)).results
    else:
        with pytest.raises(error, match=message):
            await service.rerank(request_)


async def test_an_instruction_is_no_longer_than_a_query(service: RerankService) -> None:
    long = RerankRequest(query="q", documents=["a"], options=ScoreOptions(instruction="i" * 21))
    with pytest.raises(RequestTooLarge, match="at most 20 characters in an instruction; got 21"):
        await service.rerank(long)


async def test_a_name_that_nobody_knows_is_not_repeated_at_length(service: RerankService) -> None:
    with pytest.raises(ModelNotFound) as refused:
        await service.rerank(_request("a", model="x" * 10_000))
    assert len(refused.value.message) < 300


async def test_a_request_that_takes_too_long_is_given_up_and_its_work_dropped(observer: RecordingObserver) -> None:
    engine = ArithmeticEngine(pairs=1)
    async with FakeService(observer=observer, engine=engine, request_timeout_s=0.05).running() as service:
        engine.gate.clear()
        with pytest.raises(DeadlineExceeded, match="3 of 3 texts were not scored"):
            await service.rerank(_request("a", "b", "c"))
        engine.gate.set()
        assert (await service.rerank(_request("a"))).results
    assert observer.total("work_cancelled", "tokens") > 0


async def test_after_a_failure_the_next_request_succeeds(service: RerankService) -> None:
    for _ in range(3):
        with pytest.raises(ScoringFailed):
            await service.rerank(_request("poison", "a"))
        assert (await service.rerank(_request("a"))).results[0].value == score_of("query", "a")


@pytest.mark.parametrize("apart", [True, False])
async def test_what_one_key_asked_is_found_by_others_only_where_they_share(
    observer: RecordingObserver, *, apart: bool
) -> None:
    fake = FakeService(observer=observer, cache=MemoryCache(max_entries=100), cache_per_key=apart)
    async with fake.running() as service:
        found = {
            caller: (
                await service.rerank(
                    RerankRequest(query="q", documents=["a", "b"], options=ScoreOptions(terms=Terms(caller=caller)))
                )
            ).cached
            for caller in ("one", "other")
        }
        again = await service.rerank(
            RerankRequest(query="q", documents=["a", "b"], options=ScoreOptions(terms=Terms(caller="one")))
        )
    assert found == {"one": 0, "other": 0 if apart else 2}
    assert again.cached == 2
