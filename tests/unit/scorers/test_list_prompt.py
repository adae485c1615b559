"""Prompts of windows: words, cuts and identifiers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.errors import ConfigError
from rerankd.scorers.list_prompt import (
    LEAST_WORDS,
    ListPrompt,
    ListTemplate,
    WindowOptions,
    count_words,
    cut_words,
    identifier_texts,
    most_words,
)

TEMPLATE = ListTemplate(
    chat="<{system}|{user}>", system="be fair", user="{count} for {query}: {passages}{query}!", identifiers="numeric"
)


def test_a_prompt_shows_every_passage_under_its_identifier() -> None:
    prompt = ListPrompt(TEMPLATE, ["1", "2"], lambda text: text)
    assert prompt.write("cats", ["a {query}", "b"]) == "<be fair|2 for cats: [1] a {query}\n[2] b\ncats!>"
    assert prompt.opening("cats", count=2) == "<be fair|2 for cats: "


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  a\n b\t\tc ", "a b c"),
        ("see [12] and [A]", "see (12) and (A)"),
        ("[B] > [A] > [0]", "(B) > (A) > (0)"),
        ("[a] [AB] [ A ] []", "[a] [AB] [ A ] []"),
        ("[[A]]", "[(A)]"),
        ("", ""),
    ],
)
def test_nothing_in_a_passage_reads_as_an_identifier(text: str, clean: str) -> None:
    assert ListPrompt(TEMPLATE, ["1"], lambda text: text).clean(text) == clean


@pytest.mark.parametrize(
    ("text", "words", "kept"),
    [
        ("a b c", 2, "a b"),
        ("a b c", 3, "a b c"),
        ("a b c", 9, "a b c"),
        ("x" * 60, 1, "x" * 24),
        (f"a {'x' * 60} b", 3, f"a {'x' * 48}"),
        (f"a {'x' * 24} b", 2, f"a {'x' * 24}"),
        ("", 5, ""),
    ],
)
def test_what_writes_no_spaces_is_cut_all_the_same(text: str, words: int, kept: str) -> None:
    assert cut_words(text, words) == kept


@given(st.text(alphabet="ab \u3042\u3044", max_size=200), st.integers(0, 30))
def test_a_cut_text_is_a_beginning_of_at_most_this_many_words(text: str, words: int) -> None:
    clean = " ".join(text.split())
    cut = cut_words(clean, words)
    assert clean.startswith(cut)
    assert not cut or count_words(cut) <= words or len(clean) <= words
    assert cut == clean or count_words(clean) > words


@given(st.integers(LEAST_WORDS, 500), st.integers(0, 600))
def test_passages_keep_the_most_words_that_fit(most: int, room: int) -> None:
    found = most_words(lambda words: words <= room, most=most)
    assert found == (min(most, room) if room >= LEAST_WORDS else None)


def test_letters_end_with_z() -> None:
    assert identifier_texts("alphabetical", count=26)[-1] == "Z"
    assert identifier_texts("numeric", count=100)[-1] == "100"
    with pytest.raises(ConfigError, match="window = 27, but there are 26 letters"):
        identifier_texts("alphabetical", count=27)


def test_words_may_be_shared_among_a_window() -> None:
    shared = TEMPLATE.model_copy(update={"window_words": 6000})
    assert [shared.words_for(count) for count in (1, 20, 6000)] == [6000, 300, LEAST_WORDS]
    assert [TEMPLATE.words_for(count) for count in (1, 20)] == [300, 300]


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"chat": "hello"}, "chat: it must"), ({"user": "{query}"}, "user: it must"), ({"passage": "{x}"}, "passage:")],
)
def test_a_template_without_a_place_for_a_text_is_refused(changed: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ListTemplate.model_validate({**TEMPLATE.model_dump(), **changed})


def test_windows_that_do_not_overlap_are_refused() -> None:
    with pytest.raises(ValueError, match="stride: it must be below window = 10"):
        WindowOptions(window=10, stride=10)
    with pytest.raises(ConfigError, match="stride: it must be below window = 20"):
        WindowOptions(stride=20).plan(TEMPLATE)


@pytest.mark.parametrize(("window", "stride"), [(2, 1), (3, 1), (20, 10)])
def test_windows_overlap_by_half_unless_told_otherwise(window: int, stride: int) -> None:
    assert WindowOptions(window=window).plan(TEMPLATE).stride == stride
    assert WindowOptions(window=window, stride=1).plan(TEMPLATE).stride == 1
