"""Scores rearranged as arrays say the same as a list with one record for each document."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rerankd.domain import PassageScores, Scores, Timings


@dataclass(frozen=True)
class Record:
    """What is known of one document."""

    value: float = 0.0
    tokens: int = 0
    dropped: int = 0
    cached: bool = False
    blank: bool = False
    scored: bool = True
    placed_by: str | None = None
    passage: tuple[int, int, int] = (0, 0, 0)


_TRIED = settings(max_examples=60, deadline=None)

# Small whole numbers, which float32 and sums hold exactly.
_NUMBERS = st.integers(-50, 50)
_COUNTS = st.integers(0, 50)
_RECORDS = st.builds(
    Record,
    value=_NUMBERS.map(float),
    tokens=_COUNTS,
    dropped=_COUNTS,
    cached=st.booleans(),
    blank=st.booleans(),
    scored=st.booleans(),
    placed_by=st.sampled_from([None, "cheap", "dear"]),
    passage=st.tuples(_COUNTS, _COUNTS, _COUNTS),
)


def _records(scores: Scores) -> list[Record]:
    def column(array: np.ndarray | None, missing: object) -> list[object]:
        return [missing] * len(scores) if array is None else array.tolist()

    passages = scores.passages or PassageScores.none(len(scores))
    spans = zip(passages.starts.tolist(), passages.ends.tolist(), passages.counts.tolist(), strict=True)
    columns = zip(
        scores.values.tolist(),
        scores.tokens.tolist(),
        scores.dropped.tolist(),
        column(scores.cached, missing=False),
        column(scores.blank, missing=False),
        column(scores.scored, missing=True),
        column(scores.placed_by, missing=None),
        spans,
        strict=True,
    )
    return [Record(*row) for row in columns]


def _scores(records: Sequence[Record], *, sparse: bool) -> Scores:
    """`sparse` leaves out what says nothing, as stages do."""

    def column(values: Sequence[object], missing: object, kind: type) -> np.ndarray | None:
        return None if sparse and all(value == missing for value in values) else np.array(values, dtype=kind)

    starts, ends, counts = (
        np.array([record.passage[place] for record in records], dtype=np.int64) for place in range(3)
    )
    whole = sparse and not any(any(record.passage) for record in records)
    return Scores(
        values=np.array([record.value for record in records], dtype=np.float32),
        tokens=np.array([record.tokens for record in records], dtype=np.int64),
        dropped=np.array([record.dropped for record in records], dtype=np.int64),
        cached=column([record.cached for record in records], False, bool),
        blank=column([record.blank for record in records], False, bool),
        scored=column([record.scored for record in records], True, bool),
        placed_by=column([record.placed_by for record in records], None, object),
        passages=None if whole else PassageScores(starts=starts, ends=ends, counts=counts),
    )


def _written(*, least: int = 0) -> st.SearchStrategy[Scores]:
    lists = st.one_of(
        st.lists(_RECORDS, min_size=least, max_size=12),
        st.lists(st.builds(Record, value=_NUMBERS.map(float), tokens=_COUNTS), min_size=least, max_size=12),
    )
    return st.builds(
        lambda records, sparse, cost, unordered, cut: replace(
            _scores(records, sparse=sparse), timings=Timings(queue_s=cost), unordered=unordered, query_dropped=cut
        ),
        lists,
        st.booleans(),
        _COUNTS.map(float),
        _COUNTS,
        _COUNTS,
    )


def _spent(scores: Scores) -> tuple[float, int, int]:
    return scores.timings.queue_s, scores.unordered, scores.query_dropped


def _positions(data: st.DataObject, scores: Scores, *, unique: bool) -> np.ndarray:
    places = st.integers(0, len(scores) - 1) if len(scores) else st.nothing()
    return np.array(data.draw(st.lists(places, unique=unique)), dtype=np.int64)


@_TRIED
@given(_written(), st.data())
def test_take_gives_the_records_at_some_positions(scores: Scores, data: st.DataObject) -> None:
    positions = _positions(data, scores, unique=False)
    records = _records(scores)
    taken = scores.take(positions)
    assert _records(taken) == [records[position] for position in positions.tolist()]
    assert _spent(taken) == _spent(scores)


@_TRIED
@given(_written(), st.data())
def test_scatter_puts_records_among_blank_ones_that_are_below_all(scores: Scores, data: st.DataObject) -> None:
    documents = len(scores) + data.draw(st.integers(0, 5))
    positions = data.draw(st.permutations(range(documents)))[: len(scores)]
    below = min([0.0, *scores.values.tolist()]) - 1
    expected = [Record(value=below, blank=True)] * documents
    for position, record in zip(positions, _records(scores), strict=True):
        expected[position] = record
    wide = scores.scatter(np.array(positions, dtype=np.int64), documents=documents)
    assert _records(wide) == expected
    assert _spent(wide) == _spent(scores)


@_TRIED
@given(st.lists(_written(), min_size=1, max_size=4))
def test_concatenate_puts_records_end_to_end_and_adds_what_was_spent(parts: list[Scores]) -> None:
    whole = Scores.concatenate(parts)
    assert _records(whole) == [record for part in parts for record in _records(part)]
    seconds, unordered, cut = zip(*map(_spent, parts), strict=True)
    assert _spent(whole) == (sum(seconds), sum(unordered), max(cut))


@_TRIED
@given(_written(), st.data())
def test_a_document_that_is_read_again_has_the_new_value_and_both_costs(scores: Scores, data: st.DataObject) -> None:
    positions = _positions(data, scores, unique=True)
    count = len(positions)
    by = _scores(data.draw(st.lists(_RECORDS, min_size=count, max_size=count)), sparse=data.draw(st.booleans()))
    by = replace(by, timings=Timings(queue_s=1.0), unordered=2, query_dropped=3)
    expected = [replace(record, passage=(0, 0, 0)) for record in _records(scores)]
    for position, new in zip(positions.tolist(), _records(by), strict=True):
        old = expected[position]
        expected[position] = Record(
            value=new.value,
            tokens=old.tokens + new.tokens,
            dropped=max(old.dropped, new.dropped),
            cached=(old.cached or not old.tokens) and new.cached,
            blank=old.blank or new.blank,
            scored=new.scored,
            placed_by=new.placed_by,
        )
    before = _records(scores)
    again = scores.reread(positions, by)
    assert _records(again) == expected
    assert _records(scores) == before, "and the first scores are as they were"
    assert _spent(again) == (scores.timings.queue_s + 1.0, scores.unordered + 2, max(scores.query_dropped, 3))


@_TRIED
@given(_written(least=1), st.data())
def test_joined_parts_count_as_one_document(scores: Scores, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(scores) - 1)), max_size=len(scores) - 1)))
    edges = [0, *cuts, len(scores)]
    counts = np.diff(edges)
    groups = [_records(scores)[start:end] for start, end in pairwise(edges)]
    values = np.arange(len(groups), dtype=np.float32)
    joined = scores.joined(counts, values)
    assert _records(joined) == [
        Record(
            value=float(number),
            tokens=sum(part.tokens for part in parts),
            dropped=sum(part.dropped for part in parts),
            cached=all(part.cached for part in parts),
            blank=all(part.blank for part in parts),
            scored=all(part.scored for part in parts),
            placed_by=parts[0].placed_by,
        )
        for number, parts in enumerate(groups)
    ]
    assert _spent(joined) == _spent(scores)


def test_what_says_nothing_is_not_written_down() -> None:
    plain = _scores([Record(value=1.0), Record(value=2.0)], sparse=True)
    for scores in (
        plain.take(np.array([1])),
        Scores.concatenate([plain, plain]),
        plain.joined(np.array([2]), plain.values[:1]),
    ):
        assert (scores.cached, scores.blank, scores.scored, scores.placed_by, scores.passages) == (None,) * 5
