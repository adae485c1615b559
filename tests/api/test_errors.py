"""Whatever is wrong with a request: our error body with four strings, the right status, never a 422 and never a 500."""

import asyncio
import gzip
import json
from typing import Any

import pytest

from rerankd.scorers.ranking import sigmoid
from tests.api.conftest import Api, OpenApi, is_our_error
from tests.fakes import ArithmeticEngine, FakeService

_PATHS = ("/v2/rerank", "/v1/rerank", "/rerank")
_GOOD = {"query": "q", "documents": ["a"]}

_BAD_BODIES: list[tuple[bytes, str]] = [
    (b"", "not valid JSON"),
    (b"{", "not valid JSON"),
    (b'{"query": "q", "documents": ["a"]', "not valid JSON"),
    (b"query=q", "not valid JSON"),
    (b"null", "JSON null; send an object"),
    (b"[]", "JSON list; send an object"),
    (b'"text"', "JSON string; send an object"),
    (b"17", "JSON number; send an object"),
    (b"[" * 100_000, "nested more than 1024 levels deep"),
    (b'{"a":' * 5000 + b"1" + b"}" * 5000, "nested more than 1024 levels deep"),
    (b'{"query": NaN, "documents": ["a"]}', "not valid JSON"),
    (b'{"query": "\\ud800", "documents": ["a"]}', "not valid JSON"),
    (b'{"query": "q", "documents": ["\\udfff"]}', "not valid JSON"),
    ('{"query": "q", "documents": ["\u00e9"]}'.encode("latin-1"), "byte 30 is 0xe9"),
    ('{"query": "q", "documents": ["a"]}'.encode("utf-16"), "it is UTF-16 or UTF-32; send UTF-8"),
    (b"\xff\xfe\x00", "not valid JSON"),
    (gzip.compress(b'{"query": "q", "documents": ["a"]}'), "not valid JSON"),
    (b"\0" * 100, "not valid JSON"),
]


@pytest.mark.parametrize(("body", "message"), _BAD_BODIES, ids=range(len(_BAD_BODIES)))
async def test_a_body_that_is_no_json_object(api: Api, body: bytes, message: str) -> None:
    for path in _PATHS:
        answer = await api.post(path, content=body)
        assert is_our_error(answer, 400, "invalid_request"), answer.text
        assert message in answer.json()["message"]


@pytest.mark.parametrize(
    "field", ["query", "documents", "truncation", "on_deadline", "aggregation", "passages", "top_n"]
)
async def test_a_field_may_be_as_deep_as_json_is_read(api: Api, field: str) -> None:
    fields = {name: value for name, value in _GOOD.items() if name != field}
    content = json.dumps(fields)[:-1] + f', "{field}": {"[" * 1000}{"]" * 1000}}}'
    answer = await api.post("/v2/rerank", content=content.encode())
    assert answer.status_code in (200, 400), answer.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": ...}, "query is missing"),
        ({"documents": ...}, "documents is missing"),
        ({"query": None}, "query must be a string"),
        ({"query": 5}, "query must be a string"),
        ({"query": ["q"]}, "query must be a string"),
        ({"query": {"id": "q"}}, 'query is an object without "text", "image" or "content"; send a string'),
        ({"query": ""}, "query is empty"),
        ({"query": " \t\n"}, "query is empty"),
        ({"documents": None}, "documents must be a list"),
        ({"documents": []}, "no documents"),
        ({"documents": "abc"}, "documents must be a list"),
        ({"documents": {"0": "a"}}, "documents must be a list"),
        ({"documents": ["a", None]}, "documents[1] is null"),
        ({"documents": ["a", 5]}, "documents[1] is a number"),
        ({"documents": [["a"]]}, "documents[0] is a list"),
        ({"documents": [{}]}, 'documents[0] has no string in its field "text"'),
        ({"documents": [{"text": None}]}, 'documents[0] has no string in its field "text"'),
        ({"documents": [{"text": 5}]}, 'documents[0] has no string in its field "text"'),
        ({"documents": [{"a": "b"}], "rank_fields": ["x"]}, "documents[0] has none of the fields to read: 'x'"),
        ({"documents": [{"a": "b"}], "rank_fields": ["x" * 9999]}, "rank_fields: 'xxx"),
        ({"documents": [{"id": 1}]}, 'documents[0] has nothing to read besides id and metadata; add a "text"'),
        ({"documents": [{"id": 1, "metadata": {}}], "rank_fields": []}, "documents[0] has nothing to read besides id"),
        ({"documents": [{"a": None, "b": None}]}, "documents[0] has none of the fields to read: 'a', 'b'; add one"),
        ({"documents": [{"a": "b"}], "rank_fields": [""]}, "documents[0] has none of the fields to read: ''; add one"),
        ({"documents": [{"a": "b"}], "rank_fields": list("uvwxyz")}, "'u', 'v', 'w', 'x', 'y', ...; add one"),
        ({"documents": [True]}, "documents[0] is a boolean"),
        ({"rank_fields": ["a", "b", "a"]}, "rank_fields: 'a' is named twice; name each field once"),
        ({"rank_fields": [1]}, "rank_fields[0] must be a string, not 1"),
        ({"rank_fields": "text"}, "rank_fields must be a list"),
        ({"top_n": -2}, "top_n: -2 is not a number of results; leave it out, or send 0 or -1, for all"),
        ({"top_n": 1.5}, "top_n must be a whole number"),
        ({"top_n": "many"}, "top_n must be a whole number"),
        ({"top_n": [1]}, "top_n must be a whole number"),
        ({"top_n": "x" * 10_000}, "top_n must be a whole number"),
        ({"max_tokens_per_query": -1}, "max_tokens_per_query must be at least 0, not"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens: 0 is not a number of tokens"),
        ({"max_tokens_per_doc": -5}, "max_tokens_per_doc must be at least 0, not"),
        ({"return_documents": "maybe"}, "return_documents must be true or false"),
        ({"model": 5}, "model must be a string"),
        ({"model": ["fake"]}, "model must be a string"),
    ],
)
async def test_a_field_that_is_wrong_is_named(api: Api, change: dict[str, Any], message: str) -> None:
    body = {name: value for name, value in {**_GOOD, **change}.items() if value is not ...}
    for path in _PATHS:
        answer = await api.post(path, content=json.dumps(body).encode())
        assert is_our_error(answer, 400, "invalid_request"), answer.text
        assert message in answer.json()["message"]
        assert len(answer.json()["message"]) < 500


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"model": "nope"}, 404, "model_not_found"),
        ({"model": "Fake"}, 404, "model_not_found"),
        ({"documents": ["a"] * 51}, 413, "request_too_large"),
        ({"query": "q" * 1001}, 413, "request_too_large"),
        ({"model": "broken"}, 503, "model_not_ready"),
        ({"documents": ["a", "poison"]}, 500, "scoring_failed"),
        ({"documents": ["a", "nan"]}, 500, "scoring_failed"),
    ],
)
async def test_every_other_refusal_has_its_status(api: Api, change: dict[str, Any], status: int, code: str) -> None:
    answer = await api.post("/rerank", {**_GOOD, **change})
    assert is_our_error(answer, status, code), answer.text
    assert (await api.post("/rerank", _GOOD)).status_code == 200


@pytest.mark.parametrize("text", ["\0", "a\0b", "\u202e\u0007", "\ufffe", "💥" * 50, "\x85"])
async def test_strange_characters_are_text_like_any_other(api: Api, text: str) -> None:
    document = {"text": f"d {text}", "id": text}
    answer = await api.post("/rerank", {"query": f"q {text}", "documents": [document], "return_documents": True})
    assert answer.status_code == 200
    assert answer.json()["results"][0]["document"] == document


async def test_many_mistakes_are_not_all_listed(api: Api) -> None:
    answer = await api.post("/rerank", {"top_n": -2, "model": 5, "max_tokens_per_doc": -1})
    assert is_our_error(answer, 400, "invalid_request")
    assert answer.json()["message"].endswith("; and 2 more")


@pytest.mark.parametrize("path", ["/nope", "/v9/rerank", "/v1/models/nope"])
async def test_a_wrong_path(api: Api, path: str) -> None:
    answer = await api.client.get(path)
    assert is_our_error(answer, 404, "model_not_found" if "models" in path else "not_found")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
async def test_a_wrong_method(api: Api, method: str) -> None:
    answer = await api.client.request(method, "/v2/rerank")
    assert is_our_error(answer, 405, "invalid_request")
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("host", ["[", "evil.example", "", "a b"])
async def test_a_strange_host_header_changes_nothing(api: Api, host: str) -> None:
    assert is_our_error(await api.client.get("/nope", headers={"Host": host}), 404, "not_found")
    assert (await api.post("/rerank", _GOOD, headers={"Host": host})).status_code == 200


async def test_a_model_that_could_not_be_loaded_says_no_path_of_the_server(api: Api) -> None:
    answer = await api.post("/rerank", {**_GOOD, "model": "broken"})
    assert is_our_error(answer, 503, "model_not_ready")
    assert int(answer.headers["retry-after"]) >= 1
    assert "'broken' could not be loaded" in answer.json()["message"]
    assert "/srv" not in answer.text
    assert "/srv/secret/path" in (await api.client.get("/ready")).text, "the operator is told"


async def test_an_error_of_the_engine_is_not_shown(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    answer = await api.post("/rerank", {"query": "q", "documents": ["poison"]})
    assert is_our_error(answer, 500, "scoring_failed")
    assert "operator of the graph" not in answer.text
    assert "operator of the graph" in caplog.text


async def test_an_overloaded_model_says_when_to_come_back(open_api: OpenApi) -> None:
    engine = ArithmeticEngine(pairs=1)
    async with open_api(FakeService(engine=engine, max_waiting_tokens=10, request_timeout_s=0.3)) as api:
        engine.gate.clear()
        tasks = [api.post("/rerank", {"query": "q", "documents": ["a b c d e f"] * 2}) for _ in range(4)]
        answers = await asyncio.gather(*tasks)
    assert {answer.status_code for answer in answers} == {429, 504}
    for answer in answers:
        code = "overloaded" if answer.status_code == 429 else "deadline_exceeded"
        assert is_our_error(answer, answer.status_code, code)
        assert (answer.status_code == 429) == ("retry-after" in answer.headers)


_BIG = b'{"query": "q", "documents": ["' + b"x" * 2000 + b'"]}'


async def _chunks(content: bytes) -> Any:
    for start in range(0, len(content), 100):
        yield content[start : start + 100]


async def test_a_body_that_is_too_large_is_refused_by_its_length(open_api: OpenApi) -> None:
    async with open_api(max_body_bytes=1024) as api:
        answer = await api.post("/rerank", content=_BIG)
        assert is_our_error(answer, 413, "request_too_large")
        assert "at most 1024" in answer.json()["message"]


async def test_a_body_of_unknown_length_is_refused_while_it_arrives(open_api: OpenApi) -> None:
    async with open_api(max_body_bytes=1024) as api:
        answer = await api.post("/rerank", content=_chunks(_BIG))
        assert is_our_error(answer, 413, "request_too_large")
        assert api.requests_counted(dialect="jina", status=413, model="none") == 1


async def test_a_chunked_body_within_the_limit_is_taken(open_api: OpenApi) -> None:
    async with open_api(FakeService(activation=sigmoid)) as api:
        assert (await api.post("/rerank", content=_chunks(_BIG))).status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip"])
async def test_a_compressed_body_is_refused(api: Api, encoding: str) -> None:
    answer = await api.post("/rerank", content=gzip.compress(_BIG), headers={"Content-Encoding": encoding})
    assert is_our_error(answer, 400, "invalid_request")
    assert encoding in answer.json()["message"]


@pytest.mark.parametrize("encoding", ["identity", "Identity", ""])
async def test_a_body_that_says_it_is_not_compressed_is_taken(api: Api, encoding: str) -> None:
    body = json.dumps(_GOOD).encode()
    assert (await api.post("/rerank", content=body, headers={"Content-Encoding": encoding})).status_code == 200


@pytest.mark.parametrize("kind", [None, "text/plain", "application/json; charset=latin-1", "multipart/form-data"])
async def test_the_content_type_does_not_matter(api: Api, kind: str | None) -> None:
    headers = {"Content-Type": kind} if kind else {}
    assert (await api.post("/rerank", content=json.dumps(_GOOD).encode(), headers=headers)).status_code == 200


async def test_our_own_bug_is_an_answer_too(open_api: OpenApi, caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeService(activation=sigmoid)
    async with open_api(fake) as api:
        fake.scorer.encode = _bug  # type: ignore[assignment, method-assign]
        answer = await api.post("/rerank", _GOOD, headers={"X-Request-ID": "find-me"})
        assert is_our_error(answer, 500, "internal_error")
        assert "secret" not in answer.text
        assert answer.headers["x-request-id"] == "find-me"
        assert api.requests_counted(dialect="jina", status=500) == 1
    assert "unexpected error" in caplog.text


def _bug(*_: object, **__: object) -> None:
    raise KeyError("a secret of ours")


@pytest.mark.parametrize(("values", "status"), [(749_998, 400), (749_999, 413)])
async def test_a_body_of_too_many_values_is_refused_unread(api: Api, values: int, status: int) -> None:
    answer = await api.post("/rerank", content=b"[[" + b"," * values + b" " * 400_000)
    assert is_our_error(answer, status, "invalid_request" if status == 400 else "request_too_large")
