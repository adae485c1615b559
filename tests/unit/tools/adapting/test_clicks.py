"""Relevance from clicks, against a simulated user who looks at rank k with a known probability."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from rerankd.errors import ConfigError
from rerankd.tools.adapting.clicks import (
    Showing,
    click_lessons,
    measured_propensities,
    power_propensities,
    read_clicks,
)
from rerankd.tools.adapting.lessons import Document

_RELEVANCE = {"best": 0.8, "good": 0.4, "poor": 0.1, "none": 0.0}
_PROPENSITIES = [1.0, 0.6, 0.3, 0.15]
_CORPUS = {name: Document("", name) for name in _RELEVANCE}


def _user(results: list[str], rng: random.Random, *, shuffled: bool = False) -> Showing:
    looked_at = (name for name, chance in zip(results, _PROPENSITIES, strict=True) if rng.random() < chance)
    return Showing("q", results, frozenset(name for name in looked_at if rng.random() < _RELEVANCE[name]), shuffled)


def _shuffled(rng: random.Random) -> list[str]:
    return rng.sample(sorted(_RELEVANCE), len(_RELEVANCE))


def test_the_mean_weight_of_clicks_is_the_relevance_whatever_the_ranking() -> None:
    rng = random.Random(7)
    worst_first = ["none", "poor", "good", "best"]
    showings = [_user(worst_first, rng) for _ in range(10_000)]
    [lesson] = click_lessons(showings, np.array(_PROPENSITIES))
    for name, relevance in _RELEVANCE.items():
        assert lesson.gains.get(name, 0.0) == pytest.approx(relevance, abs=0.04)
    clicks = {name: sum(name in showing.clicked for showing in showings) / 10_000 for name in _RELEVANCE}
    assert clicks["best"] == pytest.approx(0.8 * 0.15, abs=0.01), "without weights the best one looks poor"


def test_shuffled_lists_tell_how_often_a_rank_is_looked_at() -> None:
    rng = random.Random(3)
    ours = [_user(["best", "good", "poor", "none"], rng) for _ in range(500)]
    showings = [_user(_shuffled(rng), rng, shuffled=True) for _ in range(10_000)]
    assert measured_propensities([*ours, *showings]) == pytest.approx(_PROPENSITIES, abs=0.04)


def test_without_shuffled_lists_propensities_fall_with_a_power_of_the_rank() -> None:
    assert power_propensities(4, eta=1.0) == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert power_propensities(3, eta=0.0) == pytest.approx([1, 1, 1])


def test_a_query_that_nobody_clicked_teaches_nothing() -> None:
    assert click_lessons([Showing("q", ["best"], frozenset())], np.ones(1)) == []


def test_queries_of_other_case_are_one() -> None:
    showings = [Showing("A  b", ["best"], frozenset(["best"])), Showing("a b", ["best"], frozenset())]
    [lesson] = click_lessons(showings, np.ones(1))
    assert lesson.gains == {"best": 0.5}


def test_unclicked_first_ranks_tell_no_propensities() -> None:
    with pytest.raises(ConfigError, match="first rank"):
        measured_propensities([Showing("q", ["best"], frozenset(), shuffled=True)])


def test_a_file_of_showings_is_read(tmp_path: Path) -> None:
    line = {"query": "q", "results": ["best", "good"], "clicked": ["good"], "shuffled": True}
    (tmp_path / "clicks.jsonl").write_text(json.dumps(line) + "\n")
    expected = Showing("q", ["best", "good"], frozenset(["good"]), shuffled=True)
    assert read_clicks(tmp_path / "clicks.jsonl", _CORPUS) == [expected]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "holds no clicks"),
        ("{", "not valid JSON"),
        ('{"query": "q"}', "query, results, clicked"),
        ('{"query": 7, "results": ["best"], "clicked": []}', "query must be a text"),
        ('{"query": " ", "results": ["best"], "clicked": []}', "query must be a text"),
        ('{"query": "q", "results": [], "clicked": []}', "results not empty"),
        ('{"query": "q", "results": "best", "clicked": []}', "lists of document ids"),
        ('{"query": "q", "results": ["best"], "clicked": "best"}', "lists of document ids"),
        ('{"query": "q", "results": ["away"], "clicked": []}', "away, which the corpus does not have"),
        ('{"query": "q", "results": ["best", "best"], "clicked": []}', "twice"),
        ('{"query": "q", "results": ["best"], "clicked": ["good"]}', "not in results"),
        ('{"query": "q", "results": ["best"], "clicked": [], "shuffled": "yes"}', "true or false"),
    ],
)
def test_a_line_that_is_no_showing_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "clicks.jsonl").write_text(line + "\n")
    with pytest.raises(ConfigError, match=message):
        read_clicks(tmp_path / "clicks.jsonl", _CORPUS)
