"""Our own fields of /v2/rerank: min_score, truncation, passages, instruction, on_deadline, explain, and what documents
are sent with.
"""

from typing import Any

import pytest

from rerankd.cache.memory import MemoryCache
from rerankd.domain import Truncation
from rerankd.scorers.ranking import sigmoid
from tests.api.conftest import Api, OpenApi, is_our_error
from tests.fakes import FakeService, WordScorer, score_of

_LONG = " ".join(f"w{number}" for number in range(1200))


async def _results(api: Api, documents: list[Any], **fields: Any) -> list[dict[str, Any]]:
    answer = await api.post("/v2/rerank", {"query": "q", "documents": documents, **fields})
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


@pytest.mark.parametrize(
    ("min_score", "indexes"), [(None, [0, 1, 2]), (0.0, [0, 1, 2]), (0.5, [0, 1]), (1.0, []), ("0.5", [0, 1])]
)
async def test_min_score_leaves_lower_ones_out(api: Api, min_score: object, indexes: list[int]) -> None:
    results = await _results(api, ["a", "b", "c"], min_score=min_score)
    assert [result["index"] for result in results] == indexes


async def test_min_score_and_top_n_both_hold(api: Api) -> None:
    assert len(await _results(api, ["a", "b", "c"], min_score=0.5, top_n=1)) == 1


@pytest.mark.parametrize("min_score", ["high", [0.5], "nan", "inf"])
async def test_a_min_score_that_is_no_number_is_refused(api: Api, min_score: object) -> None:
    answer = await api.post("/v2/rerank", {"query": "q", "documents": ["a"], "min_score": min_score})
    assert is_our_error(answer, 400, "invalid_request")
    assert answer.json()["message"].startswith("min_score must be a ")


async def test_truncation_error_names_the_document_and_scores_nothing(api: Api) -> None:
    passes = len(api.engine.batches)
    body = {"query": "q", "documents": ["a", "", _LONG, _LONG], "truncation": "error"}
    answer = await api.post("/v2/rerank", body)
    assert is_our_error(answer, 400, "invalid_request")
    assert answer.json()["message"] == (
        "documents[2] and 1 more cannot be read whole: 690 tokens of it do not fit; shorten it, or allow truncation "
        '(truncation: "truncate")'
    )
    assert len(api.engine.batches) == passes
    assert len(await _results(api, ["a", "", "b"], truncation="error")) == 3


async def test_truncation_error_holds_for_documents_that_the_cache_knows(open_api: OpenApi) -> None:
    async with open_api(FakeService(cache=MemoryCache(max_entries=100))) as api:
        await _results(api, ["a", _LONG])
        answer = await api.post("/v2/rerank", {"query": "q", "documents": ["a", _LONG], "truncation": "error"})
        assert is_our_error(answer, 400, "invalid_request")
        assert answer.json()["message"].startswith("documents[1] cannot be read whole")


async def test_an_answer_says_of_which_documents_how_much_was_not_read(api: Api) -> None:
    answer = await api.post("/v2/rerank", {"query": "q", "documents": [_LONG, "a", "w " * 512], "top_n": 1})
    assert answer.json()["meta"]["truncated_documents"] == [
        {"index": 0, "dropped_tokens": 690},
        {"index": 2, "dropped_tokens": 2},
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"truncation": "chunk"},
        {"passages": {}},
        {"max_chunks_per_doc": 10},
        {"passages": {"tokens": None, "aggregation": None}, "truncation": None},
    ],
)
async def test_a_long_document_is_read_in_passages_and_the_best_is_named(api: Api, fields: dict[str, Any]) -> None:
    results = await _results(api, ["a", _LONG], **fields)
    passages = {result["index"]: result["passage"] for result in results}
    assert passages[0] == {"start": 0, "end": 1, "count": 1}
    assert passages[1]["count"] == 3
    best = _LONG[passages[1]["start"] : passages[1]["end"]]
    (alone,) = await _results(api, [best])
    assert alone["relevance_score"] == next(result for result in results if result["index"] == 1)["relevance_score"]


async def test_passages_are_counted_as_what_is_read(api: Api) -> None:
    documents = [_LONG, *["a"] * 40]
    fields = {"truncation": "chunk", "passages": {"tokens": 16, "overlap": 0}}
    answer = await api.post("/v2/rerank", {"query": "q", "documents": documents, **fields})
    meta = answer.json()["meta"]
    assert meta["billed_units"] == {"search_units": 1}, "40 and 32 passages"
    assert meta["tokens"]["input_tokens"] == 40 * 3 + 32 * 18
    assert meta["truncated_documents"] == [{"index": 0, "dropped_tokens": 1200 - 32 * 16}]
    documents.append(_LONG + " x")
    answer = await api.post("/v2/rerank", {"query": "q", "documents": [*documents, _LONG + " y"], **fields})
    assert answer.json()["meta"]["billed_units"] == {"search_units": 2}


@pytest.mark.parametrize("aggregation", ["max", "first", "mean", "top_k_mean"])
async def test_every_aggregation_answers(api: Api, aggregation: str) -> None:
    (result,) = await _results(api, [_LONG], passages={"aggregation": aggregation, "top_k": 2})
    assert result["passage"]["count"] == 3
    assert aggregation != "first" or result["passage"]["start"] == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"truncation": "drop"}, "truncation must be one of 'truncate', 'error', 'chunk' or 'extract'"),
        ({"truncation": True}, "truncation must be "),
        ({"passages": 5}, "passages must be "),
        ({"passages": {"tokens": 15}}, "passages.tokens must be "),
        (
            {"passages": {"tokens": 64, "overlap": 70}},
            "passages: overlap must be at most half of tokens, here 32, not 70",
        ),
        (
            {"passages": {"tokens": 64, "overlap": 33}},
            "passages: overlap must be at most half of tokens, here 32, not 33",
        ),
        ({"passages": {"overlap": -1}}, "passages.overlap must be "),
        ({"passages": {"max_per_doc": 0}}, "passages.max_per_doc must be "),
        ({"passages": {"aggregation": "median"}}, "passages.aggregation must be "),
        ({"max_chunks_per_doc": 0}, "max_chunks_per_doc must be "),
        ({"on_deadline": "wait"}, "on_deadline must be "),
        ({"explain": "perhaps"}, "explain must be "),
        ({"instruction": 5}, "instruction must be "),
    ],
)
async def test_an_extension_that_is_wrong_is_named(api: Api, fields: dict[str, Any], message: str) -> None:
    answer = await api.post("/v2/rerank", {"query": "q", "documents": ["a"], **fields})
    assert is_our_error(answer, 400, "invalid_request")
    assert answer.json()["message"].startswith(message)


async def test_blank_documents_keep_their_index_beside_passages(api: Api) -> None:
    results = await _results(api, ["", _LONG, " ", "a"], truncation="chunk", explain=True)
    assert sorted(result["index"] for result in results) == [0, 1, 2, 3]
    assert {result["index"] for result in results if "passage" not in result} == {0, 2}


async def test_a_model_that_reads_passages_by_default_does_so_in_every_dialect(open_api: OpenApi) -> None:
    async with open_api(FakeService(activation=sigmoid, truncation=Truncation.CHUNK)) as api:
        (chunked,) = await _results(api, [_LONG], truncation="chunk")
        for path in ("/v2/rerank", "/v1/rerank"):
            answer = await api.post(path, {"query": "q", "documents": [_LONG]})
            assert answer.json()["results"] == [chunked]
        answer = await api.post("/rerank", {"query": "q", "texts": [_LONG]})
        assert answer.json() == [{"index": 0, "score": chunked["relevance_score"]}]
        (cut,) = await _results(api, [_LONG], truncation="truncate")
        assert "passage" not in cut


async def test_an_instruction_needs_a_model_with_a_place_for_it(open_api: OpenApi) -> None:
    body = {"query": "q", "documents": ["a"], "instruction": "find code"}
    async with open_api() as api:
        answer = await api.post("/v2/rerank", body)
        assert is_our_error(answer, 400, "invalid_request")
        assert "does not take an instruction" in answer.json()["message"]
        for nothing in (None, ""):
            assert (await api.post("/v2/rerank", {**body, "instruction": nothing})).status_code == 200
    async with open_api(FakeService(scorer=WordScorer(takes_instruction=True))) as api:
        assert (await api.post("/v2/rerank", body)).status_code == 200


@pytest.mark.parametrize("on_deadline", ["error", "partial", "depth", None])
async def test_on_deadline_is_taken(api: Api, on_deadline: object) -> None:
    await _results(api, ["a"], on_deadline=on_deadline)


async def test_explain_says_where_a_score_comes_from(open_api: OpenApi) -> None:
    async with open_api(FakeService(activation=sigmoid, cache=MemoryCache(max_entries=100))) as api:
        await _results(api, ["a"])
        found = await _results(api, ["a", "b c", "w " * 600, ""], explain="true")
        explained = {result["index"]: result["explain"] for result in found}
        plain = {"stage": "words", "dropped_tokens": 0}
        assert explained[0] == {**plain, "score": score_of("q", "a"), "cached": True, "tokens": 3}
        assert explained[1] == {**plain, "score": score_of("q", "b c"), "cached": False, "tokens": 4}
        assert (explained[2]["tokens"], explained[2]["dropped_tokens"]) == (512, 90)
        assert (explained[3]["tokens"], explained[3]["cached"]) == (0, False)
        assert "explain" not in (await _results(api, ["a"]))[0]


@pytest.mark.parametrize("path", ["/v2/rerank", "/v1/rerank"])
async def test_what_a_document_is_sent_with_comes_back(api: Api, path: str) -> None:
    documents = [
        {"text": "a", "id": "x", "metadata": {"page": 3}},
        {"text": "b", "id": None},
        {"text": "c", "metadata": [1, None]},
    ]
    answer = await api.post(path, {"query": "q", "documents": documents})
    first, second, third = answer.json()["results"]
    assert (first["id"], first["metadata"]) == ("x", {"page": 3})
    assert second["id"] is None
    assert third["metadata"] == [1, None]
    assert "document" not in first


@pytest.mark.parametrize("scope", ["shared", "key"])
async def test_what_another_key_asked_is_told_only_where_scores_are_shared(open_api: OpenApi, scope: str) -> None:
    fake = FakeService(cache=MemoryCache(max_entries=100), cache_per_key=scope == "key")
    async with open_api(fake, api_keys="one-key,other-key", cache_scope=scope) as api:
        cached = []
        for key in ("one-key", "other-key", "one-key"):
            body = {"query": "q", "documents": ["a"], "explain": True}
            answer = await api.post("/v2/rerank", body, headers={"Authorization": f"Bearer {key}"})
            cached.append(answer.json()["results"][0]["explain"]["cached"])
    assert cached == [False, scope == "shared", True]
