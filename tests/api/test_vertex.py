"""Google's dialect: golden pairs, and errors as its clients read them."""

import pytest

from tests.api.conftest import Api

_CONFIG = "projects/p/locations/global/rankingConfigs/default_ranking_config"
_PATH = f"/v1/{_CONFIG}:rank"
_A, _B = 0.9998154044151306, 0.999768853187561
_RECORDS = [{"id": "x", "content": "b"}, {"id": "y", "title": "a"}]


@pytest.mark.parametrize("path", [_PATH, f"/v1beta/{_CONFIG}:rank", f"/v1alpha/{_CONFIG}:rank"])
@pytest.mark.parametrize("top_n", [{}, {"topN": 0}, {"topN": 2}])
async def test_golden_pairs(api: Api, path: str, top_n: dict[str, int]) -> None:
    answer = await api.post(path, {"model": "fake", "query": "q", "records": _RECORDS, "userLabels": {}, **top_n})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "records": [
            {"id": "y", "title": "a", "content": "", "score": _A},
            {"id": "x", "title": "", "content": "b", "score": _B},
        ]
    }
    assert "x-ignored-fields" not in answer.headers
    assert api.requests_counted(dialect="vertex", status=200) == 1


async def test_details_are_left_out_where_that_is_asked_for(api: Api) -> None:
    body = {"query": "q", "records": _RECORDS, "topN": 1, "ignoreRecordDetailsInResponse": True}
    assert (await api.post(_PATH, body)).json() == {"records": [{"id": "y", "score": _A}]}


async def test_title_and_content_are_read_as_two_lines(api: Api) -> None:
    records = [{"title": "a b", "content": "c"}]
    plain = await api.post("/rerank", {"query": "q", "documents": ["a b\nc"]})
    answer = await api.post(_PATH, {"query": "q", "records": records})
    assert answer.json()["records"][0]["score"] == plain.json()["results"][0]["relevance_score"]


@pytest.mark.parametrize(
    ("body", "status", "name"),
    [
        ({"query": "q"}, 400, "no documents"),
        ({"query": "q", "records": []}, 400, "no documents"),
        ({"query": "q", "records": _RECORDS, "model": "nobody"}, 404, "unknown model 'nobody'"),
    ],
)
async def test_an_error_is_an_object_for_googles_clients(api: Api, body: object, status: int, name: str) -> None:
    answer = await api.post(_PATH, body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["code"] == status
    assert name in error["message"]
    assert error["message"] == answer.json()["message"]


async def test_an_error_before_there_is_a_body_is_an_object_too(api: Api) -> None:
    answer = await api.post(_PATH, content=b"{}", headers={"Content-Length": str(1 << 40)})
    assert answer.status_code == answer.json()["error"]["code"] == 413
