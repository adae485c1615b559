"""Cuts a query that leaves no room for documents, if the request says `truncation: truncate`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from rerankd.concurrency.sharing import SharedWorker
from rerankd.domain import ScoreOptions, Scores, Side, Truncation
from rerankd.errors import InvalidRequest
from rerankd.pipeline.chunks import share_of
from rerankd.pipeline.stage import Stage
from rerankd.scorers.base import PairReader


class LongQueryStage:
    """Wraps a stage that refuses such queries, which is right unless the caller asked for a cut. `kept` says how many
    of its tokens a query that is too long keeps, given the instruction; by default `half_of_reader`.
    """

    def __init__(
        self,
        inner: Stage,
        reader: PairReader,
        tokenizing: SharedWorker,
        *,
        kept: Callable[[str | None], int] | None = None,
    ) -> None:
        self._inner = inner
        self._reader = reader
        self._tokenizing = tokenizing
        self._kept = kept or partial(half_of_reader, reader)

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Score every document, in the order given; `query_dropped` says how much of the query was not read.

        Raises:
            RerankError: what the inner stage raises.
        """
        # Almost no text has two tokens a byte.
        if options.truncation is not Truncation.TRUNCATE or 2 * len(query.encode()) <= self._reader.max_length:
            return await self._inner.score(query, documents, options)
        share = share_of(options.terms, [query])
        read, dropped = await self._tokenizing.run(share, self._cut, query, options)
        scores = await self._inner.score(read, documents, options)
        return replace(scores, query_dropped=dropped) if dropped else scores

    def _cut(self, query: str, options: ScoreOptions) -> tuple[str, int]:
        """What is read of a query, and how many tokens are not. Blocking."""
        try:
            self._reader.room(query, options.instruction)
        except InvalidRequest:
            # Raises again if it is not the query that is too long.
            self._reader.room("", options.instruction)
            kept = self._kept(options.instruction)
        else:
            return query, 0
        (edges,) = self._reader.edges([query])
        dropped = max(0, edges.tokens - kept)
        if options.truncation_side is Side.LEFT:
            return query[int(edges.characters[dropped]) :], dropped
        return query[: int(edges.characters[edges.tokens - dropped])], dropped


def half_of_reader(reader: PairReader, instruction: str | None) -> int:
    """Half of what the model reads. Cutting the longer of query and document, token by token, gives the same beside a
    long document. Half does not depend on a request's other documents.
    """
    return reader.room("", instruction) // 2
