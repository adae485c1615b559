"""Losses against their definitions, one pair or one permutation at a time."""

import itertools
import math

import pytest
import torch

from rerankd.tools.training import losses

_SCORES = torch.tensor([[0.3, -1.2, 2.0, 0.7], [1.5, 1.4, -0.2, 0.1]], dtype=torch.float64)
_GAINS = torch.tensor([[1.0, 0.0, 0.5, 0.0], [0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
_ROWS = list(zip(_SCORES.tolist(), _GAINS.tolist(), strict=True))


def _pairs(scores: list[float], gains: list[float]) -> list[tuple[int, int]]:
    places = range(len(scores))
    return [(better, worse) for better in places for worse in places if gains[better] > gains[worse]]


def _logistic(margin: float) -> float:
    return math.log1p(math.exp(-margin))


def _dcg(gains: list[float]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def test_softmax_is_the_cross_entropy_of_each_relevant_document() -> None:
    expected = []
    for scores, gains in _ROWS:
        total = sum(map(math.exp, scores))
        expected.append(
            -sum(gain * math.log(math.exp(score) / total) for score, gain in zip(scores, gains, strict=True))
        )
    assert losses.softmax(_SCORES, _GAINS).tolist() == pytest.approx(expected)


def test_ranknet_is_the_mean_over_ordered_pairs() -> None:
    expected = []
    for scores, gains in _ROWS:
        values = [_logistic(scores[better] - scores[worse]) for better, worse in _pairs(scores, gains)]
        expected.append(sum(values) / len(values))
    assert losses.ranknet(_SCORES, _GAINS).tolist() == pytest.approx(expected)


def test_lambda_loss_weighs_a_pair_by_what_swapping_it_changes_of_ndcg() -> None:
    expected = []
    for scores, gains in _ROWS:
        order = sorted(range(len(scores)), key=lambda place: -scores[place])
        ideal = _dcg(sorted(gains, reverse=True))
        total = 0.0
        for better, worse in _pairs(scores, gains):
            swapped = list(order)
            a, b = order.index(better), order.index(worse)
            swapped[a], swapped[b] = order[b], order[a]
            change = abs(_dcg([gains[place] for place in order]) - _dcg([gains[place] for place in swapped])) / ideal
            total += change * _logistic(scores[better] - scores[worse])
        expected.append(total)
    assert losses.lambda_loss(_SCORES, _GAINS).tolist() == pytest.approx(expected)


def test_neural_ndcg_comes_to_ndcg_where_scores_are_far_apart() -> None:
    expected = []
    for scores, gains in _ROWS:
        order = sorted(range(len(scores)), key=lambda place: -scores[place])
        expected.append(1 - _dcg([gains[place] for place in order]) / _dcg(sorted(gains, reverse=True)))
    assert losses.neural_ndcg(1000 * _SCORES, _GAINS).tolist() == pytest.approx(expected, abs=1e-6)


def test_margin_mse_compares_margins_and_not_levels() -> None:
    expected = []
    teacher = _SCORES.flip(1)
    for (scores, gains), taught in zip(_ROWS, teacher.tolist(), strict=True):
        pairs = [(i, j) for i, j in _pairs(scores, gains) if gains[j] == 0]
        errors = [((scores[i] - scores[j]) - (taught[i] - taught[j])) ** 2 for i, j in pairs]
        expected.append(sum(errors) / len(errors))
    assert losses.margin_mse(_SCORES, _GAINS, teacher).tolist() == pytest.approx(expected)
    assert losses.margin_mse(_SCORES, _GAINS, _SCORES + 7).tolist() == pytest.approx([0, 0])


@pytest.mark.parametrize("name", list(losses.LOSSES))
def test_every_loss_falls_along_its_gradient(name: str) -> None:
    scores = _SCORES.clone().requires_grad_()
    value = losses.LOSSES[name](scores, _GAINS).sum()
    value.backward()
    assert scores.grad is not None
    stepped = losses.LOSSES[name]((scores - 1e-3 * scores.grad).detach(), _GAINS).sum()
    assert float(stepped) < float(value.detach())


def test_with_clicks_over_propensities_softmax_is_unbiased() -> None:
    """The expectation over every outcome of the click model, each counted with its probability."""
    relevance, propensities = [0.9, 0.2, 0.5, 0.0], [1.0, 0.6, 0.3, 0.2]
    scores = _SCORES[:1]
    expected = losses.softmax(scores, torch.tensor([relevance], dtype=torch.float64))
    weighted, naive = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for clicks in itertools.product([0, 1], repeat=4):
        chances = [r * p if c else 1 - r * p for c, r, p in zip(clicks, relevance, propensities, strict=True)]
        gains = torch.tensor([[c / p for c, p in zip(clicks, propensities, strict=True)]], dtype=torch.float64)
        weighted += math.prod(chances) * losses.softmax(scores, gains)
        naive += math.prod(chances) * losses.softmax(scores, torch.tensor([clicks], dtype=torch.float64))
    assert float(weighted) == pytest.approx(float(expected))
    assert float(naive) < 0.9 * float(expected)


@pytest.mark.parametrize(
    ("easiness", "progress", "weight"), [(1.0, 0.0, 1.0), (0.2, 0.0, 0.2), (0.2, 0.5, 0.6), (0.2, 1.0, 1.0), (0, 3, 1)]
)
def test_hard_queries_count_in_full_once_the_curriculum_is_over(
    easiness: float, progress: float, weight: float
) -> None:
    assert losses.curriculum_weight(easiness, progress) == pytest.approx(weight)
