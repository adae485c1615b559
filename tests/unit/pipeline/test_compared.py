"""Vectors of texts are embedded once, kept, and compared."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from rerankd.batching.batcher import Batcher
from rerankd.cache import connect_cache
from rerankd.cache.base import Cache
from rerankd.cache.memory import MemoryCache
from rerankd.concurrency.sharing import SharedWorker
from rerankd.domain import FloatArray, ScoreOptions, Scores, Terms, Truncation
from rerankd.errors import DeadlineExceeded, InvalidRequest, Overloaded
from rerankd.pipeline.cached_texts import CachedTexts
from rerankd.pipeline.compared import ComparedStage
from rerankd.pipeline.embedded import BatchedTexts, Texts
from rerankd.pipeline.vector_codec import Entry, VectorCodec
from rerankd.scorers.base import EncodedTexts, Role, VectorForm, Vectors
from rerankd.tasks.embed import Embed, EncodedText
from tests.fakes import GatedEngine, RecordingObserver, ScriptedCache, logit_of, running_batcher
from tests.servers import redis_server

_DOCUMENTS = ["a b c", "dd", "ee f g h i", "dd"]
_FORM = VectorForm(np.dtype("<f4"), (2,))


class EmbeddingEngine(GatedEngine):
    """A text's vector is `logit_of` its ids, and one."""

    def run(self, texts: Sequence[EncodedText]) -> FloatArray:
        values = self.compute([text.ids.tolist() for text in texts])
        return np.array([[value, 1] for value in values], dtype=np.float32)

    @property
    def embedded(self) -> int:
        return sum(map(len, self.batches))


class WordEmbedder:
    """Every word is a token. A query's ids begin with 1, a document's with 2; eight words of either are read."""

    task = Embed(outputs=2)
    max_length = 9
    form = _FORM

    def encode(
        self, role: Role, texts: Sequence[str], *, max_tokens: int | None, instruction: str | None = None
    ) -> EncodedTexts[EncodedText]:
        first = 1 if role == "query" else 2
        words = [[*(instruction or "").split(), *text.split()] for text in texts]
        room = min(8, max_tokens or 8)
        ids = [np.array([first, *map(len, one[:room])], dtype=np.int64) for one in words]
        dropped = np.array([max(0, len(one) - room) for one in words], dtype=np.int64)
        return EncodedTexts([EncodedText(one, len(one)) for one in ids], dropped)

    def vectors(self, _text: EncodedText, vector: FloatArray, /) -> Vectors:
        return vector

    def compare(self, query: Vectors, documents: Sequence[Vectors], /) -> FloatArray:
        return np.array([vector @ query for vector in documents], dtype=np.float32)


def _score(query: str, document: str) -> float:
    values = [logit_of([first, *map(len, text.split())]) for first, text in ((1, query), (2, document))]
    return float(np.float32(values[0]) * np.float32(values[1]) + 1)


@dataclass
class Setup:
    engine: EmbeddingEngine
    observer: RecordingObserver
    stage: ComparedStage

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions | None = None) -> Scores:
        return await self.stage.score(query, documents, options or ScoreOptions())


@asynccontextmanager
async def running(
    cache: Cache | None = None, *, engine: EmbeddingEngine | None = None, embedder: WordEmbedder | None = None
) -> Any:
    engine, observer = engine or EmbeddingEngine(), RecordingObserver()
    # It knows what these stages ask of it.
    scorer: Any = embedder or WordEmbedder()
    with SharedWorker.open(name="tokenize", threads=1) as tokenizing:
        async with running_batcher(engine, observer) as batcher:
            texts = _texts(scorer, batcher, tokenizing, cache, observer)
            yield Setup(engine, observer, ComparedStage(scorer, texts, tokenizing))


def _texts(
    scorer: Any, batcher: Batcher[Any, Any], tokenizing: SharedWorker, cache: Cache | None, observer: RecordingObserver
) -> Texts:
    batched: Texts = BatchedTexts(scorer, batcher, tokenizing)
    return (
        batched if cache is None else CachedTexts(batched, cache, scorer.form, fingerprint="model-1", observer=observer)
    )


async def test_every_document_is_compared_with_the_query() -> None:
    async with running() as setup:
        scores = await setup.score("who knows", _DOCUMENTS)
    assert scores.values.tolist() == pytest.approx([_score("who knows", text) for text in _DOCUMENTS], rel=1e-6)
    # The query's three are among them.
    assert scores.tokens.tolist() == [5, 3, 7, 2]
    assert scores.cached is None
    assert scores.timings.inference_s > 0


async def test_another_query_over_the_same_documents_costs_one_embedding() -> None:
    async with running(MemoryCache(max_entries=100)) as setup:
        first = await setup.score("who", _DOCUMENTS)
        assert setup.engine.embedded == 4
        second = await setup.score("who else", _DOCUMENTS)
        assert setup.engine.embedded == 5
        third = await setup.score("who", _DOCUMENTS)
        assert setup.engine.embedded == 5
    assert [scores.cached.tolist() for scores in (first, second, third)] == [
        [False, False, False, True],
        [True] * 4,
        [True] * 4,
    ]
    assert second.values.tolist() == pytest.approx([_score("who else", text) for text in _DOCUMENTS], rel=1e-6)
    assert first.values.tolist() == third.values.tolist()
    assert third.tokens.tolist() == [5, 3, 6, 2]


@pytest.mark.parametrize(
    ("options", "embedded"),
    [
        (ScoreOptions(), 0),
        (ScoreOptions(max_tokens_per_doc=2), 3),
        (ScoreOptions(instruction="briefly"), 1),
        (ScoreOptions(scope="somebody"), 4),
    ],
)
async def test_what_changes_a_text_is_embedded_again(options: ScoreOptions, embedded: int) -> None:
    async with running(MemoryCache(max_entries=100)) as setup:
        await setup.score("who", _DOCUMENTS)
        before = setup.engine.embedded
        await setup.score("who", _DOCUMENTS, options)
        assert setup.engine.embedded - before == embedded


async def test_a_query_and_a_document_of_the_same_words_are_two_texts() -> None:
    async with running(MemoryCache(max_entries=100)) as setup:
        scores = await setup.score("d", ["d"])
        assert setup.engine.embedded == 2
    assert scores.values.tolist() == pytest.approx([_score("d", "d")])


async def test_a_broken_cache_is_an_empty_one() -> None:
    cache = ScriptedCache()
    cache.failing = True
    async with running(cache) as setup:
        scores = await setup.score("who", _DOCUMENTS)
        assert {one["operation"] for one in setup.observer.named("cache_failed")} == {"get", "put"}
    assert scores.values.tolist() == pytest.approx([_score("who", text) for text in _DOCUMENTS], rel=1e-6)


async def test_a_model_that_gives_no_number_is_not_remembered() -> None:
    cache = ScriptedCache()
    async with running(cache, engine=EmbeddingEngine()) as setup:
        setup.engine.offset = float("nan")
        await setup.score("who", ["a b c"])
    assert cache.entries == {}


async def test_huge_numbers_that_somebody_stored_are_a_miss_and_not_an_error() -> None:
    cache = ScriptedCache()
    async with running(cache) as setup:
        before = await setup.score("who", _DOCUMENTS[:3])
        codec = VectorCodec(_FORM)
        huge = codec.write(Entry(np.array([3e38, -3e38], dtype="<f4"), tokens=3, dropped=0))
        cache.entries = dict.fromkeys(cache.entries, huge)
        after = await setup.score("who", _DOCUMENTS[:3])
        assert setup.observer.named("cache_looked_up")[-1]["hits"] == 0
    assert after.values.tolist() == before.values.tolist()


async def test_known_texts_count_against_a_quota_as_the_first_time() -> None:
    class Meter:
        limited = True
        tokens = 0

        async def reserve(self, tokens: int) -> None:
            pass

        def read(self, tokens: int) -> None:
            self.tokens += tokens

        def compute(self, tokens: int) -> None:
            pass

        def start_over(self) -> None:
            pass

    meters = [Meter(), Meter()]
    async with running(MemoryCache(max_entries=100)) as setup:
        for meter in meters:
            await setup.score("who", ["a b c", "d"], ScoreOptions(terms=Terms(meter=meter)))
    assert [meter.tokens for meter in meters] == [8, 8]


async def test_the_vectors_of_a_request_are_held_before_they_are_computed() -> None:
    held: list[int] = []

    def hold(size: int) -> None:
        held.append(size)
        if size > 100:
            raise Overloaded("no room")

    terms = Terms(hold=hold)
    async with running() as setup:
        await setup.score("who", ["a b c", "d"], ScoreOptions(terms=terms))
        embedded = setup.engine.embedded
        size = held[-1]
        with pytest.raises(Overloaded):
            await setup.score("why", ["a b c", "d"] * (1 + 100 // size), ScoreOptions(terms=terms))
        assert setup.engine.embedded <= embedded + 1, "at most the query"
    assert 0 < size <= 100


async def test_under_truncation_error_nothing_is_computed_if_a_document_does_not_fit() -> None:
    refusing = ScoreOptions(truncation=Truncation.ERROR)
    documents = ["a", "b " * 10]
    for cache in (None, MemoryCache(max_entries=100)):
        async with running(cache) as setup:
            for _ in range(2):
                scores = await setup.score("who", documents, refusing)
                assert np.isnan(scores.values).all()
                assert scores.dropped.tolist() == [0, 2]
            assert setup.engine.embedded == (2 if cache is None else 1)
            with pytest.raises(InvalidRequest, match="2 tokens too long"):
                await setup.score("w " * 10, ["a"], refusing)


async def test_documents_without_vectors_at_the_deadline_have_no_score() -> None:
    documents = ["x" * letters for letters in range(2, 100)]
    async with running(engine=EmbeddingEngine(pairs=1, seconds_per_pass=0.03)) as setup:
        terms = Terms(deadline=perf_counter() + 0.6, partial=True)
        scores = await setup.score("who", documents, ScoreOptions(terms=terms))
        assert scores.scored is not None
        assert 0 < scores.scored.sum() < len(scores)
        assert np.isfinite(scores.values[scores.scored]).all()
        assert (scores.tokens > 0).tolist() == scores.scored.tolist()


async def test_without_the_querys_vector_there_is_no_partial_answer() -> None:
    async with running(engine=EmbeddingEngine()) as setup:
        setup.engine.gate.clear()
        terms = Terms(deadline=perf_counter() + 0.1, partial=True)
        with pytest.raises(DeadlineExceeded):
            await setup.score("who", ["a"], ScoreOptions(terms=terms))
        setup.engine.gate.set()


class Ticking(WordEmbedder):
    """Counts the turns of the event loop, and those in which it was asked for vectors."""

    def __init__(self) -> None:
        self.turn = 0
        self.turns_of_vectors: list[int] = []

    async def tick(self) -> None:
        while True:
            self.turn += 1
            await asyncio.sleep(0)

    def vectors(self, text: EncodedText, vector: FloatArray, /) -> Vectors:
        self.turns_of_vectors.append(self.turn)
        return super().vectors(text, vector)


async def test_other_work_has_its_turn_while_many_vectors_are_taken() -> None:
    embedder = Ticking()
    documents = [f"{'x' * (1 + number % 30)} {'y' * (number // 30)}" for number in range(1000)]
    async with running(embedder=embedder) as setup:
        ticking = asyncio.create_task(embedder.tick())
        await setup.score("who", documents)
        ticking.cancel()
    assert len(embedder.turns_of_vectors) == 1001
    assert max(Counter(embedder.turns_of_vectors).values()) <= 251


@pytest.mark.redis
async def test_services_with_one_secret_share_vectors_in_redis(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        url = f"redis://127.0.0.1:{server.port}/0?timeout_ms=2000"
        caches = [await connect_cache(url, secret=secret) for secret in ("a" * 16, "a" * 16, "b" * 16)]
        scores, embedded = [], []
        for cache in caches:
            async with running(cache) as setup:
                scores.append((await setup.score("who", _DOCUMENTS)).values.tolist())
                embedded.append(setup.engine.embedded)
            assert cache is not None
            await cache.close()
    assert embedded == [4, 0, 4]
    assert scores[0] == scores[1] == scores[2]


class TokenEmbedder(WordEmbedder):
    """As many vectors as ColBERT has of a document."""

    rows = np.ones((180, 128), dtype="<f4")
    form = VectorForm(rows.dtype, (-1, 128))

    def vectors(self, _text: EncodedText, _vector: FloatArray, /) -> Vectors:
        return self.rows

    def compare(self, query: Vectors, documents: Sequence[Vectors], /) -> FloatArray:
        return np.array([vectors[0] @ query[0] for vectors in documents], dtype=np.float32)


class WeighedCache(MemoryCache):
    """Knows the most bytes that it was sent, or asked for, at once."""

    heaviest = 0

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        found = await super().get_many(keys)
        self.heaviest = max(self.heaviest, sum(len(entry or b"") for entry in found))
        return found

    async def put_many(self, entries: Mapping[bytes, bytes], *, owner: str = "") -> None:
        self.heaviest = max(self.heaviest, sum(map(len, entries.values())))
        await super().put_many(entries, owner=owner)


async def test_a_cache_is_not_sent_the_vectors_of_many_tokens_at_once() -> None:
    """Redis would not answer within its timeout, and after three such failures no model asks it for a while."""
    cache = WeighedCache(max_entries=100_000)
    documents = ["x" * (1 + number) for number in range(60)]
    async with running(cache, embedder=TokenEmbedder()) as setup:
        await setup.score("who", documents)
        known = await setup.score("who", documents)
    assert known.cached.all()
    assert 2**20 < cache.heaviest < 2 * 2**20


_FORMS = {
    "one vector": (VectorForm(np.dtype("<f4"), (3,)), np.array([1, 2, 3], dtype="<f4")),
    "halves": (VectorForm(np.dtype("<f2"), (3,)), np.array([1, 2, 3], dtype="<f2")),
    "one for each token": (VectorForm(np.dtype("<f4"), (-1, 2)), np.arange(6, dtype="<f4").reshape(3, 2)),
    "weights of words": (
        VectorForm(np.dtype([("token", "<u4"), ("weight", "<f4")]), (-1,)),
        np.array([(3, 0.5), (9, 2.0)], dtype=[("token", "<u4"), ("weight", "<f4")]),
    ),
}


@pytest.mark.parametrize("name", _FORMS)
def test_an_entry_is_read_as_it_was_written(name: str) -> None:
    form, vectors = _FORMS[name]
    codec = VectorCodec(form)
    found = codec.read(codec.write(Entry(vectors, tokens=7, dropped=2)))
    assert found is not None
    assert (found.tokens, found.dropped) == (7, 2)
    assert found.vectors.dtype == form.dtype
    assert found.vectors.tolist() == vectors.tolist()


@pytest.mark.parametrize("name", _FORMS)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda entry: None,  # noqa: ARG005 - nothing is there
        lambda entry: b"",  # noqa: ARG005
        lambda entry: b"pr01" + entry[4:],
        lambda entry: entry[:-1],
        lambda entry: entry[:12],
        lambda entry: entry[:-4] + b"\xff\xff\xff\xff",
    ],
)
def test_what_is_no_such_entry_is_a_miss(name: str, spoil: Any) -> None:
    form, vectors = _FORMS[name]
    codec = VectorCodec(form)
    assert codec.read(spoil(codec.write(Entry(vectors, tokens=7, dropped=2)))) is None


def test_an_entry_of_another_width_is_a_miss() -> None:
    form, vectors = _FORMS["one vector"]
    entry = VectorCodec(form).write(Entry(vectors, tokens=1, dropped=0))
    assert VectorCodec(replace(form, shape=(4,))).read(entry) is None
