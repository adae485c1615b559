"""NVIDIA NIM's dialect: golden pairs, the model in the path, and both names of top_n."""

from typing import Any

import pytest

from tests.api.conftest import Api, is_our_error
from tests.fakes import score_of

_PASSAGES = [{"text": "b"}, {"text": "a"}]
_RANKINGS = [{"index": 1, "logit": score_of("q", "a")}, {"index": 0, "logit": score_of("q", "b")}]
_PATHS = ("/v1/ranking", "/ranking", "/v1/retrieval/vendor/fake/reranking", "/rerank", "/v1/rerank")


@pytest.mark.parametrize("path", _PATHS)
async def test_a_golden_pair(api: Api, path: str) -> None:
    body = {"model": "fake", "query": {"text": "q"}, "passages": _PASSAGES, "truncate": "END"}
    answer = await api.post(path, body, headers={"X-Request-ID": "golden-1"})
    assert answer.status_code == 200
    assert answer.json() == {
        "id": "golden-1",
        "model": "fake",
        "rankings": _RANKINGS,
        "usage": {"prompt_tokens": 6, "completion_tokens": 0, "total_tokens": 6},
    }
    assert api.requests_counted(dialect="nim", status=200) == 1


@pytest.mark.parametrize(
    ("extra", "results"),
    [
        ({}, 2),
        ({"top_n": 1}, 1),
        ({"top_k": 1}, 1),
        ({"top_k": 0}, 2),
        ({"top_n": None, "truncate": None, "model": None}, 2),
        ({"query": "q"}, 2),
    ],
)
async def test_optional_fields_are_read_leniently(api: Api, extra: dict[str, Any], results: int) -> None:
    answer = await api.post("/v1/ranking", {"query": {"text": "q"}, "passages": _PASSAGES, **extra})
    assert answer.json()["rankings"] == _RANKINGS[:results]


@pytest.mark.parametrize(("named", "model"), [("fake", "fake"), ("vendor/fake", "fake"), ("nope", None)])
async def test_the_path_names_the_model_where_the_body_does_not(api: Api, named: str, model: str | None) -> None:
    answer = await api.post(f"/v1/retrieval/{named}/reranking", {"query": {"text": "q"}, "passages": _PASSAGES})
    if model is None:
        assert is_our_error(answer, 404, "model_not_found")
    else:
        assert answer.json()["model"] == model
    other = {"model": "fake", "query": {"text": "q"}, "passages": _PASSAGES}
    assert (await api.post(f"/v1/retrieval/{named}/reranking", other)).json()["model"] == "fake"


@pytest.mark.parametrize(("truncate", "status"), [("END", 200), (None, 200), ("NONE", 400), ("START", 400)])
async def test_truncate(api: Api, truncate: str | None, status: int) -> None:
    body = {"query": {"text": "q"}, "passages": [{"text": "w " * 600}], "truncate": truncate}
    answer = await api.post("/v1/ranking", body)
    assert answer.status_code == status
    assert status == 200 or is_our_error(answer, 400, "invalid_request")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"passages": ["a"]}, "passages[0] must be an object, not 'a'"),
        ({"passages": [{}]}, "passages[0].text is missing"),
        ({"passages": None}, "passages must be a list"),
        ({"query": None}, "query"),
        ({"query": {}}, "query"),
    ],
)
async def test_a_field_that_is_wrong_is_named(api: Api, change: dict[str, Any], message: str) -> None:
    answer = await api.post("/v1/ranking", {"query": {"text": "q"}, "passages": _PASSAGES, **change})
    assert is_our_error(answer, 400, "invalid_request")
    assert message in answer.json()["message"]
