"""Blank documents: what no model sees is not scored, whatever it is written as."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from rerankd.concurrency.sharing import SharedWorker
from rerankd.config.settings import SHIPPED_REGISTRY
from rerankd.domain import PassageScores, ScoreOptions, Scores, Side, WindowWishes
from rerankd.errors import InvalidRequest
from rerankd.pipeline.blanks import BlankStage, Drops, drops_nothing
from rerankd.pipeline.cascade import CascadeStage, Member
from rerankd.scorers import load_list_scorer, load_scorer
from rerankd.scorers.base import ScorerSpec
from rerankd.scorers.visible import LOOKED_AT
from tests.fakes import RecordingStage, score_of
from tests.tokenizer_folders import SHIPPED_TEMPLATES, tokenizer_folder

_SHIPPED = SHIPPED_REGISTRY.parent / "minilm-qa"
_UNSEEN = ["", " \n", "\u200b", "\ufeff", "\u00ad", "\x00\x01", "\u2800", "\u3164", "\u200b" * 3000]
_DROPPED_BY_BERT = ["\u0301", "\ufffd", "\u0301 \ufffd\u200b"]
_SCORED = [".", "?", "🎻", "京", "a", " " * 2000 + "a", "\u200bParis", "\u0301a"]


@asynccontextmanager
async def _opened(drops: Drops = drops_nothing) -> AsyncIterator[tuple[BlankStage, RecordingStage]]:
    inner = RecordingStage()
    with SharedWorker.open(name="tokenize", threads=1) as worker:
        yield BlankStage(inner, worker, drops=drops), inner


def _drops(name: str, folder: Path) -> Drops:
    if name == "shipped":
        return load_scorer("cross-encoder", ScorerSpec(folder=_SHIPPED)).drops
    if name == "yes-no":
        spec = ScorerSpec(
            folder=tokenizer_folder(folder, "qwen3"),
            templates=(SHIPPED_TEMPLATES,),
            options={"template": "qwen3-reranker"},
        )
        return load_scorer("yes-no", spec).drops
    if name == "first":
        spec = ScorerSpec(
            folder=tokenizer_folder(folder, "mistral"),
            templates=(SHIPPED_TEMPLATES,),
            options={"template": "first-mistral"},
        )
        return load_list_scorer("first", spec).drops
    spec = ScorerSpec(folder=folder, templates=(SHIPPED_TEMPLATES,), options={"template": "rankgpt"})
    return load_list_scorer("generative", spec).drops


@pytest.mark.parametrize("name", ["shipped", "yes-no", "first", "endpoint"])
async def test_what_nobody_sees_is_blank_for_every_scorer(name: str, tmp_path: Path) -> None:
    async with _opened(_drops(name, tmp_path)) as (stage, inner):
        scores = await stage.score("query", [*_SCORED, *_UNSEEN], ScoreOptions())
    assert inner.asked[0][1] == _SCORED
    assert scores.blank is not None
    assert scores.blank.tolist() == [False] * len(_SCORED) + [True] * len(_UNSEEN)
    assert scores.values[scores.blank].max() < scores.values[~scores.blank].min()


async def test_what_the_tokenizer_drops_is_blank_too() -> None:
    async with _opened(_drops("shipped", Path())) as (stage, _):
        scores = await stage.score("query", ["a", *_DROPPED_BY_BERT], ScoreOptions())
        assert scores.blank is not None
        assert scores.blank.tolist() == [False, True, True, True]
        with pytest.raises(InvalidRequest, match="query is empty"):
            await stage.score("\u0301", ["a"], ScoreOptions())
    async with _opened() as (stage, _):
        assert (await stage.score("query", ["a", *_DROPPED_BY_BERT], ScoreOptions())).blank is None


async def test_characters_are_tokenized_once_whatever_the_number_of_texts() -> None:
    asked: list[str] = []

    def drops(text: str) -> bool:
        asked.append(text)
        return text == "\u0301"

    texts = ["\u0301?!", "?!", "\u0301", "!" * 500] * 500
    async with _opened(drops) as (stage, _):
        scores = await stage.score("query", texts, ScoreOptions())
    assert scores.blank is not None
    assert scores.blank.tolist() == [False, False, True, False] * 500
    assert sorted(asked) == sorted(set(asked)), "a flood of texts without letters is not tokenized text by text"


@pytest.mark.parametrize("query", _UNSEEN)
async def test_a_blank_query_is_an_error(query: str) -> None:
    async with _opened() as (stage, inner):
        with pytest.raises(InvalidRequest, match="query is empty"):
            await stage.score(query, ["a"], ScoreOptions())
    assert inner.asked == []


async def test_ordinary_documents_reach_the_inner_stage_as_they_are_and_no_tokenizer_is_asked() -> None:
    def asked(text: str) -> bool:
        raise AssertionError(f"{text!r} needs no second look")

    documents = ["Paris", "1984", "京都", " x", "'a'"] * 200
    async with _opened(asked) as (stage, inner):
        scores = await stage.score("query", documents, ScoreOptions())
    assert inner.asked == [("query", documents, ScoreOptions())]
    assert scores.blank is None


async def test_nothing_but_blank_documents_reaches_no_model() -> None:
    async with _opened() as (stage, inner):
        scores = await stage.score("query", ["", "\u200b"], ScoreOptions())
    assert inner.asked == []
    assert scores.values.tolist() == [-1.0, -1.0]
    assert scores.blank is not None
    assert scores.blank.all()


async def test_a_text_that_begins_with_blanks_is_judged_by_what_is_read_of_it() -> None:
    blanks = " " * LOOKED_AT
    async with _opened() as (stage, _):
        beginning = await stage.score("query", ["a", blanks + "x", "x" + blanks], ScoreOptions())
        end = await stage.score("query", ["a", blanks + "x", "x" + blanks], ScoreOptions(truncation_side=Side.LEFT))
    assert beginning.blank is not None
    assert end.blank is not None
    assert (beginning.blank.tolist(), end.blank.tolist()) == ([False, True, False], [False, False, True])


async def test_what_the_inner_stage_says_goes_back_to_its_documents() -> None:
    class Inner(RecordingStage):
        async def score(self, query: str, documents: object, options: ScoreOptions) -> Scores:
            assert options.windows == WindowWishes(initial_order=[1, 0])
            ones = np.ones(2, dtype=np.int64)
            return Scores(
                values=np.array([-3.0, 5.0], dtype=np.float32),
                tokens=np.array([7, 8]),
                dropped=np.array([0, 4]),
                cached=np.array([True, False]),
                scored=np.array([True, False]),
                passages=PassageScores(starts=ones, ends=2 * ones, counts=3 * ones),
                placed_by=np.array(["x", None], dtype=np.object_),
                unordered=1,
            )

    with SharedWorker.open(name="tokenize", threads=1) as worker:
        stage = BlankStage(Inner(), worker, drops=drops_nothing)
        options = ScoreOptions(windows=WindowWishes(initial_order=[3, 2, 0, 1]))
        scores = await stage.score("query", ["", "a", " ", "b"], options)
    assert scores.values.tolist() == [-4.0, -3.0, -4.0, 5.0]
    assert scores.tokens.tolist() == [0, 7, 0, 8]
    assert scores.dropped.tolist() == [0, 0, 0, 4]
    assert scores.cached is not None
    assert scores.scored is not None
    assert scores.passages is not None
    assert scores.cached.tolist() == [False, True, False, False]
    assert scores.scored.tolist() == [True, True, True, False]
    assert scores.passages.counts.tolist() == [0, 3, 0, 3]
    assert scores.placed_by is not None
    assert scores.placed_by.tolist() == [None, "x", None, None]
    assert scores.unordered == 1


async def test_what_is_blank_for_a_member_of_a_cascade_is_blank_for_the_cascade() -> None:
    inner = RecordingStage()
    inner.values = {"a": -5.0, "b": -1.0}
    with SharedWorker.open(name="tokenize", threads=1) as worker:
        first = BlankStage(inner, worker, drops=_drops("shipped", Path()))
        cascade = BlankStage(CascadeStage([Member("first", first, None)]), worker, drops=drops_nothing)
        scores = await cascade.score("query", ["\u0301", "a", "", "b"], ScoreOptions())
    assert scores.blank is not None
    assert scores.blank.tolist() == [True, False, True, False]
    assert np.argsort(-scores.values, kind="stable").tolist() == [3, 1, 0, 2]


async def test_a_blank_score_is_one_of_no_document() -> None:
    async with _opened() as (stage, _):
        scores = await stage.score("query", ["a", "\ufeff"], ScoreOptions())
    assert scores.values[0] == score_of("query", "a")


@pytest.mark.parametrize("count", [1, 999, 1000, 1001, 2500])
async def test_many_doubtful_texts_are_looked_at_in_turns(count: int) -> None:
    documents = [["", "a", "?"][number % 3] for number in range(3 * count)]
    async with _opened() as (stage, inner):
        scores = await stage.score("query", documents, ScoreOptions())
    assert scores.blank is not None
    assert np.flatnonzero(scores.blank).tolist() == list(range(0, 3 * count, 3))
    assert len(inner.asked[0][1]) == 2 * count
