"""How scores become cache entries, and entries become scores again. Pure.

An entry begins with a mark that names its codec. One with another mark was written by another stage or by another
version, and is not read. Neither is one whose score is not a finite number. If the layout changes, the marks must
change too.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from rerankd.domain import BoolArray, IntArray, Remark, Scores

_MARK: Final = np.dtype("<u4")


class EntryCodec(Protocol):
    """How the scores of documents become an entry each."""

    def keeps(self, scores: Scores) -> BoolArray: ...

    def write(self, scores: Scores) -> list[bytes]: ...

    def read(self, stored: Sequence[bytes | None]) -> tuple[Scores, IntArray]: ...


class ScoreCodec:
    """Packs a document's score, tokens and dropped tokens into 12 bytes, behind a `mark` of four, not all zero. With
    `parts`, what is scored has several documents, and `dropped` of `Scores` has shape [scores, parts].
    """

    def __init__(self, mark: bytes, *, parts: int | None = None) -> None:
        self._mark = mark
        self._number = np.frombuffer(mark, dtype=_MARK)[0]
        dropped = ("dropped", "<u4") if parts is None else ("dropped", "<u4", (parts,))
        fields = [("value", "<f4"), ("tokens", "<u4"), dropped]
        self._score = np.dtype(fields)
        self._entry = np.dtype([("mark", _MARK), *fields])
        self.size = self._entry.itemsize
        self._bytes = np.dtype(f"V{self.size}")

    def keeps(self, scores: Scores) -> BoolArray:
        """Which scores get an entry: those that exist and are finite."""
        finite = np.isfinite(scores.values)
        return finite if scores.scored is None else finite & scores.scored

    def write(self, scores: Scores) -> list[bytes]:
        """An entry for each document."""
        entries = _packed(scores, self._entry)
        entries["mark"] = self._number
        written: list[bytes] = entries.view(self._bytes).tolist()
        return written

    def read(self, stored: Sequence[bytes | None]) -> tuple[Scores, IntArray]:
        """The scores in entries, and which of `stored` these entries are. A store may hold anything under our keys."""
        size, none = self.size, bytes(self.size)
        whole = [none if entry is None or len(entry) != size else entry for entry in stored]
        entries = np.frombuffer(b"".join(whole), dtype=self._entry)
        found = np.flatnonzero((entries["mark"] == self._number) & np.isfinite(entries["value"]))
        return _unpacked(entries if len(found) == len(entries) else entries[found]), found

    def write_whole(self, scores: Scores) -> bytes:
        """One entry for all documents."""
        return self._mark + _packed(scores, self._score).tobytes()

    def read_whole(self, stored: bytes | None, *, documents: int) -> Scores | None:
        """The scores in an entry of `write_whole` for this many documents; None: it is not such an entry."""
        size = len(self._mark) + documents * self._score.itemsize
        if stored is None or len(stored) != size or not stored.startswith(self._mark):
            return None
        scores = np.frombuffer(stored, dtype=self._score, offset=len(self._mark))
        return _unpacked(scores) if np.isfinite(scores["value"]).all() else None


class MarkedCodec:
    """As `ScoreCodec`, with what is known of each token behind the score: four bytes a token."""

    def __init__(self, mark: bytes) -> None:
        self._scores = ScoreCodec(mark)

    def keeps(self, scores: Scores) -> BoolArray:
        """As `ScoreCodec`, and only those with marks."""
        marked: BoolArray = np.array([marks is not None for marks in _marks_of(scores)], dtype=np.bool_)
        return self._scores.keeps(scores) & marked

    def write(self, scores: Scores) -> list[bytes]:
        """An entry for each document."""
        entries = zip(self._scores.write(scores), _marks_of(scores), strict=True)
        return [entry + np.asarray(marks, dtype="<f4").tobytes() for entry, marks in entries]

    def read(self, stored: Sequence[bytes | None]) -> tuple[Scores, IntArray]:
        """As `ScoreCodec`."""
        scores, found = self._scores.read([None if entry is None else entry[: self._scores.size] for entry in stored])
        marks = np.full(len(found), None, dtype=np.object_)
        for place, index in enumerate(found.tolist()):
            rest = (stored[index] or b"")[self._scores.size :]
            if len(rest) % 4 == 0:
                marks[place] = np.frombuffer(rest, dtype="<f4")
        whole = np.flatnonzero([one is not None and bool(np.isfinite(one).all()) for one in marks])
        return replace(scores, marks=marks).take(whole), found[whole]


class RemarkedCodec:
    """As `ScoreCodec`, with a document's remark behind the score, as JSON."""

    def __init__(self, mark: bytes) -> None:
        self._scores = ScoreCodec(mark)

    def keeps(self, scores: Scores) -> BoolArray:
        """As `ScoreCodec`."""
        return self._scores.keeps(scores)

    def write(self, scores: Scores) -> list[bytes]:
        """An entry for each document."""
        remarks = [None] * len(scores) if scores.remarks is None else scores.remarks.tolist()
        entries = zip(self._scores.write(scores), remarks, strict=True)
        return [entry + (b"" if remark is None else orjson.dumps([*remark])) for entry, remark in entries]

    def read(self, stored: Sequence[bytes | None]) -> tuple[Scores, IntArray]:
        """As `ScoreCodec`. A remark that cannot be read is none."""
        scores, found = self._scores.read([None if entry is None else entry[: self._scores.size] for entry in stored])
        remarks = np.full(len(found), None, dtype=np.object_)
        for place, index in enumerate(found.tolist()):
            remarks[place] = _remark_in((stored[index] or b"")[self._scores.size :])
        return replace(scores, remarks=remarks), found


def _remark_in(text: bytes) -> Remark | None:
    try:
        reason, grades = orjson.loads(text)
        return Remark(str(reason), {str(name): float(grade) for name, grade in grades.items()})
    except (ValueError, TypeError, AttributeError):
        return None


def _marks_of(scores: Scores) -> Sequence[NDArray[np.float32] | None]:
    return [None] * len(scores) if scores.marks is None else scores.marks.tolist()


def _packed(scores: Scores, layout: np.dtype[np.void]) -> NDArray[np.void]:
    packed = np.empty(len(scores), dtype=layout)
    packed["value"] = scores.values
    packed["tokens"] = scores.tokens
    packed["dropped"] = scores.dropped
    return packed


def _unpacked(packed: NDArray[np.void]) -> Scores:
    return Scores(
        values=packed["value"].copy(),
        tokens=packed["tokens"].astype(np.int64),
        dropped=packed["dropped"].astype(np.int64),
    )
