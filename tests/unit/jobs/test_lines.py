"""Lines come out of a file as they were written, wherever its chunks end."""

import json
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerankd.jobs.lines import Line, Unreadable, answer_line, error_line, known_id, problem_of, read_lines
from rerankd.jobs.records import Job, has_room
from rerankd.jobs.sqlite import SqliteStore

_JOB = Job(id="batch_1", owner="", input_id="f", endpoint="/v1/rerank", window="1h", created_at=0, expires_at=3600)


class _Chunks(SqliteStore):
    """A store with one file."""

    def __init__(self, chunks: Sequence[bytes]) -> None:
        self._chunks = chunks

    async def read_chunk(self, file_id: str, number: int) -> bytes | None:
        return self._chunks[number] if number < len(self._chunks) else None


async def _read(chunks: Sequence[bytes], *, most_bytes: int = 100, most_lines: int = 100) -> list[Line]:
    lines = read_lines(_Chunks(chunks), "f", most_bytes=most_bytes, most_lines=most_lines)
    return [line async for line in lines]


@settings(deadline=None)
@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=5))
async def test_chunks_do_not_matter(content: bytes, cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    chunks = [content[start:end] for start, end in pairwise(places)]
    expected = [Line(number, text) for number, text in enumerate(content.split(b"\n")) if text.strip()]
    assert await _read(chunks) == expected


@pytest.mark.parametrize(
    "chunks", [[b"ok\n12345678901"], [b"ok\n123456", b"78901\nx"], [b"ok\n", b"12345678901", b"\n"]]
)
async def test_a_line_that_is_too_long_is_told_before_it_is_whole(chunks: list[bytes]) -> None:
    with pytest.raises(Unreadable) as refused:
        await _read(chunks, most_bytes=10)
    assert refused.value.number == 1
    assert await _read([b"1234567890\n"], most_bytes=10) == [Line(0, b"1234567890")]


@pytest.mark.parametrize(("content", "fits"), [(b"a\n\nb", True), (b"a\n\nb\n", True), (b"a\n\n\nb", False)])
async def test_blank_lines_count_too(content: bytes, *, fits: bool) -> None:
    if fits:
        assert [line.text for line in await _read([content], most_lines=3)] == [b"a", b"b"]
    else:
        with pytest.raises(Unreadable, match="at most 3 lines"):
            await _read([content], most_lines=3)


_GOOD = {"custom_id": "a", "method": "POST", "url": "/v1/rerank", "body": {}}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, None),
        ({"custom_id": "known"}, "duplicate_custom_id"),
        ({"custom_id": ""}, "invalid_custom_id"),
        ({"custom_id": "x" * 513}, "invalid_custom_id"),
        ({"custom_id": 7}, "invalid_custom_id"),
        ({"method": "GET"}, "invalid_method"),
        ({"url": "/v2/rerank"}, "mismatched_endpoint"),
        ({"body": []}, "invalid_body"),
    ],
)
def test_what_is_wrong_with_a_line_is_named(change: dict[str, object], code: str | None) -> None:
    problem = problem_of({**_GOOD, **change}, Line(4, b""), "/v1/rerank", {known_id("known")})
    assert (problem and problem.code, problem and problem.line) == (code, code and 5)


def test_results_are_lines_that_clients_of_openai_read() -> None:
    answered = json.loads(answer_line(_JOB, Line(2, b""), "a", status=200, body=b'{"results":[]}'))
    assert answered == {
        "id": "batch_req_1_3",
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "batch_req_1_3", "body": {"results": []}},
        "error": None,
    }
    failed = error_line(_JOB, Line(2, b""), "a", code="batch_expired", message="late")
    assert failed.endswith(b"\n")
    assert json.loads(failed)["error"] == {"code": "batch_expired", "message": "late"}


@pytest.mark.parametrize(
    ("size", "total", "own", "shared", "expected"),
    [
        (50, 0, 0, True, True),
        (51, 0, 0, True, False),
        (51, 0, 0, False, True),
        (100, 0, 0, False, True),
        (101, 0, 0, False, False),
        (10, 60, 10, True, True),
        (10, 60, 30, True, False),
    ],
)
def test_a_key_may_keep_as_much_as_it_leaves_free(
    size: int, total: int, own: int, shared: bool, expected: bool
) -> None:
    assert has_room(size, most=100, total=total, own=own, shared=shared) is expected
