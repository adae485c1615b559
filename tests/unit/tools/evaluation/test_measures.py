"""Measures against a calculation by hand and against ir-measures asked directly."""

import random
from math import log2

import ir_measures
import numpy as np
import pytest
from ir_measures import RR, P, R, nDCG

from rerankd.tools.evaluation.datasets import Question
from rerankd.tools.evaluation.measures import MEASURES, area_under_roc, measure


def _question(query_id: str, **grades: int) -> Question:
    return Question(query_id, "text", list(grades), grades)


def test_ndcg_is_what_a_hand_gets() -> None:
    question = _question("q", a=3, b=0, c=1, d=2)
    values = measure([question], {"q": ["c", "b", "a", "x"]}, level=1)
    gained = 1 / log2(2) + 0 + 3 / log2(4)
    best = 3 / log2(2) + 2 / log2(3) + 1 / log2(4)
    assert values["nDCG@10"][0] == pytest.approx(gained / best)
    assert values["RR@10"][0] == 1
    assert values["P@1"][0] == 1
    assert values["R@10"][0] == pytest.approx(2 / 3)


def test_the_level_decides_what_is_relevant_except_for_ndcg() -> None:
    questions, orders = [_question("q", a=1, b=2)], {"q": ["a", "b"]}
    low, high = measure(questions, orders, level=1), measure(questions, orders, level=2)
    assert (low["RR@10"][0], high["RR@10"][0]) == (1, 0.5)
    assert (low["P@1"][0], high["P@1"][0]) == (1, 0)
    assert low["nDCG@10"][0] == high["nDCG@10"][0]


def test_a_question_without_an_order_counts_as_zero() -> None:
    values = measure([_question("q", a=1), _question("r", a=1)], {"r": ["a"]}, level=1)
    assert {name: of_measure.tolist() for name, of_measure in values.items()} == {name: [0, 1] for name in MEASURES}


@pytest.mark.parametrize("level", [1, 2])
def test_every_measure_is_that_of_ir_measures(level: int) -> None:
    random_ = random.Random(level)
    documents = [f"d{number}" for number in range(150)]
    questions = [
        _question(f"q{number}", **{name: random_.randint(0, 3) for name in random_.sample(documents, 30)})
        for number in range(20)
    ]
    orders = {question.query_id: random_.sample(documents, 120) for question in questions}
    theirs = {
        "nDCG@10": nDCG @ 10,
        "RR@10": RR(rel=level) @ 10,
        "P@1": P(rel=level) @ 1,
        "R@10": R(rel=level) @ 10,
        "R@100": R(rel=level) @ 100,
    }
    assert set(theirs) == set(MEASURES)
    ours = measure(questions, orders, level=level)
    qrels = [ir_measures.Qrel(q.query_id, document, grade) for q in questions for document, grade in q.grades.items()]
    run = [
        ir_measures.ScoredDoc(query, document, 1000.0 - rank)
        for query, order in orders.items()
        for rank, document in enumerate(order)
    ]
    expected = ir_measures.calc_aggregate(list(theirs.values()), qrels, run)
    for name, each in theirs.items():
        assert ours[name].mean() == pytest.approx(expected[each], abs=1e-12), name


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [
        ([2.0, 3.0], [0.0, 1.0], 1.0),
        ([0.0], [1.0], 0.0),
        ([1.0], [1.0], 0.5),
        ([1.0, 3.0], [2.0], 0.5),
        ([], [1.0], None),
        ([1.0], [], None),
    ],
)
def test_area_under_roc(positives: list[float], negatives: list[float], expected: float | None) -> None:
    assert area_under_roc(np.array(positives), np.array(negatives)) == expected


def test_area_under_roc_is_the_share_of_pairs_in_the_right_order() -> None:
    generator = np.random.default_rng(1)
    positives, negatives = generator.integers(10, size=40).astype(float), generator.integers(8, size=60).astype(float)
    share = np.mean([(p > n) + 0.5 * (p == n) for p in positives for n in negatives])
    assert area_under_roc(positives, negatives) == pytest.approx(share)
