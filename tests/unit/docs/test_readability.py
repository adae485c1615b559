"""Pages are for readers in a hurry: sentences are short, and a page opens with what its reader can do."""

from pathlib import Path

import pytest

from docs.readability import MOST_WORDS, OPENING, ROOT, opening, pages, read, words

# README says what the service is, a decision opens with its context.
_OPENS_OTHERWISE = [ROOT / "README.md", *sorted((ROOT / "docs" / "adr").glob("0*.md"))]
_MARKDOWN = """---
license: x
---
# A title is not a sentence

One sentence of
two lines. Another, with `code of. Three words` and [a link](https://example.org/a.b.c)! <!-- no. words. -->

    code. Is. Left. Out.

```text
So. Is. This.
```

- An item.
- Another item
  of two lines.

| head | of table |
|---|---|
| A cell. | Two sentences. Are two. |
"""


def test_sentences_are_those_of_prose_and_of_cells() -> None:
    page = read(_MARKDOWN)
    assert page.prose == [
        "One sentence of two lines.",
        "Another, with Code and a link!",
        "An item.",
        "Another item of two lines.",
    ]
    assert page.cells == ["head", "of table", "A cell.", "Two sentences.", "Are two."]
    assert page.mean_words == (5 + 6 + 2 + 5) / 4
    assert opening(_MARKDOWN) == "One sentence of two lines. Another, with Code and a link!"


@pytest.mark.parametrize(("count", "is_long"), [(1, False), (MOST_WORDS, False), (MOST_WORDS + 1, True)])
def test_a_sentence_of_more_words_is_too_long(count: int, is_long: bool) -> None:
    sentence = " ".join(["word"] * count) + "."
    assert words(sentence) == count
    assert bool(read(sentence).too_long) == is_long
    assert bool(read(f"| {sentence} |").too_long) == is_long


def _id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", pages(), ids=_id)
def test_no_sentence_of_a_page_is_too_long(page: Path) -> None:
    assert read(page.read_text(encoding="utf-8")).too_long == []


@pytest.mark.parametrize("page", [page for page in pages() if page not in _OPENS_OTHERWISE], ids=_id)
def test_a_page_opens_with_what_its_reader_can_do(page: Path) -> None:
    assert OPENING.match(opening(page.read_text(encoding="utf-8")))
