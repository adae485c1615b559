"""Of a long document the sentences that speak of the query are read."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from rerankd.concurrency.sharing import SharedWorker
from rerankd.domain import Document, PassagePlan, ScoreOptions, Truncation
from rerankd.pipeline.extracts import ExtractStage
from tests.fakes import RecordingStage, WordScorer, idle_batcher

_SENTENCES = [f"Number {number} is a plain sentence here." for number in range(12)]
_SENTENCES[3] = "Honey is made by the bees."
_SENTENCES[9] = "Their hive is full of honey now."
_LONG = " ".join(_SENTENCES)
_EXTRACT = ScoreOptions(truncation=Truncation.EXTRACT)


@asynccontextmanager
async def _opened(max_length: int) -> AsyncIterator[tuple[ExtractStage, RecordingStage]]:
    inner = RecordingStage()
    with SharedWorker.open(name="tokenize", threads=1) as worker:
        scorer = WordScorer(max_length=max_length)
        yield (
            ExtractStage(inner, scorer, idle_batcher(), worker, plan=PassagePlan(), truncation=Truncation.TRUNCATE),
            inner,
        )


async def test_sentences_of_query_words_then_the_beginning_in_their_order() -> None:
    async with _opened(max_length=36) as (stage, inner):
        scores = await stage.score("honey hive", ["short", _LONG], _EXTRACT)
        (_, (short, read), options) = inner.asked[0]
    assert short == "short"
    assert read == " ".join([_SENTENCES[0], _SENTENCES[1], _SENTENCES[3], _SENTENCES[9]])
    assert options.truncation is Truncation.TRUNCATE
    words = len(_LONG.split())
    assert scores.dropped.tolist() == [0, words - len(read.split()) + len(read.split()) // 10]


@pytest.mark.parametrize("max_length", [200, 91])
async def test_what_fits_is_read_whole(max_length: int) -> None:
    async with _opened(max_length=max_length) as (stage, inner):
        await stage.score("honey", [_LONG], _EXTRACT)
        assert inner.asked[0][1] == [_LONG]


async def test_a_request_may_allow_less() -> None:
    async with _opened(max_length=200) as (stage, inner):
        await stage.score("honey", [_LONG], replace(_EXTRACT, max_tokens_per_doc=12))
        assert inner.asked[0][1] == [_SENTENCES[3]]


async def test_an_extract_keeps_its_document_s_image() -> None:
    async with _opened(max_length=36) as (stage, inner):
        await stage.score("honey", [Document(_LONG, image=b"bee")], _EXTRACT)
        (read,) = inner.asked[0][1]
    assert isinstance(read, Document)
    assert read.image == b"bee"
    assert _SENTENCES[3] in read


async def test_other_policies_pass() -> None:
    async with _opened(max_length=36) as (stage, inner):
        await stage.score("honey", [_LONG], ScoreOptions())
        assert inner.asked[0][1] == [_LONG]
