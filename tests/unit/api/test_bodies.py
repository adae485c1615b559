"""A large body is read in parts, and means what it would mean if it were read at once."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from rerankd.api.parsing.bodies import BodyLimits, BodyReader
from rerankd.errors import InvalidRequest, RequestTooLarge

_MEGABYTE = 1 << 20
_LIMITS = BodyLimits(max_values=750_000, max_fields=256, max_text_bytes=16 * _MEGABYTE)

_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)


def _request(body: bytes, *, chunk_bytes: int = 65_536) -> Request:
    chunks = [body[start : start + chunk_bytes] for start in range(0, len(body), chunk_bytes)]

    def messages() -> Iterator[Message]:
        for chunk in chunks:
            yield {"type": "http.request", "body": chunk, "more_body": True}
        yield {"type": "http.request", "body": b"", "more_body": False}

    coming = messages()

    async def receive() -> Message:
        for message in coming:
            return message
        await asyncio.Event().wait()
        raise AssertionError

    return Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)


def _large(content: bytes, *, filling: bytes = b"a, [b] {c} ") -> bytes:
    """An object with `content` under a key of its own, and enough beside it that it is read in parts."""
    filled = filling * (_MEGABYTE // len(filling) + 1)
    return b'{"before": "' + filled + b'", "asked": ' + content + b', "after": "' + filled + b'"}'


@settings(deadline=None, max_examples=20)  # each reads two megabytes; test_json_text.py tries many small ones
@given(value=_values, escaped=st.booleans(), chunk_bytes=st.integers(50_000, 90_000))
async def test_what_is_read_in_parts_is_what_is_read_at_once(value: Any, escaped: bool, chunk_bytes: int) -> None:
    body = _large(json.dumps(value, ensure_ascii=escaped).encode("utf-8", "surrogatepass"))
    try:
        expected = orjson.loads(body)
    except orjson.JSONDecodeError:
        with pytest.raises(InvalidRequest, match="not valid JSON"):
            await BodyReader(_LIMITS).read_object(_request(body, chunk_bytes=chunk_bytes))
    else:
        read = (await BodyReader(_LIMITS).read_object(_request(body, chunk_bytes=chunk_bytes))).fields
        assert read == expected
        assert json.dumps(read) == json.dumps(expected), "1 and 1.0 are equal, and so are -0.0 and 0"


_escapes = st.lists(st.sampled_from([b"\\\\", b"\\ud83d", b"\\udc00", b"\\u0041", b"ud83d", b"x", b" "]), max_size=8)


@settings(deadline=None, max_examples=20)
@given(escapes=_escapes, filling=st.sampled_from([b"a ", b"a", b"\\\\"]), chunk_bytes=st.integers(32_760, 32_776))
async def test_no_escape_is_read_otherwise_in_parts(escapes: list[bytes], filling: bytes, chunk_bytes: int) -> None:
    body = _large(b'"' + b"".join(escapes) + b'"', filling=filling)
    try:
        expected = orjson.loads(body)
    except orjson.JSONDecodeError:
        with pytest.raises(InvalidRequest, match="surrogate"):
            await BodyReader(_LIMITS).read_object(_request(body, chunk_bytes=chunk_bytes))
    else:
        assert (await BodyReader(_LIMITS).read_object(_request(body, chunk_bytes=chunk_bytes))).fields == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b'"\\ud800"', "no low surrogate", id="half a surrogate pair"),
        pytest.param(b'"\\ud800\\ud800\\udc00 \\udc00"', "surrogate", id="halves that even out"),
        pytest.param(b'"\\\\ud83d\\udc00"', "surrogate", id="half a pair behind an escaped backslash"),
        pytest.param(b'"\\ud83d\\\\\\udc00"', "surrogate", id="an escaped backslash between both halves"),
        pytest.param(b'"\xed\xa0\x80"', "UTF-8", id="a surrogate as bytes"),
        pytest.param(b"NaN", "unexpected character", id="no number"),
        pytest.param(b"1} {", "unexpected", id="a second body behind it"),
        pytest.param(b"1 /* 2 */", "unexpected", id="a comment"),
    ],
)
async def test_a_large_body_is_refused_in_the_same_words_as_a_small_one(content: bytes, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        await BodyReader(_LIMITS).read_object(_request(_large(content)))
    with pytest.raises(InvalidRequest, match=said):
        await BodyReader(_LIMITS).read_object(_request(b'{"asked": ' + content + b"}"))


@pytest.mark.parametrize("levels", [1023, 1024])
@pytest.mark.parametrize("large", [False, True])
async def test_a_body_may_be_nested_as_deeply_whatever_its_size(levels: int, large: bool) -> None:
    """With the body itself, 1024 levels."""
    content = b"[" * levels + b"]" * levels
    body = _large(content) if large else b'{"asked": ' + content + b"}"
    if levels == 1023:
        assert "asked" in (await BodyReader(_LIMITS).read_object(_request(body))).fields
    else:
        with pytest.raises(InvalidRequest, match="more than 1024 levels deep"):
            await BodyReader(_LIMITS).read_object(_request(body))


@pytest.mark.parametrize("content", [b"12345678901234567890123", b'"\\ud83c\\udfad"', b'"\\\\ud800"'])
async def test_what_only_some_parsers_take_is_taken_in_a_large_body_too(content: bytes) -> None:
    body = await BodyReader(_LIMITS).read_object(_request(_large(content)))
    assert body.fields == orjson.loads(_large(content))


@pytest.mark.parametrize("large", [False, True])
async def test_a_byte_order_mark_is_no_part_of_the_body(large: bool) -> None:
    body = _large(b"1") if large else b'{"asked": 1}'
    assert (await BodyReader(_LIMITS).read_object(_request(b"\xef\xbb\xbf" + body))).text == body


@pytest.mark.parametrize("filling", [b" ", b"x"])
@pytest.mark.parametrize("chunk_bytes", [1000, 4 * _MEGABYTE])
async def test_a_body_may_be_all_blanks_or_without_any(filling: bytes, chunk_bytes: int) -> None:
    body = _large(b"1", filling=filling)
    assert (await BodyReader(_LIMITS).read_object(_request(body, chunk_bytes=chunk_bytes))).fields == orjson.loads(body)


async def test_a_truncated_body_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        await BodyReader(_LIMITS).read_object(_request(_large(b"1")[:-1]))


@pytest.mark.parametrize("size", [10, 2 * _MEGABYTE])
async def test_what_is_no_object_is_refused(size: int) -> None:
    with pytest.raises(InvalidRequest, match="JSON list"):
        await BodyReader(_LIMITS).read_object(_request(b"[" + b" " * size + b"]"))


async def test_a_body_of_too_many_values_is_refused_before_it_is_read() -> None:
    with pytest.raises(RequestTooLarge, match="more than 750000 JSON values"):
        await BodyReader(_LIMITS).read_object(_request(b'{"documents": [' + b"1," * 4_100_000 + b" no JSON"))


async def _longest_step_s(body: bytes) -> float:
    """For how much CPU time the event loop did nothing else while a body was read."""
    longest, reading = 0.0, True

    async def watch() -> None:
        nonlocal longest
        last = time.thread_time()
        while reading:
            await asyncio.sleep(0)
            longest, last = max(longest, time.thread_time() - last), time.thread_time()

    request = _request(body)
    watching = asyncio.create_task(watch())
    try:
        with suppress(RequestTooLarge):
            await BodyReader(_LIMITS).read_object(request)
    finally:
        reading = False
        await watching
    return longest


@pytest.mark.timed
@pytest.mark.usefixtures("service_collector")
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda: b'{"documents": ["' + b"word " * (3 * _MEGABYTE) + b'"]}', id="one text of 15 MiB"),
        pytest.param(lambda: b'{"documents": ["' + b"word " * (12 * _MEGABYTE) + b'"]}', id="one text of 60 MiB"),
        pytest.param(lambda: b'{"documents": [' + b"[]," * 370_000 + b"1]}", id="as many lists as are taken"),
        pytest.param(lambda: b'{"documents": [' + b'{"a":1},' * 149_000 + b"1]}", id="as many objects as are taken"),
        pytest.param(lambda: b'{"documents": [' + b"[]," * 20_000_000 + b"1]}", id="more lists than are taken"),
        pytest.param(lambda: b'{"a":' * 1000 + b"[" + b"[]," * 300_000 + b"1]" + b"}" * 1000, id="lists, deep down"),
    ],
)
async def test_no_body_holds_up_the_loop(body: Callable[[], bytes]) -> None:
    assert await _longest_step_s(body()) < 0.1


async def test_large_bodies_are_read_one_after_the_other() -> None:
    """Else the values of all of them would be in memory together, even of those that are refused."""
    reader = BodyReader(_LIMITS)
    finished: list[str] = []

    async def read(name: str, body: bytes) -> None:
        await reader.read_object(_request(body))
        finished.append(name)

    long = asyncio.create_task(read("long", _large(b"1" + b" " * 4 * _MEGABYTE)))
    while not reader._bodies._queue._holders:  # noqa: ASYNC110 - it has no event to wait for
        await asyncio.sleep(0)
    await asyncio.gather(long, read("short", _large(b"1")))
    assert finished == ["long", "short"]


async def test_a_small_body_does_not_wait_for_large_ones_of_another_caller() -> None:
    reader = BodyReader(_LIMITS)
    finished: list[str] = []

    async def read(caller: str, body: bytes) -> None:
        await reader.read_object(_request(body), caller=caller)
        finished.append(caller)

    long = _large(b"1" + b" " * 8 * _MEGABYTE)
    heavy = [asyncio.ensure_future(read("heavy", long)) for _ in range(3)]
    await asyncio.sleep(0)
    await read("light", _large(b"1"))
    assert finished == ["light"]
    await asyncio.gather(*heavy)
