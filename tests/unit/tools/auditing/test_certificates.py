"""Certified top-K against a scorer whose every smoothed score and every attack can be enumerated."""

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from rerankd.errors import ConfigError
from rerankd.tools.auditing.certificates import is_certified, largest_change, sampling_error
from rerankd.tools.auditing.synonyms import Synonyms

# Not transitive: b may stand for a and for c, and a for c may not.
_SYNONYMS = Synonyms({"a": ["a", "b"], "b": ["a", "b", "c"], "c": ["b", "c"], "x": ["x", "y"], "y": ["x", "y"]})


def _words(text: str) -> Iterator[str]:
    """All texts that substitutions can make of one."""
    return map(" ".join, itertools.product(*(_SYNONYMS.choices(word) or [word] for word in text.split())))


def _smoothed(text: str, weights: dict[str, float]) -> float:
    """The mean over every text that may be drawn; each word is drawn evenly from its choices."""
    return float(np.mean([np.mean([weights[word] for word in drawn.split()]) for drawn in _words(text)]))


def _attacks(text: str, *, words: int) -> Iterator[str]:
    for changed in _words(text):
        if sum(old != new for old, new in zip(text.split(), changed.split(), strict=True)) <= words:
            yield changed


def _can_be_broken(texts: Sequence[str], weights: dict[str, float], *, k: int, words: int) -> bool:
    """Whether some attack on one document changes which K are best."""
    scores = [_smoothed(text, weights) for text in texts]
    best = set(np.argsort(scores)[::-1][:k].tolist())
    for place, text in enumerate(texts):
        for attacked in _attacks(text, words=words):
            changed = [*scores[:place], _smoothed(attacked, weights), *scores[place + 1 :]]
            if set(np.argsort(changed)[::-1][:k].tolist()) != best:
                return True
    return False


def test_no_list_that_can_be_broken_is_certified_and_some_that_cannot_are() -> None:
    rng = random.Random(5)
    certified = breakable = 0
    for _ in range(300):
        weights = {word: rng.random() for word in "abcxyz"} | {"z": rng.choice([0.0, 1.0])}
        texts = [" ".join(rng.choices("abcxyz", weights=[1, 1, 1, 2, 2, 4], k=2)) for _ in range(3)]
        means = [_smoothed(text, weights) for text in texts]
        changes = [largest_change(_SYNONYMS.overlaps(text), words=1) for text in texts]
        can_be_broken = _can_be_broken(texts, weights, k=1, words=1)
        breakable += can_be_broken
        if is_certified(means, changes, k=1, error=0.0):
            assert not can_be_broken
            certified += 1
    assert certified > 10
    assert breakable > 10


def test_an_attack_moves_a_smoothed_score_by_no_more_than_is_said() -> None:
    weights = {"a": 0.0, "b": 0.5, "c": 1.0, "x": 0.2, "y": 0.9}
    for text in ("a", "b", "a x", "a b c", "b y c"):
        for words in (1, 2, 3):
            bound = largest_change(_SYNONYMS.overlaps(text), words=words)
            moved = max(
                abs(_smoothed(attacked, weights) - _smoothed(text, weights)) for attacked in _attacks(text, words=words)
            )
            assert moved <= bound + 1e-12


@pytest.mark.parametrize(
    ("means", "changes", "k", "error", "certified"),
    [
        ([0.9, 0.2, 0.1], [0.1, 0.1, 0.1], 1, 0.5, True),
        ([0.9, 0.2, 0.1], [0.1, 0.1, 0.3], 1, 0.5, False),
        ([0.2, 0.9, 0.8], [0.0, 0.0, 0.0], 2, 0.5, True),
        ([0.9, 0.4], [0.0, 0.0], 1, 0.5, False),
        ([0.9, 0.1], [1.0, 1.0], 2, 0.5, True),
        ([], [], 1, 0.5, True),
    ],
)
def test_the_gap_must_exceed_change_and_error(
    means: list[float], changes: list[float], k: int, error: float, certified: bool
) -> None:
    assert is_certified(means, changes, k=k, error=error) is certified


def test_hoeffdings_error_of_two_means() -> None:
    assert sampling_error(200) == pytest.approx(2 * (np.log(40) / 400) ** 0.5)


def test_words_whose_synonyms_are_drawn_alike_cannot_be_attacked() -> None:
    assert list(_SYNONYMS.overlaps("x stays y")) == [1.0, 1.0]
    assert list(_SYNONYMS.overlaps("a")) == [pytest.approx(2 / 3)]
    assert largest_change([], words=3) == 0.0
    assert largest_change([0.5, 1.0, 0.8], words=2) == pytest.approx(0.6)


def test_a_table_of_synonyms_is_read(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(json.dumps({"Big": ["Large"]}))
    assert Synonyms.read(tmp_path / "table.json").of == {"big": ["big", "large"]}
    assert Synonyms.read(None).choices("rapid") == ["fast", "quick", "rapid"]
    assert Synonyms.read(None).replaced("Big risk", random.Random(1)) == "large danger"


@pytest.mark.parametrize("content", ["", "[]", '{"a": "b"}', '{"a": [1]}', "\xff"])
def test_a_table_that_is_none_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "table.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"table\.json"):
        Synonyms.read(tmp_path / "table.json")
