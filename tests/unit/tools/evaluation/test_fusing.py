"""Modes and weights are found on one half of the questions and measured on the other."""

import numpy as np
import pytest

from rerankd.domain import FusionMode, FusionPlan
from rerankd.errors import ConfigError
from rerankd.tools.evaluation.datasets import DataSet, Question
from rerankd.tools.evaluation.fusing import PLANS, FusedAnswer, with_fusion
from rerankd.tools.evaluation.scoring import Rankings
from rerankd.tools.evaluation.targets import FIRST_STAGE, REFUSED, Answer, Ranked

_CANDIDATES = 12


def _answer(scores: list[float]) -> Answer:
    order = np.argsort(-np.array(scores), kind="stable").tolist()
    values = [scores[index] for index in order]
    return Answer(order, values, 0.1, values)


def _noisy_set(*, model_noise: float, first_noise: float, questions: int = 40) -> tuple[DataSet, Rankings]:
    """Grades are what both stages see through noise."""
    random = np.random.default_rng(0)
    asked, answers = [], dict[str, Ranked]()
    for number in range(questions):
        grades = random.integers(0, 4, size=_CANDIDATES)
        first = grades + first_noise * random.normal(size=_CANDIDATES)
        by_first = np.argsort(-first)
        grades, first = grades[by_first], first[by_first]
        names = [f"d{place}" for place in range(_CANDIDATES)]
        asked.append(Question(f"q{number}", "", names, dict(zip(names, grades.tolist(), strict=True)), first.tolist()))
        answers[f"q{number}"] = _answer((grades + model_noise * random.normal(size=_CANDIDATES)).tolist())
    made = DataSet(name="s", questions=asked, texts={}, candidates="run", judgements="qrels", unjudged=0)
    return made, {FIRST_STAGE: {"s": {}}, "m": {"s": answers}}


def test_a_perfect_model_needs_no_first_stage() -> None:
    data_set, rankings = _noisy_set(model_noise=0, first_noise=50)
    _, (choice,) = with_fusion(rankings, [data_set], depth=_CANDIDATES)
    assert choice.alone == choice.held_out == 1
    assert choice.plan == FusionPlan(mode=FusionMode.Z_SCORE, weight=0)
    assert choice.line == 'fusion = { mode = "z-score", weight = 0 }'


def test_two_noisy_stages_are_better_together() -> None:
    data_set, rankings = _noisy_set(model_noise=1.5, first_noise=1.5)
    extended, (choice,) = with_fusion(rankings, [data_set], depth=_CANDIDATES)
    assert choice.held_out > choice.alone
    assert 0 < choice.plan.weight < 1
    assert set(extended) == {FIRST_STAGE, "m", "m fused"}


def test_each_half_is_ordered_by_the_plan_of_the_other() -> None:
    data_set, rankings = _noisy_set(model_noise=1.5, first_noise=1.5)
    extended, _ = with_fusion(rankings, [data_set], depth=_CANDIDATES)
    plans = [set[FusionPlan](), set[FusionPlan]()]
    for question in data_set.questions:
        answer = extended["m fused"]["s"][question.query_id]
        assert isinstance(answer, FusedAnswer)
        plans[question.half].add(answer.plan)
    assert [len(of_half) for of_half in plans] == [1, 1]
    # Other answers to one half change the plan of the other half alone.
    answers = dict(rankings["m"]["s"])
    for question in data_set.questions:
        if question.half == 0:
            answers[question.query_id] = _answer([float(question.grades[name]) for name in question.document_ids])
    changed, _ = with_fusion({"m": {"s": answers}}, [data_set], depth=_CANDIDATES)
    for question in data_set.questions:
        answer = changed["m fused"]["s"][question.query_id]
        assert isinstance(answer, FusedAnswer)
        if question.half == 0:
            assert answer.plan in plans[0]
        else:
            assert answer.plan.weight == 0


def test_a_depth_fuses_the_scores_of_its_candidates_alone() -> None:
    answer = FusedAnswer(_answer([1.0, 2.0, 900.0]), [3.0, 2.0, 1.0], FusionPlan(mode=FusionMode.MIN_MAX, weight=0.4))
    assert answer.order == [2, 0, 1]
    assert answer.order_at(2) == [1, 0]
    assert answer.order_at(99) == answer.order


def test_a_refused_query_stays_refused() -> None:
    assert FusedAnswer(REFUSED, [1.0], PLANS[0]).order == []


def test_judged_pairs_cannot_be_fused() -> None:
    pairs = DataSet(name="s", questions=[], texts={}, candidates=None, judgements="qrels", unjudged=0)
    with pytest.raises(ConfigError, match="--fuse needs a set with candidates"):
        with_fusion({"m": {}}, [pairs], depth=10)
