"""Health, readiness, metrics, the served models, and the document that describes all paths."""

import asyncio
import re
from typing import Any

import pytest

from rerankd.api.dialects import DIALECTS
from rerankd.serving.model import Canary, GoldenPair
from tests.api.conftest import Api, OpenApi, address_of, is_our_error
from tests.fakes import FakeService, score_of

_CANARY = Canary(
    pairs=[GoldenPair("query", "document", score_of("query", "document"))], tolerance=0.1, timeout_s=0.2, every_s=0.001
)


async def test_health_answers_while_the_process_does(api: Api) -> None:
    api.engine.broken = True
    answer = await api.client.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (200, "ok")


async def test_ready_tells_the_truth_about_every_model(open_api: OpenApi) -> None:
    async with open_api(FakeService(canary=_CANARY)) as api:
        answer = await api.client.get("/ready")
        assert answer.status_code == 503, "one of the two could not be loaded"
        assert answer.json() == {
            "status": "not ready",
            "models": {
                "fake": {"status": "ready"},
                "broken": {"status": "failed", "reason": "no model folder /srv/secret/path"},
            },
        }
        assert int(answer.headers["retry-after"]) >= 1


async def _readiness(api: Api, *, until: str) -> dict[str, str]:
    """What `/ready` says of the model "fake", once its status is `until`."""
    async with asyncio.timeout(10):
        while True:
            state: dict[str, str] = (await api.client.get("/ready")).json()["models"]["fake"]
            if state["status"] == until:
                return state
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(("fault", "reason"), [("broken", "failed on one of"), ("offset", "wrong weights")])
async def test_ready_follows_the_engine(open_api: OpenApi, fault: str, reason: str) -> None:
    async with open_api(FakeService(canary=_CANARY)) as api:
        setattr(api.engine, fault, 3.0)
        assert reason in (await _readiness(api, until="failed"))["reason"]
        assert api.observer.registry.get_sample_value("rerank_model_ready", {"model": "fake"}) == 0
        setattr(api.engine, fault, 0.0)
        assert await _readiness(api, until="ready") == {"status": "ready"}
        assert api.observer.registry.get_sample_value("rerank_model_ready", {"model": "fake"}) == 1


async def test_ready_waits_for_no_inference(open_api: OpenApi) -> None:
    async with open_api(FakeService(canary=_CANARY)) as api:
        api.engine.gate.clear()
        passes = len(api.engine.batches)
        states = [(await api.client.get("/ready")).json()["models"]["fake"]["status"] for _ in range(20)]
        assert states == ["ready"] * 20, "the engine has had no time to be late"
        assert len(api.engine.batches) <= passes + 1, "asking starts no canary"
        api.engine.gate.set()


async def test_a_hung_engine_turns_ready_red(open_api: OpenApi) -> None:
    fake = FakeService(canary=_CANARY, stuck_after_s=0.1)
    async with open_api(fake) as api:
        api.engine.gate.clear()
        assert "stuck" in (await _readiness(api, until="failed"))["reason"]
        api.engine.gate.set()
        await _readiness(api, until="ready")


async def test_a_poisoned_document_leaves_the_model_ready(api: Api) -> None:
    assert (await api.post("/rerank", {"query": "q", "documents": ["poison"]})).status_code == 500
    assert (await api.client.get("/ready")).json()["models"]["fake"] == {"status": "ready"}
    assert (await api.post("/rerank", {"query": "q", "documents": ["fine"]})).status_code == 200


async def test_a_draining_service_is_not_ready_and_goes_on_answering(api: Api) -> None:
    api.lifecycle.draining = True
    answer = await api.client.get("/ready")
    assert (answer.status_code, answer.json()["status"]) == (503, "draining")
    assert (await api.client.get("/health")).status_code == 200
    assert (await api.post("/rerank", {"query": "q", "documents": ["a"]})).status_code == 200


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text; version=1.0.0", "*/*", ""])
async def test_metrics_are_what_prometheus_reads(api: Api, accept: str) -> None:
    await api.post("/rerank", {"query": "q", "documents": ["secret"]})
    answer = await api.client.get("/metrics", headers={"Accept": accept})
    assert answer.status_code == 200
    assert 'rerank_requests_total{dialect="jina",model="fake",status="200"} 1.0' in answer.text
    assert "secret" not in answer.text


async def test_labels_stay_bounded_whatever_is_asked(api: Api) -> None:
    for number in range(20):
        await api.post("/rerank", {"query": "q", "documents": ["a"], "model": f"model-{number}"})
        await api.client.get(f"/path-{number}")
    text = (await api.client.get("/metrics")).text
    assert "model-1" not in text
    assert "path-1" not in text
    assert 'rerank_requests_total{dialect="jina",model="none",status="404"} 20.0' in text


async def test_models_are_listed_as_clients_expect(api: Api) -> None:
    for path in ("/v1/models", "/models"):
        body = (await api.client.get(path)).json()
        assert body["object"] == "list"
        assert [model["id"] for model in body["data"]] == ["fake", "broken"]
        for model in body["data"]:
            assert (model["object"], model["model_type"]) == ("model", "rerank")
            assert isinstance(model["created"], int)


async def test_of_a_models_details_only_those_are_shown_that_are_meant_to_be(api: Api) -> None:
    for path in ("/v1/models", "/v1/models/fake", "/info"):
        text = (await api.client.get(path)).text
        assert "max_length" in text
        assert "internal" not in text


@pytest.mark.parametrize("name", ["fake", "vendor/fake", "vendor%2Ffake"])
async def test_one_model_is_found_by_name_and_alias(api: Api, name: str) -> None:
    answer = await api.client.get(f"/v1/models/{name}")
    assert answer.json()["id"] == "fake"
    assert answer.json()["aliases"] == ["vendor/fake"]


async def test_info_names_the_default_model_and_the_limits(api: Api) -> None:
    info = (await api.client.get("/info")).json()
    assert info["model_id"] == "fake"
    assert "reranker" in info["model_type"]
    assert info["max_client_batch_size"] == 50
    assert info["max_input_length"] == 512
    assert "/srv" not in str(info)


@pytest.mark.parametrize("given", ["abc", "A.b:c-d_1", "x" * 128])
async def test_a_harmless_request_id_is_kept(api: Api, given: str) -> None:
    answer = await api.client.get("/health", headers={"X-Request-ID": given})
    assert answer.headers["x-request-id"] == given


@pytest.mark.parametrize("given", [None, "", "x" * 129, "a b", "a\tb", '"quoted"', "<script>", "é".encode(), "a/../b"])
async def test_any_other_request_id_is_replaced(api: Api, given: str | None) -> None:
    headers = {} if given is None else {"X-Request-ID": given}
    first = await api.client.get("/health", headers=headers)
    second = await api.client.get("/health", headers=headers)
    assert re.fullmatch("[0-9a-f]{32}", first.headers["x-request-id"])
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


def _references(part: Any) -> list[str]:
    if isinstance(part, dict):
        own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
        return own + [found for value in part.values() for found in _references(value)]
    return [found for item in part for found in _references(item)] if isinstance(part, list) else []


async def test_the_openapi_document_is_whole(api: Api) -> None:
    document = (await api.client.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.")
    assert document["info"]["title"] == "rerankd"
    paths = {_documented(path) for dialect in DIALECTS for path in dialect.paths}
    paths |= {"/health", "/ready", "/metrics", "/v1/models", "/models", "/v1/models/{name}", "/info"}
    assert paths <= document["paths"].keys()
    identities = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(identities) == len(set(identities))
    for reference in _references(document):
        part = document
        for step in reference.removeprefix("#/").split("/"):
            part = part[step]


def _documented(path: str) -> str:
    return path.replace(":path}", "}")


async def test_every_rerank_path_documents_its_body_its_answer_and_our_errors(api: Api) -> None:
    document = (await api.client.get("/openapi.json")).json()
    for dialect in DIALECTS:
        for path in dialect.paths:
            operation = document["paths"][_documented(path)]["post"]
            body = operation["requestBody"]["content"]["application/json"]
            schemas = body["schema"].get("anyOf", [body["schema"]])
            assert any(dialect.example.keys() <= schema["properties"].keys() for schema in schemas)
            assert body["examples"][dialect.name]["value"] == dialect.example
            assert {"200", "400", "401", "404", "413", "429", "503", "504"} <= operation["responses"].keys()
            error = operation["responses"]["400"]["content"]["application/json"]["schema"]
            for form in error.get("anyOf", [error]):
                assert set(form["properties"]) == {"message", "detail", "error", "error_type"}


async def test_no_path_documents_a_422_that_is_never_sent(api: Api) -> None:
    document = (await api.client.get("/openapi.json")).json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"], path


async def test_the_example_of_every_dialect_works(api: Api) -> None:
    for dialect in DIALECTS:
        for path in dialect.paths:
            headers = {"X-Pinecone-Api-Version": "2025-10"} if dialect.name == "pinecone" else {}
            answer = await api.post(address_of(path), {**dialect.example, "model": None}, headers=headers)
            assert answer.status_code == 200
            assert api.requests_counted(dialect=dialect.name, status=200) > 0
            dialect.answer.model_validate(answer.json())


@pytest.mark.parametrize(("method", "path"), [("GET", "models"), ("POST", "reload"), ("POST", "models/fake/unload")])
async def test_without_admin_keys_there_is_no_admin(api: Api, method: str, path: str) -> None:
    answer = await api.client.request(method, f"/admin/{path}", headers={"Authorization": "Bearer any"})
    assert is_our_error(answer, 404, "not_found")
    assert not [path for path in (await api.client.get("/openapi.json")).json()["paths"] if "admin" in path]
