"""Amazon Bedrock's dialect: golden pairs, as boto3 writes them."""

from typing import Any

import pytest

from tests.api.conftest import Api, is_our_error

_A, _B = 0.9998154044151306, 0.999768853187561


def _text(text: str) -> dict[str, Any]:
    return {"inlineDocumentSource": {"textDocument": {"text": text}, "type": "TEXT"}, "type": "INLINE"}


def _json(document: Any) -> dict[str, Any]:
    return {"inlineDocumentSource": {"jsonDocument": document, "type": "JSON"}, "type": "INLINE"}


def _body(*sources: Any, model: str = "fake", **chosen: Any) -> dict[str, Any]:
    return {
        "queries": [{"textQuery": {"text": "q"}, "type": "TEXT"}],
        "rerankingConfiguration": {
            "bedrockRerankingConfiguration": {"modelConfiguration": {"modelArn": model}, **chosen},
            "type": "BEDROCK_RERANKING_MODEL",
        },
        "sources": list(sources),
    }


@pytest.mark.parametrize("model", ["fake", "vendor/fake", "arn:aws:bedrock:us-west-2::foundation-model/fake"])
@pytest.mark.parametrize(("chosen", "results"), [({}, 2), ({"numberOfResults": 1}, 1)])
async def test_golden_pairs(api: Api, model: str, chosen: dict[str, int], results: int) -> None:
    answer = await api.post("/rerank", _body(_text("b"), _text("a"), model=model, **chosen))
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "results": [{"index": 1, "relevanceScore": _A}, {"index": 0, "relevanceScore": _B}][:results]
    }
    assert api.requests_counted(dialect="bedrock", status=200) == 1


async def test_json_is_read_as_objects_are_elsewhere(api: Api) -> None:
    texts = [{"text": "a", "other": "b"}, {"title": "t", "size": 0.5, "tags": ["x"], "id": "7"}]
    nested = await api.post("/rerank", _body(*map(_json, texts)))
    flat = await api.post("/rerank", {"query": "q", "documents": texts})
    assert nested.status_code == 200, nested.text
    assert [result["relevanceScore"] for result in nested.json()["results"]] == [
        result["relevance_score"] for result in flat.json()["results"]
    ]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (_body(_json(None)), "sources[0] is null"),
        (_body({"inlineDocumentSource": {"type": "TEXT"}, "type": "INLINE"}), "sources[0] is null"),
        (_body(_text("a")) | {"queries": []}, "queries must hold one query; got 0"),
        ({"sources": [_text("a")]}, "queries is missing"),
        (_body("a"), "sources[0]"),
    ],
)
async def test_what_is_wrong_is_named(api: Api, body: object, message: str) -> None:
    answer = await api.post("/rerank", body)
    assert is_our_error(answer, 400, "invalid_request")
    assert message in answer.json()["message"]
