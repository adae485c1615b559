"""A large body is read in parts, and means what it would mean if it were read at once."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from app.api.bodies import BodyReader
from app.errors import InvalidRequest, RequestTooLarge

_MEGABYTE = 1 << 20

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
        return next(coming)

    return Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)


def _large(content: bytes, *, filling: bytes = b"a, [b] {c} ") -> bytes:
    """An object with `content` under a key of its own, and so much beside it that it is read in parts."""
    filled = filling * (_MEGABYTE // len(filling) + 1)
    return b'{"before": "' + filled + b'", "asked": ' + content + b', "after": "' + filled + b'"}'


@settings(deadline=None, max_examples=50)  # each reads two megabytes
@given(value=_values, escaped=st.booleans(), chunk_bytes=st.integers(50_000, 90_000))
async def test_what_is_read_in_parts_is_what_is_read_at_once(value: Any, escaped: bool, chunk_bytes: int) -> None:
    body = _large(json.dumps(value, ensure_ascii=escaped).encode("utf-8", "surrogatepass"))
    try:
        expected = orjson.loads(body)
    except orjson.JSONDecodeError:
        with pytest.raises(InvalidRequest, match="no valid JSON"):
            await BodyReader().read_object(_request(body, chunk_bytes=chunk_bytes))
    else:
        read = await BodyReader().read_object(_request(body, chunk_bytes=chunk_bytes))
        assert read == expected
        assert json.dumps(read) == json.dumps(expected), "1 and 1.0 are equal, and so are -0.0 and 0"


_escapes = st.lists(st.sampled_from([b"\\\\", b"\\ud83d", b"\\udc00", b"\\u0041", b"ud83d", b"x", b" "]), max_size=8)


@settings(deadline=None)
@given(escapes=_escapes, filling=st.sampled_from([b"a ", b"a", b"\\\\"]), chunk_bytes=st.integers(32_760, 32_776))
async def test_no_escape_is_read_otherwise_in_parts(escapes: list[bytes], filling: bytes, chunk_bytes: int) -> None:
    body = _large(b'"' + b"".join(escapes) + b'"', filling=filling)
    try:
        expected = orjson.loads(body)
    except orjson.JSONDecodeError:
        with pytest.raises(InvalidRequest, match="surrogate"):
            await BodyReader().read_object(_request(body, chunk_bytes=chunk_bytes))
    else:
        assert await BodyReader().read_object(_request(body, chunk_bytes=chunk_bytes)) == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b'"\\ud800"', "no low surrogate", id="half a surrogate pair"),
        pytest.param(b'"\\ud800\\ud800\\udc00 \\udc00"', "surrogate", id="halves that even out"),
        pytest.param(b'"\\\\ud83d\\udc00"', "surrogate", id="half a pair behind an escaped backslash"),
        pytest.param(b'"\\ud83d\\\\\\udc00"', "surrogate", id="an escaped backslash between both halves"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, "depth limit", id="100,000 lists in lists"),
        pytest.param(b'"\xed\xa0\x80"', "UTF-8", id="a surrogate as bytes"),
        pytest.param(b"NaN", "unexpected character", id="no number"),
        pytest.param(b"1} {", "unexpected", id="a second body behind it"),
        pytest.param(b"1 /* 2 */", "unexpected", id="a comment"),
    ],
)
async def test_a_large_body_is_refused_in_the_same_words_as_a_small_one(content: bytes, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        await BodyReader().read_object(_request(_large(content)))
    with pytest.raises(InvalidRequest, match=said):
        await BodyReader().read_object(_request(b'{"asked": ' + content + b"}"))


@pytest.mark.parametrize(
    "content", [b"12345678901234567890123", b'"\\ud83c\\udfad"', b'"\\\\ud800"', b"[" * 500 + b"]" * 500]
)
async def test_what_only_one_parser_takes_is_read_in_parts_too(content: bytes) -> None:
    assert await BodyReader().read_object(_request(_large(content))) == orjson.loads(_large(content))


@pytest.mark.parametrize("filling", [b" ", b"x"])
@pytest.mark.parametrize("chunk_bytes", [1000, 4 * _MEGABYTE])
async def test_a_body_may_be_all_blanks_or_without_any(filling: bytes, chunk_bytes: int) -> None:
    body = _large(b"1", filling=filling)
    assert await BodyReader().read_object(_request(body, chunk_bytes=chunk_bytes)) == orjson.loads(body)


async def test_a_truncated_body_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no valid JSON"):
        await BodyReader().read_object(_request(_large(b"1")[:-1]))


@pytest.mark.parametrize("size", [10, 2 * _MEGABYTE])
async def test_what_is_no_object_is_refused(size: int) -> None:
    with pytest.raises(InvalidRequest, match="JSON list"):
        await BodyReader().read_object(_request(b"[" + b" " * size + b"]"))


async def test_a_body_of_too_many_values_is_refused_before_it_is_read() -> None:
    with pytest.raises(RequestTooLarge, match="at most 4000000 are taken"):
        await BodyReader().read_object(_request(b'{"documents": [' + b"1," * 4_100_000 + b" no JSON"))


async def test_others_have_their_turn_while_a_large_body_is_read() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await BodyReader().read_object(_request(_large(b"1"), chunk_bytes=8 * _MEGABYTE))
    counting.cancel()
    assert turns > 2 * _MEGABYTE // 65_536


async def test_large_bodies_are_read_one_after_the_other() -> None:
    """Else the values of all of them would be in memory together, even of those that are refused."""
    reader = BodyReader()
    finished: list[str] = []

    async def read(name: str, body: bytes) -> None:
        await reader.read_object(_request(body))
        finished.append(name)

    await asyncio.gather(read("long", _large(b"1" + b" " * 4 * _MEGABYTE)), read("short", _large(b"1")))
    assert finished == ["long", "short"]


async def test_a_small_body_does_not_wait_for_large_ones_of_another_caller() -> None:
    reader = BodyReader()
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
