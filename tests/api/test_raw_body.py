"""What a caller sends along comes back as it was, and the model reads the digits that were sent."""

import json
from typing import Any

import orjson
import pytest

from rerankd.api.dialects.base import RequestLimits
from rerankd.api.dialects.voyage import VOYAGE
from rerankd.api.parsing.json_outline import Container
from rerankd.api.parsing.raw_body import RawBody
from rerankd.domain import ImageLimits
from tests.api.conftest import Api

_LIMITS = RequestLimits(
    documents=10_000,
    queries=1000,
    query_chars=32_768,
    rank_fields=64,
    fields=256,
    images=ImageLimits(images=10, bytes=10_000),
)
_FILLING = b"x" * 1_200_000
_VALUES = [
    b"12345678901234567890123",
    b"-98765432109876543210",
    b"18446744073709551615",
    b"0.1000",
    b"1e5",
    b"1.0E+2",
    b"3.141592653589793238462643383279",
    b"-0.0",
    b'"caf\\u00e9 \\ud83d\\ude42"',
    b"null",
    b"true",
    b'{"b": 1, "a": 2, "b": 3.50}',
    b'[ 1,\n 2.0 , {"x" : 1e-7}]',
    b"[" * 1000 + b"]" * 1000,
    b'{"a":' * 500 + b"0.10" + b"}" * 500,
]


def _body(documents: bytes, *, large: bool, name: bytes = b"documents", more: bytes = b"") -> bytes:
    filling = b', "ignored": "' + _FILLING + b'"' if large else b""
    return b'{"query": "q", "%b": %b%b%b}' % (name, documents, more, filling)


@pytest.mark.parametrize("value", _VALUES, ids=range(len(_VALUES)))
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
async def test_ids_and_metadata_come_back_as_they_came(api: Api, path: str, large: bool, value: bytes) -> None:
    documents = b'["a", {"text": "b", "id": %b, "metadata": %b}, {"text": "c"}]' % (value, value)
    answer = await api.post(path, content=_body(documents, large=large))
    assert answer.status_code == 200, answer.text
    written = value if value[:1] in b"[{-0123456789" else orjson.dumps(orjson.loads(value))
    assert b'"id":' + written in answer.content
    assert b'"metadata":' + written in answer.content


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    ("path", "name", "more"),
    [
        ("/v1/rerank", b"documents", b', "return_documents": true'),
        ("/v2/rerank", b"documents", b', "return_documents": true'),
        ("/pinecone/rerank", b"documents", b""),
        ("/v1/reranking", b"input", b', "return_input": true'),
    ],
)
async def test_whole_documents_come_back_as_they_came(
    api: Api, path: str, name: bytes, more: bytes, large: bool
) -> None:
    document = b'{ "text": "b", "n": 12345678901234567890123,"n": 0.10, "deep": %b}' % (b"[" * 900 + b"]" * 900)
    answer = await api.post(path, content=_body(b'["a", %b]' % document, large=large, name=name, more=more))
    assert answer.status_code == 200, answer.text
    assert answer.content.count(document) == 1


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("digits", [b"0.1000", b"12345678901234567890123", b"1e5"])
async def test_a_number_is_read_with_the_digits_that_were_sent(api: Api, digits: bytes, large: bool) -> None:
    documents = b'[{"price": %b}, "price: %b"]' % (digits, digits)
    answer = await api.post("/v2/rerank", content=_body(documents, large=large))
    first, second = answer.json()["results"]
    assert first["relevance_score"] == second["relevance_score"]


@pytest.mark.parametrize(
    "text",
    [
        b'{"documents": [0], "documents": [{"id": 1}, {"id": 2.50}]}',
        b'{"docum\\u0065nts": [{}, {"i\\u0064" : 2.50}]}',
        b'{"a": {"documents": [1]}, "documents" :\t[{"x": "]}"}, {"id": {"id": 0}, "id": 2.50 }], "b": [[{}]]}',
        b'{"documents": ["{\\"", {"\\\\": 1, "id":2.50}]}',
    ],
)
def test_a_member_is_found_as_a_parser_would_find_it(text: bytes) -> None:
    assert RawBody(text).member("documents", 1, "id") == b"2.50"


async def test_texts_and_whole_numbers_need_no_second_look(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any) -> None:
        raise AssertionError("looked for")

    monkeypatch.setattr(RawBody, "_find_entries", fail)
    documents: list[Any] = [{"text": "a", "id": "1"}, {"text": "b", "id": 2, "metadata": None}, "c"]
    answer = await api.post("/v2/rerank", content=json.dumps({"query": "q", "documents": documents}).encode())
    assert answer.status_code == 200


@pytest.mark.parametrize("fields", [500, 2000])
def test_the_members_of_an_object_are_found_once(fields: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its numbers is read with its own digits, and none of them lists all members again."""
    listed: list[int] = []
    members = Container.members

    def counted(container: Container) -> Any:
        listed.append(len(container.commas) + 1)
        return members(container)

    monkeypatch.setattr(Container, "members", counted)
    body = {"query": "q", "documents": [{f"f{number}": 1.5 for number in range(fields)}] * 2}
    text = orjson.dumps(body | {"return_documents": True, "top_k": 2})
    call = VOYAGE.parse(orjson.loads(text), text, limits=_LIMITS)
    requests = call.to_requests()
    assert requests[0].documents[1].count(": 1.5") == fields
    assert sum(listed) < 3 * fields, "once for the body, its list and each document"


@pytest.mark.parametrize(
    "documents",
    [
        [{f"f{number}": 1.5 for number in range(20_000)}],
        [{f"f{number}": 1.5 for number in range(64)}] * 300,
        [{"a": 1}] * 10_000,
        ["a"] * 9_999 + [{"a": 1}],
    ],
    ids=["one document", "many documents", "small documents", "texts and a document"],
)
def test_documents_are_read_in_steps_that_are_small(documents: list[Any]) -> None:
    text = orjson.dumps({"query": "q", "documents": documents})
    call = VOYAGE.parse(orjson.loads(text), text, limits=_LIMITS)
    steps = sum(1 for _ in call.prepare())
    assert steps >= sum(len(document) for document in documents) // 1000
    assert len(call.to_requests()[0].documents) == len(documents)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/infinity/rerank"])
async def test_numbers_of_documents_in_content_are_read(api: Api, path: str) -> None:
    documents = b'{"other": [], "content": [{"price": 1.5}, "text"]}'
    answer = await api.post(path, content=_body(documents, large=False))
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["results"]) == 2
