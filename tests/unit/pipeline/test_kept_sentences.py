"""Which sentences are kept, and in which blocks a document is read."""

import numpy as np
import pytest

from rerankd.pipeline.kept_sentences import are_kept, blocks_of, joined_spans
from rerankd.scorers.base import Edges

_TEXT = "One two three four. Five six seven eight.\n\nNine ten eleven twelve. End of it all"


def _edges(text: str) -> Edges:
    """Words are tokens; white space belongs to the word behind it."""
    ends = [index for index in range(1, len(text)) if text[index].isspace() and not text[index - 1].isspace()]
    characters = np.array([0, *ends, len(text)], dtype=np.int64)
    return Edges(characters, np.ones(len(characters), dtype=np.bool_))


@pytest.mark.parametrize(
    ("length", "limit", "read"),
    [
        (16, 9, [_TEXT]),
        (12, 9, ["One two three four. Five six seven eight.\n\nNine ten eleven twelve.", "End of it all"]),
        (11, 9, ["One two three four. Five six seven eight.", "Nine ten eleven twelve. End of it all"]),
        (4, 2, ["One two three four.", "Five six seven eight."]),
        (
            3,
            9,
            [
                "One two three",
                " four.",
                "Five six seven",
                " eight.",
                "Nine ten eleven",
                " twelve.",
                "End of it",
                " all",
            ],
        ),
    ],
)
def test_a_block_has_as_many_whole_sentences_as_fit(length: int, limit: int, read: list[str]) -> None:
    blocks = blocks_of(_TEXT, _edges(_TEXT), length=length, limit=limit)
    assert [_TEXT[block.start : block.end] for block in blocks] == read
    spans = [span for block in blocks for span in block.sentences]
    assert spans == sorted(set(spans))
    for block in blocks:
        own = _edges(_TEXT[block.start : block.end])
        bounds = block.token_bounds(own)
        assert bounds[0] == 0
        assert bounds[-1] == own.tokens
        words = [len(_TEXT[start:end].split()) for start, end in block.sentences]
        assert np.diff(bounds).tolist() == words


def test_white_space_is_no_sentence() -> None:
    assert blocks_of(" \n ", _edges(" \n "), length=4, limit=4) == []


@pytest.mark.parametrize(
    ("threshold", "kept"),
    [(0, [True, True, True]), (0.4, [True, False, True]), (0.5, [False, False, True]), (1, [False, False, False])],
)
def test_a_sentence_is_kept_by_the_share_of_its_kept_tokens(threshold: float, kept: list[bool]) -> None:
    log_odds = np.array([9, -9, -9, -8, 3, 2, 9], dtype=np.float32)
    assert are_kept(log_odds, np.array([0, 2, 4, 7]), threshold=threshold).tolist() == kept


def test_what_was_not_read_is_not_kept() -> None:
    assert are_kept(np.array([9, 9], dtype=np.float32), np.array([0, 2, 5]), threshold=0.1).tolist() == [True, False]


@pytest.mark.parametrize(
    ("kept", "spans"),
    [
        ([True, True, True], ((0, 9),)),
        ([True, False, True], ((0, 2), (6, 9))),
        ([False, True, True], ((3, 9),)),
        ([False, False, False], ()),
    ],
)
def test_neighbours_are_one_span(kept: list[bool], spans: tuple[tuple[int, int], ...]) -> None:
    assert joined_spans([(0, 2), (3, 5), (6, 9)], kept) == spans
