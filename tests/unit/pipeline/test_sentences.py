"""Sentences: where they begin and end, and what becomes of long ones and of many."""

import re

import numpy as np
import pytest

from rerankd.pipeline.sentences import sentence_windows
from rerankd.scorers.base import Edges


def _edges(text: str) -> Edges:
    """Every word is a token."""
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    characters = np.array([0, *ends[:-1], len(text)] if ends else [0], dtype=np.int64)
    return Edges(characters, np.ones(len(characters), dtype=np.bool_))


def _found(text: str, *, length: int = 100, limit: int = 32) -> list[str]:
    windows = sentence_windows(text, _edges(text), length=length, limit=limit)
    return [text[start:end] for start, end in windows]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n ", []),
        ("no mark at all", ["no mark at all"]),
        ("The first one. The second one!  And a third?", ["The first one.", "The second one!", "And a third?"]),
        ("He said 'go away.' Then he left.", ["He said 'go away.'", "Then he left."]),
        ("Costs 3.50 euros, e.g. for bread. Dr. Jones paid.", ["Costs 3.50 euros, e.g. for bread.", "Dr. Jones paid."]),
        ("A heading here\nand its text below", ["A heading here", "and its text below"]),
        ("东京是日本的首都，人口很多。巴黎是法国的首都。", ["东京是日本的首都，人口很多。", "巴黎是法国的首都。"]),  # noqa: RUF001
        ("Ünï 🎻 code point. After the emoji.", ["Ünï 🎻 code point.", "After the emoji."]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert _found(text) == expected


def test_a_long_sentence_is_cut_where_words_end() -> None:
    text = " ".join(f"word{number}" for number in range(10))
    windows = sentence_windows(text, _edges(text), length=4, limit=32)
    assert [len(text[start:end].split()) for start, end in windows] == [4, 4, 2]
    assert "".join(text[start:end] for start, end in windows) == text


def test_a_word_of_many_tokens_is_cut_inside() -> None:
    text = "x" * 10
    edges = Edges(np.arange(11), np.array([True, *[False] * 9, True]))
    assert sentence_windows(text, edges, length=4, limit=32) == [(0, 4), (4, 8), (8, 10)]


@pytest.mark.parametrize(("sentences", "limit", "windows"), [(7, 7, 7), (8, 7, 4), (100, 7, 7), (3, 1, 1), (1, 1, 1)])
def test_many_sentences_share_windows(sentences: int, limit: int, windows: int) -> None:
    text = " ".join(f"Sentence number {number}." for number in range(sentences))
    found = _found(text, length=1000, limit=limit)
    assert len(found) == windows
    assert " ".join(found) == text


def test_what_does_not_fit_into_the_windows_is_left_out() -> None:
    text = " ".join(f"Sentence number {number}." for number in range(100))
    found = _found(text, length=6, limit=5)
    assert len(found) == 5
    assert text.startswith(" ".join(found))
    assert all(len(window.split()) == 6 for window in found)


def test_nothing_is_looked_at_beyond_the_edges() -> None:
    text = "The first one. The second one. The third one."
    assert [text[a:b] for a, b in sentence_windows(text, _edges(text).first(6), length=9, limit=9)] == [
        "The first one.",
        "The second one.",
    ]


def test_time_grows_with_the_text() -> None:
    text = "a. " * 200_000 + "." * 200_000 + " " * 200_000 + '."' * 100_000
    assert _found(text, length=10**6, limit=32)


@pytest.mark.parametrize("blanks", ["\n", "\n    ", "\r\n", ".\n "])
def test_white_space_is_looked_at_once(blanks: str) -> None:
    """Otherwise this takes minutes, in which nothing else runs."""
    between = blanks * 400_000
    text = f"The first sentence.{between}The last sentence."
    edges = Edges(np.array([0, 19 + len(between), len(text)], dtype=np.int64), np.ones(3, dtype=np.bool_))
    windows = sentence_windows(text, edges, length=100, limit=32)
    assert [windows[0][0], windows[-1][1]] == [0, len(text)]
    if "." not in blanks:
        assert windows == [(0, 19), (len(text) - 18, len(text))]
