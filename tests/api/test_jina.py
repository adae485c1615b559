"""Jina's API and Cohere's version 1, one superset on two paths: golden pairs, and what clients are lenient about."""

from typing import Any

import pytest

from tests.api.conftest import Api, is_our_error
from tests.fakes import score_of

_PATHS = ("/v1/rerank", "/rerank")


def _answer(results: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
    return {
        "id": "golden-1",
        "object": "rerank",
        "model": "fake",
        "results": results,
        "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
        "meta": {
            "api_version": {"version": "1"},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": tokens},
        },
    }


_A = {"index": 0, "relevance_score": 0.9998154044151306}
_B = {"index": 1, "relevance_score": 0.999768853187561}
_C = {"index": 2, "relevance_score": 0.19777902960777283}

_GOLDEN = [
    pytest.param(
        {"model": "fake", "query": "q", "documents": ["a", "b", "c"]}, _answer([_A, _B, _C], 9), id="least of all"
    ),
    pytest.param(
        {
            "model": "fake",
            "query": "q",
            "documents": ["a", {"text": "b", "id": "doc-b", "source": {"page": 3}}, ""],
            "return_documents": True,
        },
        _answer(
            [
                {**_A, "document": {"text": "a"}},
                {**_B, "id": "doc-b", "document": {"text": "b", "id": "doc-b", "source": {"page": 3}}},
                {"index": 2, "relevance_score": 0.0, "document": {"text": ""}},
            ],
            6,
        ),
        id="documents sent back, metadata untouched, blank last",
    ),
    pytest.param(
        {
            "query": "q",
            "documents": [{"title": "T", "body": "B", "year": 1999}, {"title": "U", "body": "V"}],
            "rank_fields": ["title", "body"],
        },
        _answer(
            [
                {"index": 1, "relevance_score": 0.4617914855480194},
                {"index": 0, "relevance_score": 0.0002630323579069227},
            ],
            12,
        ),
        id="rank_fields",
    ),
    pytest.param(
        {
            "model": "fake",
            "query": "q",
            "documents": ["a", "b"],
            "top_n": None,
            "return_documents": None,
            "max_chunks_per_doc": None,
            "return_len": None,
            "kwargs": "{}",
        },
        _answer([_A, _B], 6),
        id="as xinference's client sends it",
    ),
]


@pytest.mark.parametrize(("request_", "expected"), _GOLDEN)
async def test_golden_pairs(api: Api, request_: object, expected: object) -> None:
    for path in _PATHS:
        answer = await api.post(path, request_, headers={"X-Request-ID": "golden-1"})
        assert answer.status_code == 200
        assert answer.json() == expected
    assert api.requests_counted(dialect="jina", status=200) == len(_PATHS)


_ALL = [0, 1, 2]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, _ALL),
        ({"top_n": None}, _ALL),
        ({"top_n": 0}, _ALL),
        ({"top_n": 1}, [0]),
        ({"top_n": 3}, _ALL),
        ({"top_n": 4}, _ALL),
        ({"top_n": 2**62}, _ALL),
        ({"top_n": "2"}, [0, 1]),
        ({"top_n": 2.0}, [0, 1]),
        ({"model": None}, _ALL),
        ({"model": ""}, _ALL),
        ({"max_tokens_per_doc": None}, _ALL),
        ({"max_tokens_per_doc": 2**40}, _ALL),
        ({"rank_fields": None}, _ALL),
        ({"rank_fields": []}, _ALL),
        ({"rank_fields": ["text"]}, _ALL),
        ({"nobody": "knows", "this": {"field": [1]}}, _ALL),
    ],
)
async def test_optional_fields_are_read_leniently(api: Api, extra: dict[str, Any], expected: list[int]) -> None:
    answer = await api.post("/v1/rerank", {"query": "q", "documents": ["a", "b", "c"], **extra})
    assert answer.status_code == 200, answer.text
    assert [result["index"] for result in answer.json()["results"]] == expected


@pytest.mark.parametrize(
    ("value", "returned"),
    [(True, True), ("true", True), (1, True), (False, False), ("false", False), (None, False), (0, False)],
)
async def test_return_documents_is_read_leniently(api: Api, value: object, returned: bool) -> None:
    answer = await api.post("/rerank", {"query": "q", "documents": ["a"], "return_documents": value})
    (result,) = answer.json()["results"]
    assert ("document" in result) is returned
    assert result.get("document") != {}, "left out rather than null or empty"


@pytest.mark.parametrize(
    ("document", "read"),
    [
        ("plain", "plain"),
        ({"text": "plain"}, "plain"),
        ({"text": "plain", "title": "not read", "id": "x"}, "plain"),
        ({"text": "", "id": "x"}, None),
    ],
)
async def test_what_is_read_of_a_document(api: Api, document: object, read: str | None) -> None:
    answer = await api.post("/rerank", {"query": "q", "documents": [document, "other"]})
    scores = {result["index"]: result["relevance_score"] for result in answer.json()["results"]}
    alone = await api.post("/rerank", {"query": "q", "documents": [read or ""]})
    assert scores[0] == alone.json()["results"][0]["relevance_score"]


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("x", "f: x"),
        (3, "f: 3"),
        (1.5, "f: 1.5"),
        (True, "f: true"),
        (["a", 1], 'f: ["a",1]'),
        ({"k": "v"}, 'f: {"k":"v"}'),
    ],
)
async def test_rank_fields_that_are_no_text_are_read_as_json(api: Api, value: object, line: str) -> None:
    one = await api.post("/rerank", {"query": "q", "documents": [{"f": value, "g": None}], "rank_fields": ["f", "g"]})
    whole = await api.post("/rerank", {"query": "q", "documents": [{"id": 7, "f": value, "g": None, "metadata": {}}]})
    other = await api.post("/rerank", {"query": "q", "documents": [line]})
    for answer in (one, whole):
        assert answer.json()["results"][0]["relevance_score"] == other.json()["results"][0]["relevance_score"]
        assert answer.json()["usage"] == other.json()["usage"]


def _nested(depth: int) -> object:
    value: object = "x"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("depth", [100, 300, 900])
@pytest.mark.parametrize("extra", [{"return_documents": True}, {"rank_fields": ["deep"]}, {}])
async def test_documents_are_given_back_however_deep_but_not_read(api: Api, depth: int, extra: dict[str, Any]) -> None:
    body = {"query": "q", "documents": [{"text": "a", "deep": _nested(depth)}], **extra}
    answer = await api.post("/rerank", body)
    if depth == 100 or "rank_fields" not in extra:
        assert answer.status_code == 200
        assert answer.text.count("[" * depth) == ("return_documents" in extra)
    else:
        assert is_our_error(answer, 400, "invalid_request")
        assert "nested too deeply" in answer.json()["message"]


async def test_max_tokens_per_doc_shortens_documents(api: Api) -> None:
    body = {"query": "q", "documents": ["a b c", "a b"], "max_tokens_per_doc": 2}
    answer = (await api.post("/rerank", body)).json()
    assert len({result["relevance_score"] for result in answer["results"]}) == 1
    assert answer["meta"]["warnings"] == [
        "1 document was longer than the model or max_tokens_per_doc allows: 1 token not read"
    ]


async def test_an_answer_says_where_its_time_went(api: Api) -> None:
    answer = await api.post("/rerank", {"query": "q", "documents": ["a"]})
    parts = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    assert list(parts) == ["cache", "tokenize", "queue", "inference", "total"]
    milliseconds = {name: float(value) for name, value in parts.items()}
    assert milliseconds["total"] >= milliseconds["tokenize"] + milliseconds["inference"] > 0


async def test_scores_do_not_depend_on_what_else_is_asked(api: Api) -> None:
    documents = ["b", "longer than the other one", "", "b"]
    answer = await api.post("/rerank", {"query": "q", "documents": documents})
    order = [result["index"] for result in answer.json()["results"]]
    assert order == sorted(order, key=lambda index: (not documents[index], -score_of("q", documents[index]), index))


@pytest.mark.parametrize(
    ("document", "fields"),
    [
        ({"title": "", "text": ""}, ["title", "text"]),
        ({"title": " ", "body": "\u200b"}, ["title", "body"]),
        ({"title": "", "body": "\ufeff"}, None),
        ({"text": "\u00ad"}, None),
    ],
)
async def test_names_of_fields_that_show_nothing_are_no_text(
    api: Api, document: dict[str, str], fields: list[str] | None
) -> None:
    body = {"query": "q", "documents": [document, {"title": "c", "text": "c"}], "use_activation": False}
    answer = await api.post("/rerank", body | ({"rank_fields": fields} if fields else {}))
    assert answer.status_code == 200
    last = answer.json()["results"][-1]
    assert last["index"] == 0
    assert last["relevance_score"] <= -16
