"""What shows something, and what does not."""

import sys
import unicodedata

import pytest

from rerankd.scorers.visible import LOOKED_AT, is_plain, is_visible, visible_characters

UNSEEN = ("", " ", "\n\t\r", "\u00a0\u3000\u2028", "\u200b", "\ufeff", "\u00ad", "\x00\x1b\x7f", "\u2060\u180e")
FILLERS = ("\u3164", "\u115f\u1160", "\uffa0", "\u2800", "\ufe0f", "\U000e0100", "\u034f")


@pytest.mark.parametrize("text", [*UNSEEN, *FILLERS, "\u200b" * 5000, "\ue000", "\U000e0041"])
def test_what_nobody_sees(text: str) -> None:
    assert not is_plain(text)
    assert not is_visible(text)


@pytest.mark.parametrize(
    "text", ["a", "0", "é", "\u200bParis", "京", ".", "?!", "🎻", "\ufffd", "_", "\u0301", " " * 5000 + "x", "ㅤ가"]
)
def test_what_shows_something(text: str) -> None:
    assert is_visible(text)


@pytest.mark.parametrize("text", ["Paris", "1984", "  Wien", "'quoted'", "京都", "\ufeffBOM", "[SEP]", "ـعربي"])
def test_most_texts_need_a_short_look(text: str) -> None:
    assert is_plain(text)


def test_what_lies_beyond_what_is_looked_at_is_not_seen() -> None:
    assert is_visible(" " * (LOOKED_AT - 1) + "x")
    assert not is_visible(" " * LOOKED_AT + "x")


def test_a_plain_text_always_shows_something() -> None:
    unseen = [
        chr(code) for code in range(sys.maxunicode + 1) if is_plain(chr(code)) and not visible_characters(chr(code))
    ]
    assert unseen == []


def test_every_category_of_controls_and_separators_is_unseen() -> None:
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code))[0] in "CZ":
            assert not visible_characters(chr(code)), hex(code)
