"""The answer to a wrong path or method names the right one; and the service is found behind a proxy's prefix."""

import pytest

from rerankd.api.wrong_paths import nearest_path
from tests.api.conftest import Api, OpenApi, is_our_error
from tests.fakes import FakeService


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("/v2/rerank/", "/v2/rerank"),
        ("//v2/rerank", "/v2/rerank"),
        ("/v2//rerank", "/v2/rerank"),
        ("/v1/v1/rerank", "/v1/rerank"),
        ("/v1/rerank/rerank", "/v1/rerank"),
        ("/api/v1/rerank", "/v1/rerank"),
        ("/v4/rerank", "/v3/rerank"),
        ("/v2/score", "/v1/score"),
        ("/v1/rerankin", "/v1/reranking"),
        ("/v1/scores", "/v1/score"),
        ("/healthz", "/health"),
        ("/docs/", "/docs"),
    ],
)
async def test_a_wrong_path_is_told_the_nearest(api: Api, path: str, nearest: str) -> None:
    answer = await api.client.post(f"http://test{path}", json={"query": "q", "documents": ["a"]})
    assert is_our_error(answer, 404, "not_found"), answer.text
    assert f"no such path; did you mean {nearest}? GET /docs lists all paths" in answer.json()["message"]


@pytest.mark.parametrize("path", ["/", "/wp-login.php", "/" * 60_000, "/" + "é" * 90, "/v1/" + "rerank/" * 10_000])
def test_what_is_near_to_nothing_is_not_guessed(path: str) -> None:
    assert nearest_path(path, ["/v1/rerank", "/health"]) is None


async def test_a_path_that_is_near_to_nothing_is_named_in_the_same_words(api: Api) -> None:
    answer = await api.client.get("/wp-login.php")
    assert is_our_error(answer, 404, "not_found")
    assert answer.json()["message"] == "GET /wp-login.php: no such path; GET /docs lists all paths"


async def test_a_long_path_is_not_said_back(api: Api) -> None:
    answer = await api.client.get("/" + "x" * 5000)
    assert is_our_error(answer, 404, "not_found")
    assert len(answer.json()["message"]) < 300


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v2/rerank", "POST"),
        ("PUT", "/rerank", "POST"),
        ("POST", "/v1/models", "GET"),
        ("POST", "/health", "GET"),
    ],
)
async def test_a_wrong_method_is_told_the_right_one(api: Api, method: str, path: str, allowed: str) -> None:
    answer = await api.client.request(method, path)
    assert is_our_error(answer, 405, "invalid_request")
    assert f"this path takes {allowed}" in answer.json()["message"]
    assert answer.headers["allow"].startswith(allowed)


@pytest.mark.parametrize("taken_off", [True, False])
async def test_behind_a_prefix_all_is_found_whether_a_proxy_takes_it_off_or_not(
    open_api: OpenApi, taken_off: bool
) -> None:
    before = "" if taken_off else "/search/rerank-api"
    async with open_api(root_path="/search/rerank-api") as api:
        answer = await api.post(f"{before}/v2/rerank", {"query": "q", "documents": ["a"]})
        assert answer.status_code == 200, answer.text
        for path in ("/health", "/", "/docs", "/v1/models", "/playground.js"):
            assert (await api.client.get(f"{before}{path}")).status_code == 200, path
        document = (await api.client.get(f"{before}/openapi.json")).json()
        assert document["servers"] == [{"url": "/search/rerank-api"}]


async def test_without_a_prefix_the_document_names_no_server(api: Api) -> None:
    assert "servers" not in (await api.client.get("/openapi.json")).json()


@pytest.mark.parametrize("name", ["cohere/fake", "vendor/fake", "azure/vendor/fake"])
async def test_a_vendors_name_before_the_models_is_taken(api: Api, name: str) -> None:
    answer = await api.post("/v1/rerank", {"query": "q", "documents": ["a"], "model": name})
    assert answer.json()["model"] == "fake"


async def test_unknown_models_are_the_fallbacks_if_there_is_one(api: Api, open_api: OpenApi) -> None:
    request = {"query": "q", "documents": ["a"], "model": "rerank-v3.5"}
    refusal = await api.post("/v1/rerank", request)
    assert is_our_error(refusal, 404, "model_not_found")
    assert "RERANKD_MODEL_FALLBACK" in refusal.json()["message"]
    async with open_api(FakeService(fallback="fake")) as other:
        assert (await other.post("/v1/rerank", request)).json()["model"] == "fake"


@pytest.mark.parametrize("path", ["/", "/docs", "/playground.js"])
async def test_a_missing_page_of_a_private_service_is_explained(open_api: OpenApi, path: str) -> None:
    async with open_api(api_keys="secret", private=True) as api:
        answer = await api.client.get(path)
    assert is_our_error(answer, 404, "not_found")
    assert "RERANKD_PRIVATE" in answer.json()["message"]
    assert "POST /v2/rerank with an API key" in answer.json()["message"]
