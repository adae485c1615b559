"""How deep is found, and what an answer that is cut looks like to the stages around it."""

import numpy as np
import pytest

from rerankd.batching.admission import Estimate
from rerankd.domain import ScoreOptions, Terms
from rerankd.pipeline.budget import BudgetStage, deepest
from tests.fakes import RecordingStage

_DOCUMENTS = [f"text number {number}" for number in range(9)]


class _Batcher:
    """What fits has at most `characters`."""

    def __init__(self, characters: int) -> None:
        self._characters = characters

    async def fits(self, estimate: Estimate, _terms: Terms) -> bool:
        return estimate.characters <= self._characters


@pytest.mark.parametrize("most", [1, 2, 3, 10, 1000])
async def test_the_deepest_is_the_last_that_fits(most: int) -> None:
    for limit in {0, 1, 2, most // 2, most - 1, most, most + 1}:
        tried: list[int] = []

        async def fits(depth: int, limit: int = limit, tried: list[int] = tried) -> bool:
            tried.append(depth)
            return depth <= limit

        assert await deepest(most, fits) == max(1, min(limit, most))
        assert len(tried) <= 12


@pytest.mark.parametrize("depth", [0, 1, 4, 9, 20])
async def test_only_the_first_are_read_and_the_others_have_no_score(depth: int) -> None:
    inner = RecordingStage()
    each = len("q") + len(_DOCUMENTS[0])
    stage = BudgetStage(inner, _Batcher(each * depth), longest=512)  # type: ignore[arg-type]
    scores = await stage.score("q", _DOCUMENTS, ScoreOptions(budgeted=True))
    read = max(1, min(depth, 9))
    assert [asked for _, asked, _ in inner.asked] == [_DOCUMENTS[:read]]
    assert scores.known.tolist() == [True] * read + [False] * (9 - read)
    assert np.count_nonzero(scores.tokens) == read


async def test_without_the_wish_everything_is_read() -> None:
    inner = RecordingStage()
    await BudgetStage(inner, _Batcher(0), longest=512).score("q", _DOCUMENTS, ScoreOptions())  # type: ignore[arg-type]
    assert [len(asked) for _, asked, _ in inner.asked] == [9]
