"""Whatever a request has too much of is refused with the number and the limit, before anything is built from it."""

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from rerankd.api.dialects import DIALECTS
from rerankd.api.dialects.base import Dialect, RequestLimits
from rerankd.domain import ImageLimits
from rerankd.errors import InvalidRequest, RequestTooLarge
from tests.api.conftest import OpenApi, is_our_error
from tests.fakes import FakeService

_LIMITS = RequestLimits(
    documents=10_000,
    queries=1000,
    query_chars=32_768,
    rank_fields=64,
    fields=256,
    images=ImageLimits(images=10, bytes=10_000),
)


def _dialect(name: str) -> Dialect:
    return next(dialect for dialect in DIALECTS if dialect.name == name)


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        ("/v2/rerank", {"documents": ["a"] * 51}, "at most 50 documents per request; documents has 51"),
        ("/rerank", {"texts": ["a"] * 51}, "at most 50 documents per request; texts has 51"),
        ("/rerank", {"passages": [{"text": "a"}] * 51}, "at most 50 documents per request; passages has 51"),
        ("/rerank", {"input": ["a"] * 51}, "at most 50 documents per request; input has 51"),
        ("/rerank", {"documents": [7] * 51, "top_k": 1}, "at most 50 documents per request; documents has 51"),
        ("/score", {"text_1": ["q"] * 51, "text_2": ["a"] * 51}, "at most 50 entries in a list; text_1 has 51"),
        ("/score", {"text_1": "q", "text_2": ["a"] * 51}, "at most 50 documents per request; text_2 has 51"),
        ("/rerank", {"documents": ["a"], "other": [1] * 51}, "at most 50 entries in a list; other has 51"),
        ("/v2/rerank", {"documents": ["a"], "rank_fields": list("abcdef")}, "at most 5 rank_fields; got 6"),
        ("/rerank", {"input": ["a"], "rank_fields": ["a"] * 6}, "at most 5 rank_fields; got 6"),
        (
            "/v2/rerank",
            {"documents": ["a"], "windows": {"initial_order": [0] * 51}},
            "at most 50 entries in a list; windows.initial_order has 51",
        ),
        (
            "/v2/rerank",
            {"documents": ["a"], "windows": {str(number): 1 for number in range(21)}},
            "at most 20 fields in an object; windows has 21",
        ),
        (
            "/rerank",
            {"passages": [{"text": "a"} | {str(number): 1 for number in range(21)}]},
            "at most 20 fields in an object; one has 22",
        ),
        ("/v2/rerank", {str(number): 1 for number in range(20)}, "the body has 21 fields; at most 20 are allowed"),
        (
            "/score",
            {"text_1": list("abc"), "text_2": ["d"] * 3},
            "at most 2 different queries per request; got 3",
        ),
        ("/v2/rerank", {"documents": ["a"], "queries": list("abc")}, "at most 2 further queries per request; got 3"),
        (
            "/v2/rerank",
            {"documents": ["a"], "queries": ["abc", "d"], "evidence": ["e" * 20, "f" * 20]},
            "at most 40 characters in a query with its evidence; got 45",
        ),
    ],
)
async def test_too_much_of_anything_is_refused(
    open_api: OpenApi, path: str, fields: dict[str, Any], message: str
) -> None:
    limits = {"max_rank_fields": 5, "max_queries": 2, "max_body_fields": 20, "max_query_chars": 40}
    async with open_api(FakeService(max_documents=50), **limits) as api:
        answer = await api.post(path, {"query": "q", **fields})
        assert is_our_error(answer, 413, "request_too_large"), answer.text
        assert answer.json()["message"].startswith(message)


async def test_as_much_as_is_allowed_is_taken(open_api: OpenApi) -> None:
    async with open_api(FakeService(max_documents=50), max_rank_fields=5, max_queries=2) as api:
        documents = [{"a": "x", "b": "y"}] * 50
        answer = await api.post(
            "/v2/rerank", {"query": "q", "documents": documents, "rank_fields": ["a", "b", "c", "d", "e"]}
        )
        assert answer.status_code == 200, answer.text
        answer = await api.post("/score", {"text_1": ["q", "r"] * 25, "text_2": ["a"] * 50})
        assert answer.status_code == 200, answer.text


_HOSTILE: dict[str, Callable[[], tuple[str, dict[str, Any]]]] = {
    "one name, again and again": lambda: (
        "cohere-v2",
        {"documents": [{"a": "x" * 100_000}], "rank_fields": ["a"] * 100_000},
    ),
    "documents times names": lambda: (
        "cohere-v2",
        {"documents": [{"a": 1}] * 10_000, "rank_fields": [str(number) for number in range(10_000)]},
    ),
    "unknown fields of a passage": lambda: (
        "nim",
        {"passages": [{"text": "a"} | {str(number): 0 for number in range(700_000)}]},
    ),
    "wrong texts": lambda: ("tei", {"texts": [0] * 10_000}),
    "too many wrong texts": lambda: ("tei", {"texts": [0] * 700_000}),
    "distinct queries": lambda: (
        "vllm-score",
        {"text_1": [str(number) for number in range(700_000)], "text_2": ["a"] * 700_000},
    ),
    "wrong queries": lambda: ("vllm-score", {"text_1": [0] * 10_000, "text_2": ["a"] * 10_000}),
    "further queries": lambda: ("cohere-v2", {"documents": ["a"], "queries": ["a"] * 10_000}),
    "evidence for each query": lambda: (
        "cohere-v2",
        {"documents": ["a"], "queries": ["a"] * 1000, "evidence": ["a" * 1_000_000]},
    ),
    "wrong order": lambda: ("cohere-v2", {"documents": ["a"], "windows": {"initial_order": ["x"] * 700_000}}),
}


@pytest.mark.timed
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", _HOSTILE)
def test_what_will_be_refused_costs_next_to_nothing(name: str, strict: bool) -> None:
    dialect, fields = _HOSTILE[name]()
    started = time.thread_time()
    tracemalloc.start()
    try:
        with pytest.raises((InvalidRequest, RequestTooLarge)) as refusal:
            _dialect(dialect).parse({"query": "q", **fields}, b"", limits=_LIMITS, strict=strict).to_requests()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.thread_time() - started < 0.1
    assert peak < 2**20
    assert len(refusal.value.message) < 500


async def test_many_queries_of_one_call_are_not_worked_on_all_at_once(open_api: OpenApi) -> None:
    """And each is answered in its place."""
    async with open_api(FakeService()) as api:
        queries = [f"query {number}" for number in range(300)]
        pairs = {"text_1": queries, "text_2": ["a document"] * 300}
        together = (await api.post("/score", pairs)).json()
        alone = (await api.post("/score", {"text_1": queries[250], "text_2": "a document"})).json()
        assert len(together["data"]) == 300
        assert together["data"][250]["score"] == alone["data"][0]["score"]
