"""A document with an image reaches the scorer as it came, whatever stages lie between, and a text model refuses it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from rerankd.cache.memory import MemoryCache
from rerankd.concurrency.sharing import SharedWorker
from rerankd.domain import Document, PassagePlan, PassageWishes, ScoreOptions, Scores, Side, Truncation
from rerankd.errors import InvalidRequest
from rerankd.pipeline.blanks import BlankStage, drops_nothing
from rerankd.pipeline.cached import CachedStage
from rerankd.pipeline.cached_list import CachedListStage
from rerankd.pipeline.cascade import CascadeStage, Member
from rerankd.pipeline.passages import PassageStage
from rerankd.pipeline.stage import Stage
from rerankd.pipeline.text_only import TextOnlyStage
from tests.fakes import RecordingObserver, RecordingStage, WordScorer, idle_batcher

_LONG = " ".join(f"w{number}" for number in range(100))
_PAGE = Document(_LONG, image=b"a page")
_PHOTO = Document(image=b"a photo")


@asynccontextmanager
async def _opened(inner: Stage) -> AsyncIterator[Stage]:
    """All that lies between a dialect and a scorer of pairs."""
    cached = CachedStage(inner, MemoryCache(max_entries=100), fingerprint="f", observer=RecordingObserver())
    with SharedWorker.open(name="tokenize", threads=1) as worker:
        passages = PassageStage(cached, WordScorer(max_length=42), idle_batcher(), worker, plan=PassagePlan())
        yield BlankStage(passages, worker, drops=drops_nothing)


async def _read(inner: RecordingStage, stage: Stage, options: ScoreOptions, *documents: str) -> Sequence[str]:
    """What reached the scorer."""
    before = len(inner.asked)
    await stage.score("query", documents, options)
    return [document for _, asked, _ in inner.asked[before:] for document in asked]


def _images(documents: Sequence[str]) -> list[bytes | None]:
    return [document.image if isinstance(document, Document) else None for document in documents]


async def test_an_image_reaches_the_scorer_beside_its_text() -> None:
    inner = RecordingStage()
    async with _opened(inner) as stage:
        assert await _read(inner, stage, ScoreOptions(), "text", _PAGE, "", _PHOTO) == ["text", _PAGE, _PHOTO]


@pytest.mark.parametrize("side", Side)
async def test_a_text_that_is_cut_keeps_its_image(side: Side) -> None:
    inner = RecordingStage()
    options = ScoreOptions(truncation=Truncation.TRUNCATE, truncation_side=side)
    async with _opened(inner) as stage:
        read = await _read(inner, stage, options, _LONG, _PAGE, _PHOTO)
    assert _images(read) == [None, b"a page", b"a photo"]


async def test_every_passage_is_read_beside_the_image() -> None:
    inner = RecordingStage()
    options = ScoreOptions(truncation=Truncation.CHUNK, passages=PassageWishes(tokens=36, overlap=0, max_passages=3))
    async with _opened(inner) as stage:
        read = await _read(inner, stage, options, _PAGE, _PHOTO)
    assert len(read) == 4
    assert _images(read) == [b"a page"] * 3 + [b"a photo"]


async def test_the_cache_tells_images_apart() -> None:
    inner = RecordingStage()
    async with _opened(inner) as stage:
        await stage.score("query", ["same", Document("same", image=b"one")], ScoreOptions())
        again = ["same", Document("same", image=b"one"), Document("same", image=b"other")]
        assert await _read(inner, stage, ScoreOptions(), *again) == again[2:]


async def test_a_list_with_another_image_is_another_list() -> None:
    inner = RecordingStage()
    stage = CachedListStage(inner, MemoryCache(max_entries=100), fingerprint="f", observer=RecordingObserver())
    for documents in (
        [_PAGE, _PHOTO],
        [_PAGE, _PHOTO],
        [_PAGE, Document(image=b"other")],
        [_PHOTO, _PAGE],
        [_PAGE, ""],
    ):
        await stage.score("query", documents, ScoreOptions())
    assert [_images(documents) for _, documents, _ in inner.asked] == [
        [b"a page", b"a photo"],
        [b"a page", b"other"],
        [b"a photo", b"a page"],
        [b"a page", None],
    ]


async def test_a_model_that_reads_text_only_refuses_an_image_by_its_name() -> None:
    inner = RecordingStage()
    stage = TextOnlyStage(inner, model="minilm-qa")
    with pytest.raises(InvalidRequest, match="model 'minilm-qa' reads text only, and a document has an image"):
        await stage.score("query", ["text", _PAGE], ScoreOptions())
    assert not inner.asked
    scores: Scores = await stage.score("query", ["text"], ScoreOptions())
    assert len(scores) == 1


async def test_a_member_of_a_cascade_refuses_what_it_cannot_read() -> None:
    first, second = RecordingStage(), RecordingStage()
    members = [Member("seeing", first, None), Member("blind", TextOnlyStage(second, model="blind"), 2)]
    with pytest.raises(InvalidRequest, match="model 'blind' reads text only"):
        await CascadeStage(members).score("query", [_PAGE, "text"], ScoreOptions())
    assert _images(first.asked[0][1]) == [b"a page", None]
