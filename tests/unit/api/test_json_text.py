"""A text that is read in pieces means what it would mean if it were read at once, and is counted before it is built."""

import json
import tracemalloc
from collections import deque
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerankd.api.parsing.json_outline import Outline, outline
from rerankd.api.parsing.json_text import Bounds, read, read_in_pieces
from rerankd.errors import InvalidRequest, RequestTooLarge

_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=6),
    max_leaves=30,
)
_bounds = st.builds(
    Bounds,
    fields=st.just(1000),
    text_bytes=st.just(10_000),
    piece_bytes=st.integers(1, 60),
    piece_marks=st.integers(1, 10),
)
_blanks = st.sampled_from(["", " ", "\n \t\r"])


def _outlined(text: bytes, *, window_bytes: int = 7, max_values: int = 10_000, max_levels: int = 100) -> Outline:
    steps = outline(text, max_values=max_values, max_levels=max_levels, window_bytes=window_bytes)
    try:
        while True:
            next(steps)
    except StopIteration as end:
        found: Outline = end.value
        return found


def _in_pieces(text: bytes, bounds: Bounds, *, window_bytes: int = 7) -> Any:
    steps = read_in_pieces(text, _outlined(text, window_bytes=window_bytes), bounds)
    try:
        while True:
            next(steps)
    except StopIteration as end:
        return end.value


@given(value=_values, escaped=st.booleans(), blanks=_blanks, bounds=_bounds, window_bytes=st.integers(1, 40))
def test_pieces_mean_what_the_whole_means(
    value: Any, escaped: bool, blanks: str, bounds: Bounds, window_bytes: int
) -> None:
    separators = (f"{blanks},{blanks}", f"{blanks}:{blanks}")
    written = json.dumps(value, ensure_ascii=escaped, separators=separators)
    text = (blanks + written + blanks).encode("utf-8", "surrogatepass")
    try:
        expected = orjson.loads(text)
    except orjson.JSONDecodeError:
        with pytest.raises(InvalidRequest):
            _in_pieces(text, bounds, window_bytes=window_bytes)
    else:
        # 1 and 1.0 are equal, and so are -0.0 and 0
        assert json.dumps(_in_pieces(text, bounds, window_bytes=window_bytes)) == json.dumps(expected)


_tokens = st.lists(
    st.sampled_from(
        [b"[", b"]", b"{", b"}", b",", b":", b'"', b'"a"', b'"a":', b"1", b"\\", b'\\"', b"[]", b"{}", b" "]
    ),
    max_size=25,
)


@given(tokens=_tokens, outer=st.sampled_from([(b"", b""), (b"[", b"]"), (b'{"a":', b"}")]), bounds=_bounds)
def test_what_is_no_json_is_none_in_pieces(tokens: list[bytes], outer: tuple[bytes, bytes], bounds: Bounds) -> None:
    text = outer[0] + b"".join(tokens) + outer[1]
    try:
        expected = orjson.loads(text)
    except orjson.JSONDecodeError:
        with pytest.raises(InvalidRequest, match=r"not valid JSON|larger than a double"):
            _in_pieces(text, bounds)
    else:
        assert json.dumps(_in_pieces(text, bounds)) == json.dumps(expected)


_damage = st.sampled_from(
    [
        b"",
        b" ",
        b"0",
        b"5",
        b"-",
        b"1e",
        b"0.5",
        b"tru",
        b"null",
        b",",
        b":",
        b'"',
        b"\\",
        b"[",
        b"]",
        b"{",
        b"}",
        b'"a":',
    ]
)
_mutations = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 2), _damage), max_size=3)


@settings(max_examples=400, deadline=None)
@given(value=_values, blanks=_blanks, mutations=_mutations, bounds=_bounds)
def test_damaged_json_gets_the_verdict_that_it_would_get_at_once(
    value: Any, blanks: str, mutations: list[tuple[int, int, bytes]], bounds: Bounds
) -> None:
    separators = (f"{blanks},{blanks}", f"{blanks}:{blanks}")
    text = json.dumps({"a": value, "b": [value, [1, 2]]}, separators=separators).encode()
    for place, cut, put in mutations:
        start = place % (len(text) + 1)
        text = text[:start] + put + text[start + cut :]
    try:
        expected = orjson.loads(text)
    except orjson.JSONDecodeError:
        with pytest.raises(InvalidRequest, match=r"not valid JSON|larger than a double"):
            _in_pieces(text, bounds)
    else:
        assert json.dumps(_in_pieces(text, bounds)) == json.dumps(expected)


@pytest.mark.parametrize("before", [b"5", b"-", b"1e", b"0.5", b"tru", b'"x"', b": ", b'"x":'])
@pytest.mark.parametrize("container", [b'["aaaaaaaaaaaa", "bbbbbbbbbbbb"]', b'{"aaaaaaaaaaaa": "bbbbbbbbbbbb"}'])
@pytest.mark.parametrize("outer", [(b'{"k":', b"}"), (b"[", b"]"), (b"{", b"}")])
def test_nothing_stands_between_a_key_and_its_list(before: bytes, container: bytes, outer: tuple[bytes, bytes]) -> None:
    bounds = Bounds(fields=10, text_bytes=1000, piece_bytes=8, piece_marks=100)
    text = outer[0] + before + container + outer[1]
    if outer == (b"{", b"}") and before == b'"x":':
        assert _in_pieces(text, bounds) == orjson.loads(text)
    else:
        with pytest.raises(InvalidRequest, match="not valid JSON"):
            _in_pieces(text, bounds)


@pytest.mark.parametrize(
    "text",
    [
        b'{"a": 1, "b": 2, "a": 3}',
        b'{"a": [[[1, 2], [3]], []], "a": {"b": {"c": [1, 2, 3]}}, "b": []}',
        b'{"a": {"x": 1, "y": {"z": [1, 2, 3, 4, 5, 6]}}, "b": 0}',
        b'[[], [[]], [[], []], {}, {"": {}}, "", 0]',
    ],
)
@pytest.mark.parametrize("piece_marks", [1, 2, 3, 100])
def test_doubled_keys_and_nested_parts_are_read_as_at_once(text: bytes, piece_marks: int) -> None:
    bounds = Bounds(fields=10, text_bytes=1000, piece_bytes=8, piece_marks=piece_marks)
    assert json.dumps(_in_pieces(text, bounds)) == json.dumps(orjson.loads(text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"query": "q", "documents": ["é"]}'.encode("latin-1"), r"byte 30 is 0xe9, after .*documents.*; send UTF-8"),
        ('{"query": "q", "documents": ["ж"]}'.encode("cp1251"), "not UTF-8; send UTF-8"),
        ('{"query": "q"}'.encode("utf-16"), "UTF-16 or UTF-32; send UTF-8"),
        ('{"query": "q"}'.encode("utf-16-le"), "UTF-16 or UTF-32; send UTF-8"),
        ('{"query": "q"}'.encode("utf-16-be"), "UTF-16 or UTF-32; send UTF-8"),
        ('{"query": "q"}'.encode("utf-32"), "UTF-16 or UTF-32; send UTF-8"),
        (b"\x1f\x8b\x08\x00", "compressed"),
        (b" \n", "empty"),
        (b'{"query": "\xed\xa0\x80"}', "byte 11 is 0xed"),
        (
            b'{"query": 1e400}',
            "the body has a number at byte 10 that is larger than a double can be; send it as a string",
        ),
        ('{"é": tru}'.encode(), "expected 'true' at byte 7, after"),
    ],
)
def test_a_refusal_says_what_the_sender_must_change_and_where(text: bytes, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as refusal:
        read(text)
    assert len(refusal.value.message) < 300


def test_a_place_in_a_piece_is_told_as_that_in_the_body() -> None:
    text = b'{"before": "' + b"x" * 50 + b'", "documents": ["a", "b", "\xe9"]}'
    at = text.index(b"\xe9")
    bounds = Bounds(fields=10, text_bytes=1000, piece_bytes=20, piece_marks=4)
    with pytest.raises(InvalidRequest, match=f"byte {at} is 0xe9"):
        _in_pieces(text, bounds)
    with pytest.raises(InvalidRequest, match=r"expected 'true' at byte 2[0-9]"):
        _in_pieces(b'{"before": [1, 2, 3, tru]}', bounds)


@pytest.mark.parametrize(("text", "values"), [(b"[1,2,3]", 3), (b"[[],[]]", 4), (b'{"a":{},"b":[]}', 10), (b'","', 0)])
def test_values_are_counted_outside_of_strings_and_objects_count_four(text: bytes, values: int) -> None:
    _outlined(text, max_values=values)
    if values:
        with pytest.raises(RequestTooLarge, match=f"more than {values - 1} JSON values"):
            _outlined(text, max_values=values - 1)


def test_levels_are_bounded() -> None:
    _outlined(b"[" * 9 + b"]" * 9, max_levels=9)
    with pytest.raises(InvalidRequest, match="more than 8 levels deep; flatten it"):
        _outlined(b"[" * 9 + b"]" * 9, max_levels=8)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"a": "' + b"x" * 50 + b'"}', "the text at byte 1 of the body has 57 bytes; at most 50 are allowed"),
        (b'{"a": [1, 2' + b" " * 50 + b"]}", "at most 50"),
        (b" " * 60 + b"{}", "at most 50"),
        (b"{" + b",".join(b'"%d":1' % number for number in range(11)) + b"}", "has 11 fields; at most 10 are allowed"),
    ],
)
def test_a_long_text_and_many_fields_are_refused_before_they_are_built(text: bytes, said: str) -> None:
    bounds = Bounds(fields=10, text_bytes=50, piece_bytes=20, piece_marks=4)
    with pytest.raises(RequestTooLarge, match=said):
        _in_pieces(text, bounds)


@pytest.mark.parametrize("piece_bytes", [1, 2, 5, 11, 12, 13, 64])
@pytest.mark.parametrize(
    "text",
    [
        rb'"plain words \" and \\ escapes \\\" \/ \b\f\n\r\t"',
        r'"密 Ω é 😀 \u5bc6 \uD83D\uDE00 \ud83d\ude00\ud83d\ude00"'.encode(),
        b'"' + b"\\\\" * 50 + b'"',
        b'"' + rb"\ud83d\ude00" * 20 + b'"',
    ],
)
def test_a_string_in_pieces_is_the_same_string(text: bytes, piece_bytes: int) -> None:
    bounds = Bounds(fields=10, text_bytes=10_000, piece_bytes=piece_bytes)
    for body in (b'{"documents": [ %b ]}' % text, b'{"query": %b }' % text):
        assert _in_pieces(body, bounds) == orjson.loads(body)


@pytest.mark.parametrize("wrong", [rb"\ud83d", rb"\ud83d\u0041", rb"\udc00", rb"\x", rb"\u12x", b"\n", b"\xff", b'" "'])
@pytest.mark.parametrize("before", [b"", b"a" * 100])
def test_a_wrong_string_in_pieces_is_wrong(wrong: bytes, before: bytes) -> None:
    bounds = Bounds(fields=10, text_bytes=10_000, piece_bytes=16)
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        _in_pieces(b'{"query": "%b%b%b"}' % (before, wrong, b"a" * 100), bounds)


def test_a_long_string_is_read_in_many_steps() -> None:
    text = b'{"query": "' + b"a" * 100_000 + b'"}'
    steps = read_in_pieces(text, _outlined(text), Bounds(fields=10, text_bytes=len(text), piece_bytes=1000))
    assert sum(1 for _ in steps) >= 99


@pytest.mark.parametrize("around", [(b'{"query": "', b'"}'), (b'{"documents": ["', b'"]}')])
def test_a_long_text_is_copied_no_more_often_than_it_must_be(around: tuple[bytes, bytes]) -> None:
    """Replicas take as long as the parsing, in the same step."""
    text = around[0] + b"a" * (4 << 20) + around[1]
    found = _outlined(text, window_bytes=1 << 16)
    steps = read_in_pieces(text, found, Bounds(fields=10, text_bytes=len(text)))
    at_once, in_pieces = _peak(lambda: orjson.loads(text)), _peak(lambda: deque(steps, maxlen=0))
    assert in_pieces < at_once + len(text) // 2


def _peak(call: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
