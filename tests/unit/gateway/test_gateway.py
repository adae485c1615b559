"""The gateway without any transport: keys, quotas, deadlines and cancellation are the same for every front end."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from rerankd.concurrency.pacing import Pacing
from rerankd.config.api_keys import ApiKey, hash_key
from rerankd.config.settings import Settings
from rerankd.domain import Document, RerankRequest, RerankResult
from rerankd.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RateLimited,
    ScoringFailed,
    Unauthorized,
)
from rerankd.gateway.failures import CANCELLED, INTERNAL_ERROR, CallerGone, Failure, failure_of
from rerankd.gateway.gateway import CallFacts, Gateway
from rerankd.gateway.held_bytes import DOCUMENT_BYTES, QUERY_BYTES, HeldBytes
from rerankd.gateway.keys import ApiKeys
from rerankd.gateway.running import running_gateway
from tests.fakes import ArithmeticEngine, FakeService, RecordingObserver, score_of
from tests.registry_files import write_registry

_TOKENS_PER_MIN = 6000
# A quota fills by a hundred tokens a second: no test takes so long that this matters.
_NOISE = 500


def _key(name: str, **limits: Any) -> ApiKey:
    return ApiKey(name=name, sha256=hash_key(f"secret-{name}"), **limits)


@asynccontextmanager
async def _open(
    fake: FakeService | None = None, *, keys: Sequence[ApiKey] = (), max_held_bytes: int = 1 << 30
) -> AsyncIterator[Gateway]:
    fake = fake or FakeService()
    async with fake.running() as service:
        yield Gateway(
            service, keys=ApiKeys(keys), held=HeldBytes(max_held_bytes), pacing=Pacing(cores=2), observer=fake.observer
        )


def _request(documents: int = 3, *, first: int = 0, words: int = 98, model: str | None = None) -> RerankRequest:
    """Pairs of a hundred tokens; no two documents are equal."""
    texts = [" ".join(f"{number}-{word}" for word in range(words)) for number in range(first, first + documents)]
    return RerankRequest(query="q", documents=texts, model=model)


def _finished(gateway: Gateway) -> dict[str, Any]:
    """The facts that are stated of the latest call."""
    assert isinstance(gateway.observer, RecordingObserver)
    assert len(gateway.observer.named("request_started")) == len(gateway.observer.named("request_finished"))
    facts = dict(gateway.observer.named("request_finished")[-1])
    assert facts.pop("duration_s") >= 0
    return facts


async def test_a_call_with_a_key_is_answered_and_counted() -> None:
    async with _open(keys=[_key("a")]) as gateway:
        request, facts = _request(), CallFacts(dialect="in-process")
        (result,) = await gateway.rerank([request], api_key="secret-a", facts=facts)
        assert [ranked.value for ranked in result.results] == sorted(
            (score_of("q", document) for document in request.documents), reverse=True
        )
        assert facts == CallFacts(dialect="in-process", key="a", model="fake", documents=3, tokens=300)
        assert _finished(gateway) == {
            "model": "fake", "dialect": "in-process", "status": 200, "key": "a", "tokens": 300,
        }  # fmt: skip
        assert gateway.held.total == 0


async def test_each_query_of_a_call_has_its_own_result() -> None:
    async with _open() as gateway:
        requests = [RerankRequest(query=f"q{number}", documents=["a", "b"]) for number in range(300)]
        results = await gateway.rerank(requests)
        for request, result in zip(requests, results, strict=True):
            assert {ranked.value for ranked in result.results} == {score_of(request.query, text) for text in "ab"}


async def test_the_first_query_that_fails_stops_the_others() -> None:
    async with _open() as gateway:
        requests = [RerankRequest(query=f"q{number}", documents=["a"]) for number in range(300)]
        requests[1] = RerankRequest(query="poison", documents=["a"])
        with pytest.raises(ScoringFailed):
            await gateway.rerank(requests)
        assert _finished(gateway)["status"] == 500
        assert len(asyncio.all_tasks()) < 10, "nothing works on it any more"


@pytest.mark.parametrize("key", ["", "secret", "secret-ab"])
async def test_a_call_without_a_valid_key_is_rejected(key: str) -> None:
    async with _open(keys=[_key("a"), _key("b")]) as gateway:
        with pytest.raises(Unauthorized) as error:
            await gateway.rerank([_request()], api_key=key)
        failure = failure_of(error.value)
        assert (failure.status, failure.code, failure.retry_after_s) == (401, "unauthorized", None)
        assert _finished(gateway) == {"model": "none", "dialect": "none", "status": 401, "key": "", "tokens": 0}


async def test_a_key_whose_quota_is_used_up_is_told_when_to_try_again() -> None:
    async with _open(keys=[_key("a", tokens_per_min=_TOKENS_PER_MIN), _key("b")]) as gateway:
        await gateway.rerank([_request(80)], api_key="secret-a")
        with pytest.raises(RateLimited) as error:
            await gateway.rerank([_request(1)], api_key="secret-a")
        failure = failure_of(error.value)
        assert (failure.status, failure.code) == (429, "rate_limited")
        assert failure.retry_after_s == pytest.approx(60 * 2000 / _TOKENS_PER_MIN, abs=5)
        assert _finished(gateway)["key"] == "a"
        await gateway.rerank([_request(1)], api_key="secret-b")


async def test_a_key_may_send_only_its_requests_a_second() -> None:
    async with _open(keys=[_key("a", requests_per_s=0.01)]) as gateway:
        await gateway.rerank([_request(1)], api_key="secret-a")
        with pytest.raises(RateLimited) as error:
            await gateway.rerank([_request(1)], api_key="secret-a")
        assert failure_of(error.value).retry_after_s == pytest.approx(100, abs=5)


async def test_a_missed_deadline_is_an_error_with_its_own_code() -> None:
    fake = FakeService()
    async with _open(fake) as gateway:
        fake.engine.gate.clear()
        with pytest.raises(DeadlineExceeded) as error:
            await gateway.rerank([_request()], timeout_s=0.05)
        failure = failure_of(error.value)
        assert (failure.status, failure.code, failure.retry_after_s) == (504, "deadline_exceeded", None)
        assert _finished(gateway)["status"] == 504


async def test_an_unknown_model_is_named_in_the_error_and_not_in_the_metrics() -> None:
    async with _open() as gateway:
        with pytest.raises(ModelNotFound, match="'zanzibar'"):
            await gateway.rerank([_request(model="zanzibar")])
        assert _finished(gateway) == {"model": "none", "dialect": "none", "status": 404, "key": "", "tokens": 0}


async def test_a_call_without_queries_is_rejected() -> None:
    async with _open() as gateway:
        with pytest.raises(InvalidRequest, match="at least one"):
            await gateway.rerank([])


async def test_requests_that_would_hold_too_much_are_rejected_while_others_are_worked_on() -> None:
    fake = FakeService()
    async with _open(fake, max_held_bytes=QUERY_BYTES + 10 * DOCUMENT_BYTES) as gateway:
        fake.engine.gate.clear()
        first = asyncio.create_task(gateway.rerank([_request(10, words=1)]))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="other requests hold"):
            await gateway.rerank([_request(1)])
        fake.engine.gate.set()
        await first
        assert gateway.held.total == 0


async def test_an_image_counts_as_held_bytes() -> None:
    fake = FakeService()
    async with _open(fake, max_held_bytes=1 << 20) as gateway:
        fake.engine.gate.clear()
        first = asyncio.create_task(gateway.rerank([_request(1)]))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="other requests hold"):
            await gateway.rerank([RerankRequest(query="q", documents=[Document("a", image=bytes(1 << 20))])])
        fake.engine.gate.set()
        await first


class _OnePass(ArithmeticEngine):
    """Says when the first pass of a request has begun; a canary's pairs are shorter."""

    def __init__(self) -> None:
        super().__init__(tokens=1000, pairs=10)
        self.begun = threading.Event()

    def run(self, batch: Any) -> Any:
        if len(batch[0].ids) == 100:
            self.begun.set()
        return super().run(batch)


@pytest.mark.parametrize("hangs_up", [True, False], ids=["the client hangs up", "the task is cancelled"])
async def test_a_cancelled_call_costs_what_was_computed_for_it(hangs_up: bool) -> None:
    engine = _OnePass()
    async with _open(FakeService(engine=engine), keys=[_key("a", tokens_per_min=_TOKENS_PER_MIN)]) as gateway:
        engine.gate.clear()
        working = _hang_up(gateway, engine) if hangs_up else gateway.rerank([_request(50)], api_key="secret-a")
        asking = asyncio.ensure_future(working)
        await asyncio.to_thread(engine.begun.wait, 10)
        if not hangs_up:
            asking.cancel()
        (error,) = await asyncio.gather(asking, return_exceptions=True)
        assert isinstance(error, CallerGone if hangs_up else asyncio.CancelledError)
        engine.gate.set()
        assert _finished(gateway)["status"] == 499
        await gateway.rerank([_request(80, first=1000)], api_key="secret-a")
        with pytest.raises(RateLimited) as rejected:
            await gateway.rerank([_request(1)], api_key="secret-a")
        used = rejected.value.retry_after_s * _TOKENS_PER_MIN / 60 + _TOKENS_PER_MIN - 8000
        assert 1000 - _NOISE <= used <= 1000 + 4000 / 32 + _NOISE, "one pass, and the tokenizing of the rest"


async def _hang_up(gateway: Gateway, engine: _OnePass) -> Sequence[RerankResult]:
    """A front end that notices, in the middle of a call, that its client has gone."""
    with gateway.call() as call:
        await call.identify([b"secret-a"])
        working = asyncio.create_task(call.rerank([_request(50)]))
        await asyncio.to_thread(engine.begun.wait, 10)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        raise CallerGone


async def test_a_caller_must_be_identified_first() -> None:
    async with _open() as gateway:
        with pytest.raises(RuntimeError, match="identify"), gateway.call() as call:
            await call.rerank([_request()])
        assert _finished(gateway)["status"] == 500


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (KeyError("a secret path"), INTERNAL_ERROR),
        (asyncio.CancelledError(), CANCELLED),
        (CallerGone(), CANCELLED),
        (
            Overloaded("the queue is full", retry_after_s=2.5),
            Failure(status=429, code="overloaded", message="the queue is full", retry_after_s=2.5),
        ),
        (InvalidRequest("no"), Failure(status=400, code="invalid_request", message="no")),
    ],
    ids=repr,
)
def test_every_error_has_a_status_a_code_and_a_message(error: BaseException, failure: Failure) -> None:
    assert failure_of(error) == failure


async def test_a_front_end_builds_its_gateway_from_the_settings(tmp_path: Path, tiny_model: Path) -> None:
    registry = write_registry(tmp_path, [{"name": "tiny", "path": tiny_model}])
    settings = Settings(registry=registry, api_keys=[SecretStr("secret")])
    async with running_gateway(settings, RecordingObserver()) as gateway:
        (result,) = await gateway.rerank([RerankRequest(query="q", documents=["a", "b"])], api_key="secret")
        assert (result.model, len(result.results)) == ("tiny", 2)
        with pytest.raises(Unauthorized):
            await gateway.rerank([RerankRequest(query="q", documents=["a"])])
