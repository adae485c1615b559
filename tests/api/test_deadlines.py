"""Deadlines over HTTP: what cannot make it is refused at once, with the time to come back."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from rerankd.api.dialects.cohere import CohereV2Body
from rerankd.cache.memory import MemoryCache
from rerankd.domain import FloatArray, RerankResult, Scores
from rerankd.scorers.ranking import sigmoid
from rerankd.tasks.encoding import Encoding
from tests.api.conftest import Api, OpenApi, is_our_error
from tests.fakes import ArithmeticEngine, FakeService, logit_of

_PATH = "/v2/rerank"
_HEADER = "X-Request-Deadline-Ms"


@pytest.mark.parametrize("value", ["soon", "", "0", "-5", "nan", "inf", "1e999", "12 ms"])
async def test_a_deadline_that_is_no_number_of_milliseconds(api: Api, value: str) -> None:
    answer = await api.post(_PATH, {"query": "q", "documents": ["a"]}, headers={_HEADER: value.encode()})
    assert is_our_error(answer, 400, "invalid_request")
    assert _HEADER in answer.json()["message"]


async def test_a_deadline_that_is_far_away_changes_nothing(api: Api) -> None:
    answer = await api.post(_PATH, {"query": "q", "documents": ["a", "b"]}, headers={_HEADER: "30000.5"})
    assert answer.status_code == 200


async def test_a_deadline_that_comes_is_a_504(open_api: OpenApi) -> None:
    async with open_api() as api:
        api.engine.gate.clear()
        answer = await api.post(_PATH, {"query": "q", "documents": ["a"]}, headers={_HEADER: "50"})
        api.engine.gate.set()
        assert is_our_error(answer, 504, "deadline_exceeded")
        assert "1 of 1 texts were not scored" in answer.json()["message"]
        assert api.observer.registry.get_sample_value("rerank_deadline_missed_total", {"model": "fake"}) == 1


async def test_what_no_idle_server_could_do_in_time_is_refused_at_once(open_api: OpenApi) -> None:
    engine = ArithmeticEngine(seconds_per_token=0.001, pairs=4)
    async with open_api(FakeService(activation=sigmoid, engine=engine)) as api:
        body = {"query": "q", "documents": [" ".join(["word"] * 30 + [str(number)]) for number in range(20)]}
        for number in range(4):
            assert (await api.post(_PATH, {**body, "query": f"q{number}"})).status_code == 200
        passes = len(engine.batches)
        answer = await api.post(_PATH, {**body, "query": "other"}, headers={_HEADER: "100"})
        assert is_our_error(answer, 504, "deadline_exceeded")
        assert "its deadline is in" in answer.json()["message"]
        assert len(engine.batches) == passes


async def test_a_refusal_says_when_to_come_back(open_api: OpenApi) -> None:
    engine = ArithmeticEngine(seconds_per_token=0.001, pairs=4)
    async with open_api(FakeService(activation=sigmoid, engine=engine, max_waiting_tokens=300)) as api:
        body = {"query": "q", "documents": [" ".join(["word"] * 30 + [str(number)]) for number in range(8)]}
        assert (await api.post(_PATH, body)).status_code == 200
        engine.gate.clear()
        running = [asyncio.ensure_future(api.post(_PATH, {**body, "query": f"q{number}"})) for number in range(2)]
        await asyncio.sleep(0.1)
        answer = await api.post(_PATH, {**body, "query": "third"})
        engine.gate.set()
        assert is_our_error(answer, 429, "overloaded")
        assert answer.headers["Retry-After"] == "1"
        assert 10 < int(answer.headers["Retry-After-Ms"]) < 1000
        await asyncio.gather(*running)


async def test_callers_are_told_apart_by_their_keys(open_api: OpenApi) -> None:
    """One key's full queue is not another's."""
    engine = ArithmeticEngine(pairs=1)
    fake = FakeService(activation=sigmoid, engine=engine, max_waiting_tokens=60)
    async with open_api(fake, api_keys="heavy,light") as api:
        engine.gate.clear()

        async def ask(key: str, name: str, documents: int) -> int:
            body = {"query": name, "documents": [f"{name} {number}" for number in range(documents)]}
            headers = {"Authorization": f"Bearer {key}"}
            return (await api.post(_PATH, body, headers=headers)).status_code

        heavy = [asyncio.ensure_future(ask("heavy", f"heavy{number}", 8)) for number in range(2)]
        await asyncio.sleep(0.1)
        assert await ask("heavy", "more", 8) == 429
        light = asyncio.ensure_future(ask("light", "light", 4))
        await asyncio.sleep(0.1)
        engine.gate.set()
        assert await asyncio.gather(*heavy, light) == [200, 200, 200]


class _SlowForLong(ArithmeticEngine):
    """Passes with a sequence of more than twenty tokens wait at the gate."""

    def run(self, encodings: Sequence[Encoding]) -> FloatArray:
        if max(len(encoding.ids) for encoding in encodings) > 20:
            return super().run(encodings)
        return np.array([[logit_of(encoding.ids.tolist())] for encoding in encodings], dtype=np.float32)


async def test_a_partial_answer_has_the_scored_documents_first_and_flags_the_rest(open_api: OpenApi) -> None:
    engine = _SlowForLong(workers=2, pairs=1)
    cache = MemoryCache(max_entries=100)
    async with open_api(FakeService(activation=sigmoid, engine=engine, cache=cache)) as api:
        body = {"query": "q", "documents": ["w " * 30, "short", "w " * 40, "brief", ""], "on_deadline": "partial"}
        await api.post(_PATH, {"query": "q", "documents": ["short", "brief"]})
        engine.gate.clear()
        answer = (await api.post(_PATH, body, headers={_HEADER: "300"})).json()
        engine.gate.set()
        indices = [result["index"] for result in answer["results"]]
        assert sorted(indices[:2]) == [1, 3]
        assert indices[2:] == [0, 2, 4]
        assert [result.get("scored") for result in answer["results"]] == [None, None, False, False, None]
        assert "2 documents were not scored before the deadline" in answer["meta"]["warnings"][0]
        whole = (await api.post(_PATH, body)).json()
        assert all("scored" not in result for result in whole["results"]), "what was missing was not cached"


@pytest.mark.parametrize(
    "options", [{}, {"truncation": "chunk"}, {"truncation_side": "left"}], ids=["whole", "passages", "ends"]
)
@pytest.mark.parametrize("cached", [False, True], ids=["no cache", "cache"])
async def test_a_partial_answer_counts_no_tokens_of_what_was_not_scored(
    open_api: OpenApi, options: dict[str, str], *, cached: bool
) -> None:
    engine = _SlowForLong(workers=4, pairs=1)
    cache = MemoryCache(max_entries=100) if cached else None
    async with open_api(FakeService(activation=sigmoid, engine=engine, cache=cache)) as api:
        documents = ["w " * 30, "short", "w " * 40, "", "w " * 30]
        body = {"query": "q", "documents": documents, "on_deadline": "partial"} | options
        alone = (await api.post(_PATH, {"query": "q", "documents": ["short"]} | options)).json()
        engine.gate.clear()
        answer = (await api.post(_PATH, body, headers={_HEADER: "300"})).json()
        nothing = (await api.post(_PATH, body | {"documents": documents[:1]}, headers={_HEADER: "50"})).json()
        engine.gate.set()
        assert [result.get("scored") for result in answer["results"]].count(False) == 3
        assert answer["meta"]["tokens"]["input_tokens"] == alone["meta"]["tokens"]["input_tokens"] > 0
        assert nothing["meta"]["tokens"]["input_tokens"] == 0


async def test_an_answer_says_how_deep_it_was_read(api: Api) -> None:
    body = {"query": "q", "documents": ["a b", "c", " "], "on_deadline": "depth"}
    answer = await api.post("/v2/rerank", body, headers={_HEADER: "20000"})
    assert answer.json()["meta"]["depth"] == 3
    assert not any("scored" in result for result in answer.json()["results"])
    assert "depth" not in (await api.post("/v2/rerank", body | {"on_deadline": "partial"})).json()["meta"]


def test_a_model_that_ignores_the_deadlines_policy_has_no_depth() -> None:
    body = CohereV2Body.model_construct(query="q", documents=["a"], on_deadline="depth")
    result = RerankResult(model="m", scorer="first", results=[], scores=Scores.unread(3), ignored=["on_deadline"])
    assert "depth" not in body.render_result(result, request_id="1")["meta"]
