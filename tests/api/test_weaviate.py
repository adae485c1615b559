"""Weaviate's dialect: it gives the first score to the first document, and asks whether the server is ready."""

from tests.api.conftest import Api, is_our_error

_A, _B, _C = 0.9998154044151306, 0.999768853187561, 0.19777902960777283


async def test_scores_are_in_the_order_of_the_request(api: Api) -> None:
    # As the module writes it: the property is always there.
    body = {"query": "q", "documents": ["c", "", "a", "b"], "property": ""}
    answer = await api.post("/weaviate/rerank", body)
    assert answer.status_code == 200
    assert answer.json() == {
        "query": "q",
        "scores": [
            {"document": "c", "score": _C},
            {"document": "", "score": 0.0},
            {"document": "a", "score": _A},
            {"document": "b", "score": _B},
        ],
    }
    assert "x-ignored-fields" not in answer.headers
    assert api.requests_counted(dialect="weaviate", status=200) == 1


async def test_weaviate_finds_out_that_the_server_is_ready(api: Api) -> None:
    ready = await api.client.get("/weaviate/.well-known/ready")
    assert ready.status_code == (await api.client.get("/ready")).status_code
    meta = await api.client.get("/weaviate/meta")
    assert meta.json()["version"]


async def test_an_error_is_in_the_field_that_weaviate_reads(api: Api) -> None:
    answer = await api.post("/weaviate/rerank", {"query": "q", "documents": []})
    assert is_our_error(answer, 400, "invalid_request")
    assert "no documents" in answer.json()["error"]
