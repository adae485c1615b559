"""Scores come back from their entries as they were, and nothing else is taken for an entry."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerankd.domain import Remark, Scores
from rerankd.pipeline.score_codec import MarkedCodec, RemarkedCodec, ScoreCodec

_CODEC = ScoreCodec(b"own1")
_ROWS = st.lists(
    st.tuples(
        st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)
    ),
    max_size=20,
)


def _scores(rows: list[tuple[float, int, int]]) -> Scores:
    values, tokens, dropped = zip(*rows, strict=True) if rows else ((), (), ())
    return Scores(
        values=np.array(values, dtype=np.float32),
        tokens=np.array(tokens, dtype=np.int64),
        dropped=np.array(dropped, dtype=np.int64),
    )


def _rows(scores: Scores) -> list[tuple[float, int, int]]:
    return list(zip(scores.values.tolist(), scores.tokens.tolist(), scores.dropped.tolist(), strict=True))


@settings(deadline=None)
@given(_ROWS)
def test_entries_come_back_as_they_were(rows: list[tuple[float, int, int]]) -> None:
    scores, found = _CODEC.read(_CODEC.write(_scores(rows)))
    assert (_rows(scores), found.tolist()) == (rows, list(range(len(rows))))
    whole = _CODEC.read_whole(_CODEC.write_whole(_scores(rows)), documents=len(rows))
    assert whole is not None
    assert _rows(whole) == rows


@settings(deadline=None)
@given(
    _ROWS, st.lists(st.none() | st.binary(max_size=40) | st.binary(min_size=16, max_size=16), max_size=8), st.randoms()
)
def test_what_is_no_entry_is_passed_over(
    rows: list[tuple[float, int, int]], others: list[bytes | None], random: Random
) -> None:
    written = _CODEC.write(_scores(rows))
    stored = [*written, *others]
    random.shuffle(stored)
    own = [
        index for index, entry in enumerate(stored) if entry is not None and entry[:4] == b"own1" and entry in written
    ]
    scores, found = _CODEC.read(stored)
    assert found.tolist() == own
    assert sorted(_rows(scores)) == sorted(rows)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_is_neither_kept_nor_read(bad: float) -> None:
    scores = _scores([(1.0, 1, 0), (bad, 2, 0), (3.0, 3, 0)])
    assert _CODEC.keeps(scores).tolist() == [True, False, True]
    assert _CODEC.read(_CODEC.write(scores))[1].tolist() == [0, 2]
    assert _CODEC.read_whole(_CODEC.write_whole(scores), documents=3) is None


def test_a_document_that_was_not_scored_in_time_is_not_kept() -> None:
    scores = replace(_scores([(1.0, 1, 0), (2.0, 2, 0)]), scored=np.array([True, False]))
    assert _CODEC.keeps(scores).tolist() == [True, False]


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param(None, id="nothing"),
        pytest.param(b"", id="no mark"),
        pytest.param(b"own1", id="no documents"),
        pytest.param(_CODEC.write_whole(_scores([(1.0, 1, 0)])), id="fewer documents"),
        pytest.param(_CODEC.write_whole(_scores([(1.0, 1, 0)] * 3)), id="more documents"),
        pytest.param(ScoreCodec(b"own2").write_whole(_scores([(1.0, 1, 0)] * 2)), id="another version"),
        pytest.param(_CODEC.write_whole(_scores([(1.0, 1, 0)] * 2))[4:], id="a version without marks"),
    ],
)
def test_a_list_of_another_length_or_mark_is_no_entry(stored: bytes | None) -> None:
    assert _CODEC.read_whole(stored, documents=2) is None


def _marked(*lengths: int) -> Scores:
    marks = np.full(len(lengths), None, dtype=np.object_)
    for index, length in enumerate(lengths):
        marks[index] = np.linspace(-3, 3, length, dtype=np.float32)
    return replace(Scores.unread(len(lengths)), values=np.arange(len(lengths), dtype=np.float32), marks=marks)


def test_marks_of_tokens_come_back_as_they_were() -> None:
    codec = MarkedCodec(b"mk01")
    scores = _marked(4, 0, 4)
    assert codec.keeps(scores).all()
    read, found = codec.read([*codec.write(scores), None])
    assert found.tolist() == [0, 1, 2]
    assert read.values.tolist() == scores.values.tolist()
    assert read.marks is not None
    assert scores.marks is not None
    assert [one.tolist() for one in read.marks] == [one.tolist() for one in scores.marks]


def test_what_is_no_entry_with_marks_is_not_read() -> None:
    codec = MarkedCodec(b"mk01")
    whole, other = codec.write(_marked(2, 2))
    broken = [whole[:-1], whole[:3], b"", whole[:-4] + np.float32(np.nan).tobytes(), b"xxxx" + whole[4:], None, other]
    read, found = codec.read(broken)
    assert found.tolist() == [6]
    assert read.values.tolist() == [1]


def test_a_document_without_marks_is_not_kept() -> None:
    scores = _marked(2, 2)
    assert scores.marks is not None
    scores.marks[1] = None
    assert MarkedCodec(b"mk01").keeps(scores).tolist() == [True, False]


def test_a_remark_comes_back_with_its_score_and_a_broken_one_is_none() -> None:
    codec = RemarkedCodec(b"own3")
    remarks = np.full(3, None, dtype=np.object_)
    remarks[0], remarks[1] = Remark("größe", {"fits": 0.25}), Remark("", {})
    scores = replace(_scores([(0.5, 1, 0), (1.5, 2, 0), (2.5, 3, 1)]), remarks=remarks)
    entries = codec.write(scores)
    read, found = codec.read([*entries, None, entries[0][:-3], entries[0][:16] + b"[1,2]", entries[0][:9]])
    assert found.tolist() == [0, 1, 2, 4, 5]
    assert read.remarks is not None
    assert read.remarks.tolist() == [*remarks.tolist(), None, None]
    np.testing.assert_array_equal(read.values, [0.5, 1.5, 2.5, 0.5, 0.5])
