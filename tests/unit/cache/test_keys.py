"""Keys tell every pair from every other one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.cache.keys import AT_A_TIME, Steps, list_key, pair_key, pair_keys
from rerankd.domain import Document

_TEXT = st.text(st.characters(), max_size=20)  # lone surrogates too
_PARTS = st.tuples(_TEXT, _TEXT, _TEXT)


def _key(fingerprint: str, query: str, document: str) -> bytes:
    return pair_keys(fingerprint, query, [document])[0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("f", "ab", "c"), ("f", "a", "bc")),
        (("fa", "b", "c"), ("f", "ab", "c")),
        (("f", "", "ab"), ("f", "ab", "")),
        (("f", "q", "d"), ("f", "d", "q")),
        (("f", "q", "d"), ("f", "q", "D")),
        (("f", "q", "d"), ("f", "q", "d ")),
        (("f", "q", "d\0"), ("f", "q", "d")),
        (("f", "q", "é"), ("f", "q", "e\u0301")),
        (("f", "q", "\ud800"), ("f", "q", "\ud801")),
        (("f", "q", "\ud800"), ("f", "q", "?")),
        (("model-1", "q", "d"), ("model-2", "q", "d")),
    ],
)
def test_different_parts_give_different_keys(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    assert _key(*one) != _key(*other)


@given(one=_PARTS, other=_PARTS)
def test_keys_are_equal_where_all_parts_are(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    assert (_key(*one) == _key(*other)) == (one == other)


@given(parts=st.tuples(_TEXT, _TEXT), cut=st.integers(0, 40))
def test_where_one_part_ends_and_the_next_begins_is_part_of_the_key(parts: tuple[str, str], cut: int) -> None:
    query, document = parts
    whole = query + document
    cut = min(cut, len(whole))
    moved = whole[:cut], whole[cut:]
    assert (_key("f", *moved) == _key("f", *parts)) == (moved == parts)


@given(query=_TEXT, documents=st.lists(_TEXT, max_size=10))
def test_a_key_does_not_depend_on_the_other_documents(query: str, documents: list[str]) -> None:
    assert pair_keys("f", query, documents) == [_key("f", query, document) for document in documents]


def test_a_key_is_short_and_holds_no_text() -> None:
    key = _key("fingerprint", "query", "document" * 1000)
    assert len(key) == 16
    assert b"document" not in key


def _taken(steps: Steps[bytes]) -> tuple[bytes, int]:
    """What comes of all steps, and how many there were."""
    count = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, count
        count += 1


@pytest.mark.parametrize(
    "document",
    ["", "a", "x" * (AT_A_TIME + 1), "漢" * (AT_A_TIME + 1), "a" * AT_A_TIME + "\ud800" + "é" * AT_A_TIME],
)
def test_a_key_that_is_made_in_steps_is_the_same(document: str) -> None:
    key, steps = _taken(pair_key("f", "query", document))
    assert key == _key("f", "query", document)
    assert steps >= len(document) // AT_A_TIME


def test_the_key_of_a_long_list_is_made_in_steps() -> None:
    documents = ["x" * 1000] * 3000
    key, steps = _taken(list_key("f", "query", documents))
    assert steps >= 5
    assert key != _taken(list_key("f", "query", documents[:-1]))[0]


def test_one_key_and_many_agree_about_an_image() -> None:
    document = Document("text", image=b"image")
    assert _taken(pair_key("model", "query", document))[0] == pair_keys("model", "query", [document])[0]
    assert pair_keys("model", "query", [document]) != pair_keys("model", "query", ["text"])
