"""Windows cover a document without gaps and end where words do; aggregation agrees with the plain formulas."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.domain import Aggregation
from rerankd.pipeline.passage_windows import aggregate, last_window, windows
from rerankd.scorers.base import Edges


def _edges(tokens: int, *, word: int = 1) -> Edges:
    """A document whose words have `word` tokens each, and whose tokens have two characters."""
    places = np.arange(tokens + 1)
    return Edges(places * 2, (places % word == 0) | (places == tokens))


@pytest.mark.parametrize(
    ("tokens", "length", "overlap", "limit", "expected"),
    [
        (0, 10, 0, 9, [(0, 0)]),
        (1, 10, 0, 9, [(0, 1)]),
        (10, 10, 5, 9, [(0, 10)]),
        (11, 10, 0, 9, [(0, 10), (1, 11)]),
        (20, 10, 0, 9, [(0, 10), (10, 20)]),
        (21, 10, 0, 9, [(0, 10), (10, 20), (11, 21)]),
        (20, 10, 5, 9, [(0, 10), (5, 15), (10, 20)]),
        (20, 10, 5, 2, [(0, 10), (5, 15)]),
        (20, 10, 5, 1, [(0, 10)]),
    ],
)
def test_windows(tokens: int, length: int, overlap: int, limit: int, expected: list[tuple[int, int]]) -> None:
    assert windows(_edges(tokens), tokens=tokens, length=length, overlap=overlap, limit=limit) == expected


@given(
    tokens=st.integers(0, 400),
    length=st.integers(12, 120),
    overlap_part=st.floats(0, 0.5),
    word=st.sampled_from([1, 2, 3, 5, 7, 40, 1000]),
)
def test_windows_cover_everything_and_none_is_too_long(
    tokens: int, length: int, overlap_part: float, word: int
) -> None:
    overlap = int(length * overlap_part)
    found = windows(_edges(tokens, word=word), tokens=tokens, length=length, overlap=overlap, limit=10_000)
    assert found[0][0] == 0
    assert found[-1][1] == tokens
    for start, end in found:
        assert 0 <= end - start <= length
    for (start, end), (next_start, next_end) in pairwise(found):
        assert start < next_start <= end <= next_end
    assert len(found) <= max(1, 1 + 4 * tokens // length)


@pytest.mark.parametrize("word", [2, 3])
def test_words_stay_whole_where_they_are_short(word: int) -> None:
    edges = _edges(400, word=word)
    for start, end in windows(edges, tokens=400, length=50, overlap=10, limit=99):
        assert edges.words[start]
        assert edges.words[end]


@pytest.mark.parametrize(("tokens", "expected"), [(0, (0, 0)), (9, (0, 9)), (10, (0, 10)), (35, (25, 35))])
def test_the_last_window(tokens: int, expected: tuple[int, int]) -> None:
    assert last_window(_edges(tokens), length=10) == expected


def test_the_last_window_begins_with_a_whole_word() -> None:
    assert last_window(_edges(101, word=4), length=50) == (52, 101)


_SCORES = st.floats(-10, 10, width=32)


@given(documents=st.lists(st.lists(_SCORES, min_size=1, max_size=9), min_size=1, max_size=6), top_k=st.integers(1, 4))
def test_aggregation(documents: list[list[float]], top_k: int) -> None:
    values = np.array([score for scores in documents for score in scores], dtype=np.float32)
    counts = np.array([len(scores) for scores in documents])
    expected = {
        Aggregation.MAX: [max(scores) for scores in documents],
        Aggregation.FIRST: [scores[0] for scores in documents],
        Aggregation.MEAN: [float(np.mean(scores)) for scores in documents],
        Aggregation.TOP_K_MEAN: [float(np.mean(sorted(scores)[-top_k:])) for scores in documents],
    }
    for aggregation, wanted in expected.items():
        found = aggregate(values, counts, aggregation=aggregation, top_k=top_k)
        np.testing.assert_allclose(found.values, wanted, rtol=1e-5, atol=1e-6)
        firsts = np.cumsum(counts) - counts
        best = [0 if aggregation is Aggregation.FIRST else int(np.argmax(scores)) for scores in documents]
        assert (found.best - firsts).tolist() == best


@pytest.mark.parametrize("aggregation", [Aggregation.MAX, Aggregation.MEAN, Aggregation.TOP_K_MEAN])
def test_a_score_that_is_no_number_stays_one_and_reaches_no_other_document(aggregation: Aggregation) -> None:
    values = np.array([1, np.nan, 3, 2], dtype=np.float32)
    found = aggregate(values, np.array([1, 2, 1]), aggregation=aggregation, top_k=2)
    assert np.isnan(found.values).tolist() == [False, True, False]
