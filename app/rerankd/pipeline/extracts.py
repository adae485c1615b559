"""Reads of a long document the sentences that speak of the query, instead of its beginning."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Final

import numpy as np

from rerankd.batching.admission import Estimate
from rerankd.batching.ticket import Intake
from rerankd.concurrency.sharing import SharedWorker
from rerankd.domain import Document, PassagePlan, ScoreOptions, Scores, Timings, Truncation
from rerankd.pipeline.chunks import chunks, share_of
from rerankd.pipeline.passages import EDGE_TOKENS, reach_of
from rerankd.pipeline.query_words import extract, words_of
from rerankd.pipeline.sentences import sentences
from rerankd.pipeline.stage import Stage
from rerankd.scorers.base import Edges, PairReader
from rerankd.scorers.beginnings import Part, read_parts

_DOCUMENTS_PER_CALL: Final = 64
_CHARACTERS_PER_CALL: Final = 100_000
# As admission believes, before anything is tokenized.
_USUAL_CHARS_PER_TOKEN: Final = 4


@dataclass(frozen=True, slots=True)
class _Extract:
    """What is read of a document, and how many of its tokens are not."""

    text: str
    dropped: int


class ExtractStage:
    """Wraps the stages that score a document by itself. Documents are searched as far as `plan` reads them."""

    def __init__(
        self,
        inner: Stage,
        reader: PairReader,
        batcher: Intake[Any, Any],
        tokenizing: SharedWorker,
        *,
        plan: PassagePlan,
        truncation: Truncation,
    ) -> None:
        """`truncation` is the operator's; a request may wish otherwise."""
        self._inner = inner
        self._reader = reader
        self._batcher = batcher
        self._tokenizing = tokenizing
        self._plan = plan
        self._truncation = truncation

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Score every document, in the order given, by its extract.

        Raises:
            RerankError: what the inner stage raises.
        """
        if (options.truncation or self._truncation) is not Truncation.EXTRACT:
            return await self._inner.score(query, documents, options)
        started = perf_counter()
        async with self._batcher.admit(self._estimate(documents), options.terms) as ticket:
            extracts = await self._extract(query, documents, options)
            # Extracts that are in the cache cost nothing more, and the others ask for themselves.
            ticket.release_to_ask_again()
        cutting = Timings(tokenize_s=perf_counter() - started)
        whole = replace(options, truncation=Truncation.TRUNCATE, max_tokens_per_doc=None)
        scores = await self._inner.score(query, [one.text for one in extracts], whole)
        dropped = scores.dropped + np.array([one.dropped for one in extracts], dtype=np.int64)
        return replace(scores, dropped=dropped, timings=scores.timings + cutting)

    def _estimate(self, documents: Sequence[str]) -> Estimate:
        most = self._reader.max_length * _USUAL_CHARS_PER_TOKEN
        characters = sum(min(len(document), most) for document in documents)
        return Estimate(characters=characters, items=len(documents), longest=self._reader.max_length)

    async def _extract(self, query: str, documents: Sequence[str], options: ScoreOptions) -> list[_Extract]:
        terms = options.terms
        room = await self._tokenizing.run(share_of(terms, [query]), self._reader.room, query, options.instruction)
        room = min(room, options.max_tokens_per_doc or room)
        words = words_of(query)
        extracts: list[_Extract] = []
        for span, share in chunks(documents, terms, most=_DOCUMENTS_PER_CALL, characters=_CHARACTERS_PER_CALL):
            extracts += await self._tokenizing.run(share, self._extract_all, words, documents[span], room)
        return extracts

    def _extract_all(self, query: Sequence[str], documents: Sequence[str], room: int) -> list[_Extract]:
        """Blocking."""
        most = self._plan.max_passages * room
        parts = read_parts(
            documents, self._reader.edges, enough=lambda edges: edges.tokens > most, reach=reach_of(most)
        )
        return [_extract(query, *pair, room=room) for pair in zip(documents, parts, strict=True)]


def _extract(query: Sequence[str], document: str, part: Part[Edges], *, room: int) -> _Extract:
    edges = part.content
    tokens = edges.tokens + part.beyond(edges.tokens)
    if tokens <= room:
        return _Extract(document, 0)
    # Sentences that stand together otherwise than in their document may have a few tokens more.
    most = max(1, room - EDGE_TOKENS)
    spans = sentences(document, edges, length=most)
    lengths = [_tokens(edges, start, end) for start, end in spans]
    texts = [document[start:end] for start, end in spans]
    chosen = extract(query, texts, lengths, room=most)
    if not chosen:
        return _Extract(document, 0)
    read = " ".join(texts[index] for index in chosen)
    if isinstance(document, Document):
        read = Document(read, image=document.image)
    return _Extract(read, tokens - sum(lengths[index] for index in chosen))


def _tokens(edges: Edges, start: int, end: int) -> int:
    first, last = np.searchsorted(edges.characters[1:], [start + 1, end])
    return int(last - first) + 1
