"""How the soak judges an answer: a test of the judge, because it must not be the one that is wrong."""

import json

import pytest

from loadtest.soak import Reference, Tally, scores_of
from rerankd.tools.benchmark.connection import Answer


def _answer(results: object) -> Answer:
    return Answer(200, {}, json.dumps({"results": results}).encode(), 0.0)


def _results(*scores: float) -> list[dict[str, float]]:
    return [{"index": index, "relevance_score": score} for index, score in enumerate(scores)]


@pytest.mark.parametrize(
    ("results", "difference"),
    [
        (_results(0.9, 0.1), 0.0),
        (list(reversed(_results(0.9, 0.1))), 0.0),
        (_results(0.9, 0.3), 0.2),
        (_results(0.9), float("inf")),
        (_results(0.9, 0.1, 0.5), float("inf")),
        ([*_results(0.9, 0.1), {"index": 0, "relevance_score": 0.9}], float("inf")),
        ([{"index": 0}], float("inf")),
        (None, float("inf")),
    ],
)
def test_an_answer_is_as_wrong_as_its_worst_score_and_wholly_if_a_document_is_missing(
    results: object, difference: float
) -> None:
    reference = Reference([b""], [scores_of(_answer(_results(0.9, 0.1)))])
    assert reference.difference(0, _answer(results)) == pytest.approx(difference)


def test_an_answer_that_is_no_json_is_wrong() -> None:
    assert Reference([b""], [{0: 0.5}]).difference(0, Answer(200, {}, b"<html>", 0.0)) == float("inf")


@pytest.mark.parametrize(
    ("memory", "growth"),
    [([100] * 40, 1.0), ([1] * 10 + [100] * 20 + [150] * 10, 1.5), ([50] * 10 + [100] * 30, 1.0)],
)
def test_growth_compares_the_last_quarter_with_the_second(memory: list[int], growth: float) -> None:
    assert Tally(memory=memory).growth() == pytest.approx(growth)
