"""Long documents in passages: each is the score of its own text, cached as one, and no call fails for length."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest

from rerankd.batching.admission import Estimate
from rerankd.cache.memory import MemoryCache
from rerankd.concurrency.sharing import SharedWorker
from rerankd.domain import Aggregation, FloatArray, PassagePlan, PassageWishes, ScoreOptions, Scores, Side, Truncation
from rerankd.errors import Overloaded
from rerankd.pipeline.cached import CachedStage
from rerankd.pipeline.passages import PassageStage
from rerankd.scorers.base import Edges
from rerankd.scorers.visible import LOOKED_AT
from tests.fakes import RecordingObserver, RecordingStage, WordScorer, idle_batcher, score_of

_DEFAULTS = PassagePlan()
_CHUNK = ScoreOptions(truncation=Truncation.CHUNK)
_WORDS = " ".join(f"w{number}" for number in range(100))


class _Setup:
    def __init__(self, worker: SharedWorker, plan: PassagePlan, truncation: Truncation) -> None:
        self.inner = RecordingStage()
        self.observer = RecordingObserver()
        self.cache = MemoryCache(max_entries=1000)
        cached = CachedStage(self.inner, self.cache, fingerprint="f", observer=self.observer)
        self.stage = PassageStage(
            cached, WordScorer(max_length=42), idle_batcher(), worker, plan=plan, truncation=truncation
        )

    async def score(self, *documents: str, options: ScoreOptions = _CHUNK) -> Scores:
        return await self.stage.score("query", documents, options)

    @property
    def texts(self) -> list[str]:
        return [text for _, texts, _ in self.inner.asked for text in texts]


@asynccontextmanager
async def _opened(
    plan: PassagePlan = _DEFAULTS, *, truncation: Truncation = Truncation.TRUNCATE
) -> AsyncIterator[_Setup]:
    with SharedWorker.open(name="tokenize", threads=1) as worker:
        yield _Setup(worker, plan, truncation)


def _words(text: str) -> list[str]:
    return text.split()


async def test_passages_overlap_cover_the_document_and_the_best_counts() -> None:
    async with _opened() as setup:
        scores = await setup.score("short", _WORDS)
        first, *passages = setup.texts
        assert first == "short"
        assert [len(_words(text)) for text in passages] == [36] * 4
        assert set(_words(" ".join(passages))) == set(_words(_WORDS))
        assert _words(passages[1])[:10] == _words(passages[0])[-10:], "a quarter is shared"
        best = max(passages, key=lambda text: score_of("query", text))
        assert scores.values.tolist() == [score_of("query", "short"), score_of("query", best)]
        assert scores.passages is not None
        assert scores.passages.counts.tolist() == [1, 4]
        spans = list(zip(scores.passages.starts.tolist(), scores.passages.ends.tolist(), strict=True))
        assert spans[0] == (0, 5)
        assert _WORDS[slice(*spans[1])] == best


async def test_tokens_and_drops_are_summed_over_passages() -> None:
    async with _opened() as setup:
        scores = await setup.score("short", _WORDS)
        assert scores.tokens.tolist() == [1, 4 * 36]
        assert scores.dropped.tolist() == [0, 4 * 3], "what the inner stage could not read of each"


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        (Aggregation.MAX, 5.0),
        (Aggregation.FIRST, 1.0),
        (Aggregation.MEAN, 2.25),
        (Aggregation.TOP_K_MEAN, 4.0),
    ],
)
async def test_every_aggregation(aggregation: Aggregation, expected: float) -> None:
    options = replace(_CHUNK, passages=PassageWishes(aggregation=aggregation, top_k=2))
    async with _opened() as setup:
        await setup.score(_WORDS)
        values: Mapping[str, float] = dict(zip(setup.texts, (1.0, 5.0, 0.0, 3.0), strict=True))
        setup.inner.values = values
        setup.cache = MemoryCache(max_entries=10)
    async with _opened(PassagePlan(top_k=2)) as setup:
        setup.inner.values = values
        scores = await setup.score(_WORDS, options=options)
        assert scores.values.tolist() == [expected]
        assert (await setup.score(_WORDS, options=options)).values.tolist() == [expected], "and from the cache"


async def test_passages_are_cached_as_texts_so_that_policies_cannot_mix() -> None:
    async with _opened() as setup:
        whole = await setup.score(_WORDS, options=ScoreOptions())
        chunked = await setup.score(_WORDS)
        again = await setup.score(_WORDS)
        mean = await setup.score(_WORDS, options=replace(_CHUNK, passages=PassageWishes(aggregation=Aggregation.MEAN)))
        assert whole.values[0] != chunked.values[0]
        assert whole.cached is not None
        assert chunked.cached is not None
        assert again.cached is not None
        assert (whole.cached[0], chunked.cached[0], again.cached[0]) == (False, False, True)
        assert again.values.tolist() == chunked.values.tolist()
        assert mean.values[0] != chunked.values[0]
        assert len(setup.inner.asked) == 2, "the mean is another sum of what is known"
        assert (await setup.score(_WORDS, options=ScoreOptions())).values.tolist() == whole.values.tolist()


async def test_a_passage_scores_what_its_text_scores_alone() -> None:
    async with _opened() as setup:
        chunked = await setup.score(_WORDS)
        assert chunked.passages is not None
        best = _WORDS[int(chunked.passages.starts[0]) : int(chunked.passages.ends[0])]
        assert (await setup.score(best, options=ScoreOptions())).values.tolist() == chunked.values.tolist()
        assert len(setup.inner.asked) == 1


async def test_a_request_may_ask_for_other_passages_within_bounds() -> None:
    async with _opened(PassagePlan(max_passages=3)) as setup:
        asked = PassageWishes(tokens=20, overlap=5, max_passages=99)
        scores = await setup.score(_WORDS, options=replace(_CHUNK, passages=asked))
        assert [len(_words(text)) for text in setup.texts] == [20] * 3
        assert scores.dropped.tolist() == [100 - 50 + 3 * 2]
        fewer = await setup.score(_WORDS, options=replace(_CHUNK, passages=replace(asked, max_passages=2)))
        assert fewer.passages is not None
        assert fewer.passages.counts.tolist() == [2]


async def test_max_tokens_per_doc_bounds_the_whole_document() -> None:
    async with _opened() as setup:
        scores = await setup.score(_WORDS, options=replace(_CHUNK, max_tokens_per_doc=50))
        assert _words(setup.texts[-1])[-1] == "w49"
        assert scores.dropped[0] == 50 + sum(len(_words(text)) // 10 for text in setup.texts)


@pytest.mark.parametrize("tokens", [39, 40])
async def test_a_document_that_fits_is_one_passage(tokens: int) -> None:
    document = " ".join(_words(_WORDS)[:tokens])
    async with _opened() as setup:
        await setup.score(document)
        assert setup.texts == [document]


async def test_a_model_may_read_passages_by_default_and_a_request_may_forbid_it() -> None:
    async with _opened(truncation=Truncation.CHUNK) as setup:
        await setup.score(_WORDS, options=ScoreOptions())
        assert len(setup.texts) == 4
        await setup.score(_WORDS, options=ScoreOptions(truncation=Truncation.TRUNCATE))
        assert setup.texts[4:] == [_WORDS]


async def test_the_end_of_a_document_may_be_read_instead_of_its_beginning() -> None:
    left = ScoreOptions(truncation_side=Side.LEFT)
    async with _opened() as setup:
        scores = await setup.score("short", _WORDS, options=left)
        short, end = setup.texts
        assert short == "short"
        assert _words(end) == _words(_WORDS)[-40:]
        assert scores.dropped.tolist() == [0, 60 + 4]
        await setup.score(_WORDS, options=replace(left, max_tokens_per_doc=7))
        assert _words(setup.texts[-1]) == _words(_WORDS)[-7:]


@pytest.mark.parametrize("options", [_CHUNK, ScoreOptions(truncation_side=Side.LEFT)])
async def test_of_a_huge_document_only_what_can_be_read_is_tokenized(options: ScoreOptions) -> None:
    class Counting(WordScorer):
        characters = 0

        def edges(self, texts: Sequence[str]) -> list[Edges]:
            self.characters += sum(map(len, texts))
            return super().edges(texts)

    scorer = Counting(max_length=42)
    document = "word " * 1_000_000
    with SharedWorker.open(name="tokenize", threads=1) as worker:
        stage = PassageStage(RecordingStage(), scorer, idle_batcher(), worker, plan=PassagePlan())
        scores = await stage.score("query", [document], options)
    assert scorer.characters < 70_000
    assert abs(int(scores.dropped[0]) - 1_000_000) < 5_000


async def test_white_space_between_words_does_not_hide_the_rest_of_a_document() -> None:
    document = (" " * 2000).join(_words(_WORDS))
    async with _opened() as setup:
        await setup.score(document)
        assert set(_words(" ".join(setup.texts))) == set(_words(_WORDS))
        await setup.score(document, options=ScoreOptions(truncation_side=Side.LEFT))
        assert _words(setup.texts[-1]) == _words(_WORDS)[-40:]


@pytest.mark.parametrize("options", [_CHUNK, ScoreOptions(truncation_side=Side.LEFT)])
@pytest.mark.parametrize("unit", ["x", " "])
async def test_no_more_of_a_document_is_ever_looked_at_than_its_reach(options: ScoreOptions, unit: str) -> None:
    class Counting(WordScorer):
        characters = 0

        def edges(self, texts: Sequence[str]) -> list[Edges]:
            self.characters += sum(map(len, texts))
            return super().edges(texts)

    scorer, inner = Counting(max_length=42), RecordingStage()
    with SharedWorker.open(name="tokenize", threads=1) as worker:
        stage = PassageStage(inner, scorer, idle_batcher(), worker, plan=PassagePlan())
        scores = await stage.score("query", [unit * 5_000_000], options)
    assert scorer.characters <= LOOKED_AT + 65_536
    assert all(len(text) <= LOOKED_AT for _, texts, _ in inner.asked for text in texts)
    assert scores.dropped[0] > 0


@pytest.mark.parametrize("options", [_CHUNK, ScoreOptions(truncation_side=Side.LEFT)])
async def test_nothing_is_tokenized_that_was_not_admitted(options: ScoreOptions) -> None:
    class Refused(WordScorer):
        def room(self, query: str, instruction: str | None = None) -> int:
            raise AssertionError("tokenized")

    batcher = idle_batcher(max_waiting_tokens=100)
    with SharedWorker.open(name="tokenize", threads=1) as worker:
        async with batcher.admit(Estimate(characters=4000, items=100, longest=42), ScoreOptions().terms):
            stage = PassageStage(RecordingStage(), Refused(), batcher, worker, plan=PassagePlan())
            with pytest.raises(Overloaded):
                await stage.score("query", ["word " * 1000] * 10, options)


async def test_documents_that_are_cut_up_are_expected_once() -> None:
    batcher = idle_batcher()
    with SharedWorker.open(name="tokenize", threads=1) as worker:
        stage = PassageStage(RecordingStage(), WordScorer(max_length=42), batcher, worker, plan=PassagePlan())
        await stage.score("query", ["word " * 1000] * 10, _CHUNK)
    assert batcher.admission.reserved_tokens == 0
    assert batcher.admission.expected_of("") == 0


async def test_passages_that_show_nothing_are_not_scored() -> None:
    words = [f"w{number}" for number in range(100)]
    document = " ".join(words[:50] + ["\u200b"] * 200 + words[50:])
    async with _opened() as setup:
        scores = await setup.score(document, "\u200b " * 100)
        *visible, rest = setup.texts
        assert all({*_words(text)} & {*words} for text in visible)
        assert {word for text in visible for word in _words(text)} >= {*words}
        assert {*_words(rest)} == {"\u200b"}, "of a document that shows nothing, one passage is left"
        assert scores.passages is not None
        assert scores.passages.counts.tolist() == [len(visible), 1]
        assert 2 <= len(visible) < 8


async def test_a_document_is_scored_when_all_of_its_passages_are() -> None:
    class Late(RecordingStage):
        async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
            scores = await super().score(query, documents, options)
            return replace(scores, scored=np.array([index != 2 for index in range(len(documents))]))

    with SharedWorker.open(name="tokenize", threads=1) as worker:
        stage = PassageStage(Late(), WordScorer(max_length=42), idle_batcher(), worker, plan=_DEFAULTS)
        scores = await stage.score("query", ["short", _WORDS, "other"], _CHUNK)
    assert scores.scored is not None
    assert scores.scored.tolist() == [True, False, True]


class _Perfect:
    """Selects as the model itself would."""

    async def values(
        self, query: str, passages: Sequence[str], counts: Sequence[int], options: ScoreOptions, /
    ) -> FloatArray:
        del options
        assert sum(counts) == len(passages)
        return np.array([score_of(query, passage) for passage in passages], dtype=np.float32)


async def test_a_perfect_selector_gives_the_best_passage() -> None:
    async with _opened() as setup:
        documents = ["short", _WORDS, " ".join(reversed(_WORDS.split()))]
        whole = await setup.score(*documents)
        setup.inner.asked.clear()
        options = replace(_CHUNK, passages=PassageWishes(select=1), selector=_Perfect())
        selected = await setup.score(*documents, options=options)
        assert selected.values.tolist() == whole.values.tolist()
        assert selected.passages is not None
        assert whole.passages is not None
        assert selected.passages.starts.tolist() == whole.passages.starts.tolist()
        assert selected.passages.counts.tolist() == [1, 1, 1]


@pytest.mark.parametrize("most", [4, 5, 100])
async def test_to_select_all_passages_is_to_read_all(most: int) -> None:
    async with _opened() as setup:
        whole = await setup.score("short", _WORDS)
        selected = await setup.score("short", _WORDS, options=replace(_CHUNK, passages=PassageWishes(select=most)))
        assert selected.values.tolist() == whole.values.tolist()
        assert selected.dropped.tolist() == whole.dropped.tolist()


@pytest.mark.parametrize("most", [1, 2, 3])
async def test_passages_with_query_words_are_read_and_the_others_count_as_not_read(most: int) -> None:
    words = _WORDS.split()
    words[70] = "query"
    async with _opened() as setup:
        document = " ".join(words)
        scores = await setup.score(document, options=replace(_CHUNK, passages=PassageWishes(select=most)))
        assert len(setup.texts) == most
        assert sum("query" in text.split() for text in setup.texts) == min(most, 2)
        assert [document.index(text) for text in setup.texts] == sorted(document.index(text) for text in setup.texts)
        read = {word for text in setup.texts for word in text.split()}
        assert scores.dropped[0] == len(words) - len(read) + 3 * most


async def test_the_operator_bounds_how_many_are_selected() -> None:
    async with _opened(PassagePlan(select=2), truncation=Truncation.CHUNK) as setup:
        await setup.score(_WORDS, options=ScoreOptions(passages=PassageWishes(select=3)))
        assert len(setup.texts) == 2
