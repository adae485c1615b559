"""What answers comparisons: a scorer of comparisons, or one of lists, which is asked for the best of its window."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from rerankd.domain import FloatArray, IntArray, ScoreOptions, WindowPlan
from rerankd.errors import ScoringFailed
from rerankd.pipeline.choices import Comparison
from rerankd.scorers.base import ComparisonScorer, ListScorer
from rerankd.scorers.ranking import sigmoid
from rerankd.tasks.base import Task

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
R = TypeVar("R")
R_contra = TypeVar("R_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class EncodedComparisons(Generic[T_co]):
    """One payload of the scorer's task for each comparison; `dropped` counts the tokens cut off its first documents,
    shape [comparisons, `told` of the comparator].
    """

    encodings: Sequence[T_co]
    dropped: IntArray


class Comparator(Protocol[T, R_contra]):
    """Says which document of a few is the best, by its place among them."""

    @property
    def task(self) -> Task[T]: ...

    @property
    def plan(self) -> WindowPlan: ...

    @property
    def max_length(self) -> int: ...

    @property
    def told(self) -> int:
        """Of how many documents of a comparison, from the first, it says what was cut off."""

    def encode(
        self, query: str, documents: Sequence[str], comparisons: Sequence[Comparison], options: ScoreOptions
    ) -> EncodedComparisons[T]:
        """Write one prompt for each comparison of documents' indices.

        Raises:
            InvalidRequest: the query leaves no room for the documents, or the model reads no instruction.
        """

    def interpret(self, results: Sequence[R_contra], sizes: Sequence[int]) -> FloatArray:
        """Turn what the engine gave for comparisons of these sizes into answers, shape [comparisons]: see
        `rerankd.pipeline.choices.Answer`.

        Raises:
            ScoringFailed: the model's score of a document is not a finite number.
        """


class PairComparator(Generic[T, R]):
    """Two at a time; its answers are probabilities."""

    told = 1

    def __init__(self, scorer: ComparisonScorer[T, R]) -> None:
        self._scorer = scorer
        self.task = scorer.task
        self.plan = scorer.plan
        self.max_length = scorer.max_length

    def encode(
        self, query: str, documents: Sequence[str], comparisons: Sequence[Comparison], options: ScoreOptions
    ) -> EncodedComparisons[T]:
        encoded = self._scorer.encode_comparisons(
            query,
            documents,
            [(first, second) for first, second in comparisons],
            max_document_tokens=options.max_tokens_per_doc,
            instruction=options.instruction,
            owner=options.terms.caller,
        )
        return EncodedComparisons(encoded.encodings, encoded.dropped[:, None])

    def interpret(self, results: Sequence[R], sizes: Sequence[int]) -> FloatArray:  # noqa: ARG002 - all are two
        odds = self._scorer.interpret_comparisons(results)
        _refuse_no_numbers(odds)
        return sigmoid(-odds)


class ListComparator(Generic[T, R]):
    """As many at a time as the scorer's window holds. Of the order that it gives only the first place is taken."""

    def __init__(self, scorer: ListScorer[T, R]) -> None:
        self._scorer = scorer
        self.task = scorer.task
        self.plan = scorer.plan
        self.max_length = scorer.max_length
        self.told = scorer.plan.window

    def encode(
        self, query: str, documents: Sequence[str], comparisons: Sequence[Comparison], options: ScoreOptions
    ) -> EncodedComparisons[T]:
        windows = [
            self._scorer.encode_window(
                query,
                [documents[index] for index in comparison],
                max_document_tokens=options.max_tokens_per_doc,
                instruction=options.instruction,
            )
            for comparison in comparisons
        ]
        dropped = np.zeros((len(windows), self.told), dtype=np.int64)
        for row, window in zip(dropped, windows, strict=True):
            row[: len(window.dropped)] = window.dropped
        return EncodedComparisons([window.encoding for window in windows], dropped)

    def interpret(self, results: Sequence[R], sizes: Sequence[int]) -> FloatArray:
        answers = [self._best(result, size) for result, size in zip(results, sizes, strict=True)]
        return np.array(answers, dtype=np.float32)

    def _best(self, result: R, size: int) -> float:
        scores = self._scorer.interpret_window(result, candidates=size)
        _refuse_no_numbers(scores)
        silent = size > 1 and bool((scores == scores[0]).all())
        return np.nan if silent else float(scores.argmax())


def _refuse_no_numbers(scores: FloatArray) -> None:
    if not np.isfinite(scores).all():
        raise ScoringFailed("the model's score of a document is not a finite number")
