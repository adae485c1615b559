"""Listwise and yes/no models behind the same API, batcher, cache and metrics as every other model."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from rerankd.api.dialects.superset import meta_of
from rerankd.config.settings import Settings
from rerankd.domain import RerankRequest, RerankResult, ScoreOptions, WindowWishes
from rerankd.errors import InvalidRequest, ModelNotReady, RemoteFailed, RemoteUnavailable
from rerankd.serving.assembly import running_service
from rerankd.serving.model import Status
from rerankd.serving.service import RerankService
from tests.endpoint_server import Script, completion, serving_endpoint
from tests.fakes import RecordingObserver
from tests.registry_files import write_registry
from tests.servers import Server, rerankd_server, wait_until_ready
from tests.tiny_models import CORPUS, TINY_BERT
from tests.transcriptions import first_logits

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Folder = Callable[[str], Path]

QUERY = "what is the capital of France?"
HUNDRED = [f"{CORPUS[number % len(CORPUS)][: 20 + number]} {number}" for number in range(100)]
FIRST: dict[str, Any] = {"window": 6, "stride": 3, "depth": 100, "template": "first-qwen3"}


def models(causal_folder: Folder) -> list[dict[str, Any]]:
    qwen = {"path": causal_folder("qwen3"), "engine": "torch-causal", "engine_options": {"device": "cpu"}}
    return [
        {"name": "cross", "path": TINY_BERT},
        {"name": "first", "scorer": "first", "options": {**FIRST, "schedule": "tournament"}, **qwen},
        {
            "name": "letters",
            "scorer": "first",
            "options": {"template": "first-qwen3", "window": 26, "stride": 13},
            **qwen,
        },
        {"name": "judge", "scorer": "yes-no", "options": {"template": "qwen3-reranker"}, **qwen},
        {"name": "both", "stages": ["cross:12", "first:6"]},
    ]


@asynccontextmanager
async def serving(folder: Path, causal_folder: Folder) -> AsyncIterator[tuple[RerankService, RecordingObserver]]:
    observer = RecordingObserver()
    registry = write_registry(folder, models(causal_folder))
    async with running_service(Settings(registry=registry), observer) as service:
        for model in service.models:
            await model.settled()
        yield service, observer


def indices(result: RerankResult) -> list[int]:
    return [document.index for document in result.results]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, causal_folder: Folder) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("listwise")
    with rerankd_server(folder, write_registry(folder, models(causal_folder))) as server:
        wait_until_ready(server)
        yield server


async def test_a_first_model_answers_beside_cross_encoder_traffic(server: Server) -> None:
    body = {"model": "first", "query": QUERY, "documents": HUNDRED, "top_n": 5}
    small = {"model": "cross", "query": QUERY, "documents": list(CORPUS)}
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        listwise = asyncio.create_task(client.post("/v2/rerank", json=body))
        others = [await client.post("/v2/rerank", json={**small, "query": f"{QUERY} {number}"}) for number in range(5)]
        waited = listwise.done()
        answer = await listwise
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert len({result["index"] for result in results}) == 5
    scores = [result["relevance_score"] for result in results]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == 1
    assert all(other.status_code == 200 for other in others)
    assert not waited, "the cross-encoder's requests were to be answered meanwhile"


@pytest.mark.parametrize("count", [1, 2, 26, 27])
async def test_as_many_documents_as_letters_and_one_more_are_each_placed_once(
    server: Server, causal_folder: Folder, count: int
) -> None:
    documents = [f"{CORPUS[number % len(CORPUS)][:24]} {number}" for number in range(count)]
    expected = list(range(count))
    # 27 documents: the last 26 first, then the best 13 of those behind the one that is left.
    for start, end in [(1, 27), (0, 14)] if count > 26 else [(0, count)]:
        window = expected[start:end]
        logits = first_logits("qwen3", causal_folder("qwen3"), QUERY, [documents[index] for index in window])
        expected[start:end] = [window[place] for place in np.argsort(-logits, kind="stable")]
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        answer = await client.post("/v2/rerank", json={"model": "letters", "query": QUERY, "documents": documents})
    assert answer.status_code == 200, answer.text
    assert "warnings" not in answer.json()["meta"], "whole documents were compared"
    results = answer.json()["results"]
    assert [result["index"] for result in results] == expected
    assert sorted(expected) == list(range(count))
    scores = [result["relevance_score"] for result in results]
    assert scores == pytest.approx([(count - place) / count for place in range(count)])


async def test_a_repeated_list_is_served_from_the_cache(tmp_path: Path, causal_folder: Folder) -> None:
    async with serving(tmp_path, causal_folder) as (service, observer):
        request = RerankRequest(query=QUERY, documents=HUNDRED[:15], model="first")
        once = await service.rerank(request)
        batches = len(observer.named("batch_scored"))
        again = await service.rerank(request)
        assert len(observer.named("batch_scored")) == batches
        assert (once.cached, again.cached) == (0, 15)
        assert indices(again) == indices(once)
        other_order = RerankRequest(query=QUERY, documents=HUNDRED[14::-1], model="first")
        assert (await service.rerank(other_order)).cached == 0


async def test_a_request_that_is_given_up_in_mid_schedule_stops_there(tmp_path: Path, causal_folder: Folder) -> None:
    async with serving(tmp_path, causal_folder) as (service, observer):
        wishes = WindowWishes(schedule="sliding")
        before = len(observer.named("batch_scored"))
        request = RerankRequest(query=QUERY, documents=HUNDRED, model="first", options=ScoreOptions(windows=wishes))
        running = asyncio.create_task(service.rerank(request))
        while len(observer.named("batch_scored")) < before + 2:  # noqa: ASYNC110 - a fact is no event
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await asyncio.sleep(0.3)
        assert len(observer.named("batch_scored")) <= before + 4
        assert (await service.rerank(RerankRequest(query=QUERY, documents=["a", "b"], model="first"))).results


async def test_a_cascade_says_which_model_placed_each_document(tmp_path: Path, causal_folder: Folder) -> None:
    async with serving(tmp_path, causal_folder) as (service, _):
        documents = [*HUNDRED[:9], "  ", *HUNDRED[9:20]]
        result = await service.rerank(RerankRequest(query=QUERY, documents=documents, model="both"))
        placed = [document.placed_by for document in result.results]
        assert placed == ["first"] * 6 + ["cross"] * 6 + [None] * 9
        assert indices(result)[12:] == [*range(13, 21), 9], "those beyond the depth keep their order, blank ones last"
        cross = await service.rerank(RerankRequest(query=QUERY, documents=documents[:13], model="cross"))
        assert indices(result)[6:12] == indices(cross)[6:12]


async def test_a_cascades_answer_names_the_models_and_wishes_arrive_over_http(server: Server) -> None:
    body: dict[str, Any] = {"model": "both", "query": QUERY, "documents": HUNDRED[:14]}
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        answer = (await client.post("/v2/rerank", json=body)).json()
        refused = await client.post("/v2/rerank", json={**body, "model": "first", "windows": {"window": 99}})
        told = await client.post("/v2/rerank", json={**body, "model": "judge", "instruction": "Find vaccines"})
        described = (await client.get("/v1/models/both")).json()
    assert [result.get("placed_by") for result in answer["results"]] == ["first"] * 6 + ["cross"] * 6 + [None] * 2
    assert refused.status_code == 400
    assert "window must be from 2 to 6" in refused.json()["message"]
    assert told.status_code == 200
    assert described["stages"] == ["cross:12", "first:6"]


async def test_a_listwise_model_names_the_wishes_that_it_ignores(server: Server) -> None:
    body = {"model": "first", "query": QUERY, "documents": HUNDRED[:3]}
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        for wishes, ignored in (
            ({"passages": {"tokens": 32}}, "truncation, passages"),
            ({"truncation": "chunk"}, "truncation"),
            ({"on_deadline": "partial"}, "on_deadline"),
            ({"on_deadline": "partial", "model": "both"}, None),
            ({"truncation": "chunk", "model": "both"}, None),
            ({"truncation": "truncate"}, None),
        ):
            answer = await client.post("/v2/rerank", json={**body, **wishes})
            assert answer.status_code == 200, answer.text
            assert answer.headers.get("x-ignored-fields") == ignored


async def test_wishes_out_of_the_operators_bounds_are_refused(tmp_path: Path, causal_folder: Folder) -> None:
    async with serving(tmp_path, causal_folder) as (service, _):
        for wishes, message in (
            (WindowWishes(window=7), "window must be from 2 to 6"),
            (WindowWishes(depth=101), "depth must be from 1 to 100"),
            (WindowWishes(window=3, stride=3), "stride must be from 2 to 2"),
            (WindowWishes(schedule="bubble"), "unknown schedule 'bubble'; known: sliding, full, top-down, tournament"),
            (WindowWishes(initial_order=[0, 0, 1]), "each of the document indices 0 to 2 once"),
        ):
            with pytest.raises(InvalidRequest, match=message):
                await service.rerank(
                    RerankRequest(
                        query=QUERY, documents=["a", "b", "c"], model="first", options=ScoreOptions(windows=wishes)
                    )
                )


async def test_candidates_beyond_the_depth_keep_the_initial_order(tmp_path: Path, causal_folder: Folder) -> None:
    async with serving(tmp_path, causal_folder) as (service, _):
        order = [7, 3, 5, 1, 0, 2, 4, 6]
        documents = [*HUNDRED[:7], HUNDRED[7]]
        wishes = WindowWishes(depth=4, initial_order=order)
        result = await service.rerank(
            RerankRequest(query=QUERY, documents=documents, model="first", options=ScoreOptions(windows=wishes))
        )
        assert sorted(indices(result)[:4]) == [1, 3, 5, 7]
        assert indices(result)[4:] == [0, 2, 4, 6]


async def test_an_instruction_reaches_the_models_that_read_one(tmp_path: Path, causal_folder: Folder) -> None:
    async with serving(tmp_path, causal_folder) as (service, _):
        request: dict[str, Any] = {"query": QUERY, "documents": list(CORPUS)}
        plain = await service.rerank(RerankRequest(**request, model="judge"))
        told = await service.rerank(
            RerankRequest(**request, model="judge", options=ScoreOptions(instruction="Find vaccines"))
        )
        assert told.cached == 0
        assert [document.value for document in told.results] != [document.value for document in plain.results]
        for model in ("cross", "first"):
            with pytest.raises(InvalidRequest, match="instruction"):
                await service.rerank(
                    RerankRequest(**request, model=model, options=ScoreOptions(instruction="Find vaccines"))
                )


async def test_a_cascade_whose_member_cannot_be_loaded_says_which(tmp_path: Path) -> None:
    registry = write_registry(
        tmp_path,
        [
            {"name": "cross", "path": TINY_BERT},
            {"name": "lost", "path": "nowhere"},
            {"name": "both", "stages": ["cross:5", "lost"]},
        ],
    )
    async with running_service(Settings(registry=registry), RecordingObserver()) as service:
        with pytest.raises(ModelNotReady, match="member of this cascade is not ready: model 'lost'"):
            await service.model_named("both").settled()
        await service.model_named("cross").settled()


async def test_a_model_behind_an_endpoint_orders_documents(tmp_path: Path) -> None:
    script = Script([(200, completion("[2] > [3] > [1]"))])
    with serving_endpoint(script) as url:
        model = {
            "name": "chat",
            "path": ".",
            "scorer": "generative",
            "engine": "endpoint",
            "options": {"template": "rankgpt"},
            "engine_options": {"url": url, "model": "m"},
        }
        settings, observer = Settings(registry=write_registry(tmp_path, [model])), RecordingObserver()
        async with running_service(settings, observer) as service:
            await service.model_named("chat").settled()
            result = await service.rerank(RerankRequest(query=QUERY, documents=["a", "b", "c"]))
            assert indices(result) == [1, 2, 0]
            script.answers = [(200, completion("I cannot rank these 3 passages.")), (200, completion(None))]
            script.answers = [*script.answers, (200, completion("[3] > [1]"))]
            script.asked.clear()
            again = [
                await service.rerank(RerankRequest(query=QUERY, documents=["g", "  ", "h", "i"])) for _ in range(4)
            ]
            assert [(indices(one), one.scores.unordered, one.cached) for one in again] == [
                ([0, 2, 3, 1], 1, 0),
                ([0, 2, 3, 1], 1, 0),
                ([3, 0, 2, 1], 0, 0),
                ([3, 0, 2, 1], 0, 3),
            ]
            assert [fact["unordered_windows"] for fact in observer.named("request_scored")] == [0, 1, 1, 0, 0]
            assert meta_of(again[0], ScoreOptions(), version="2")["warnings"] == [
                "the model named no document of 1 window, which kept the order it was given; ask again"
            ]
            script.answers = [(500, {})]
            asked = len(script.asked)
            with pytest.raises(RemoteUnavailable):
                await service.rerank(RerankRequest(query=QUERY, documents=["d", "e"]))
            assert len(script.asked) == asked + 3


async def test_an_endpoint_that_takes_its_time_is_asked_once(tmp_path: Path) -> None:
    script = Script([(200, completion("[2] > [1]"))])
    with serving_endpoint(script) as url:
        model = {
            "name": "chat",
            "path": ".",
            "scorer": "generative",
            "engine": "endpoint",
            "options": {"template": "rankgpt"},
            "engine_options": {"url": url, "model": "m", "timeout_s": 5.0},
        }
        settings = Settings(registry=write_registry(tmp_path, [model]), stuck_after_s=0.2)
        async with running_service(settings, RecordingObserver()) as service:
            await service.model_named("chat").settled()
            for number in range(20):
                await service.rerank(RerankRequest(query=QUERY, documents=["a", f"b {number}"]))
            asked = len(script.asked)
            script.seconds_per_byte = 0.01
            result = await service.rerank(RerankRequest(query=QUERY, documents=["c", "d"]))
            assert indices(result) == [1, 0]
            assert len(script.asked) == asked + 1


async def test_an_endpoint_is_asked_by_requests_only_and_may_be_away(tmp_path: Path) -> None:
    script = Script([(401, {})])
    with serving_endpoint(script) as url:
        chat = {
            "name": "chat",
            "path": ".",
            "scorer": "generative",
            "engine": "endpoint",
            "options": {"template": "rankgpt"},
            "engine_options": {"url": url, "model": "m", "retries": 0},
        }
        cross = {"name": "cross", "path": TINY_BERT}
        registry = write_registry(tmp_path, [cross, chat, {"name": "both", "stages": ["cross:5", "chat:2"]}])
        async with running_service(Settings(registry=registry), RecordingObserver()) as service:
            for name in ("chat", "both"):
                await service.model_named(name).settled()
                assert service.model_named(name).status is Status.READY
            assert not script.asked
            request = RerankRequest(query=QUERY, documents=["a", "b", "c"], model="both")
            with pytest.raises(RemoteFailed):
                await service.rerank(request)
            script.answers = [(200, completion("[2] > [1]"))]
            assert [document.placed_by for document in (await service.rerank(request)).results] == [
                "chat",
                "chat",
                "cross",
            ]
