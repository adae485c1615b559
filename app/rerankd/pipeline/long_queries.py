"""Decides how much of a query is read, and how much that leaves for the documents."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rerankd.concurrency.sharing import SharedWorker
from rerankd.domain import ScoreOptions, Scores, Side, Truncation
from rerankd.errors import InvalidRequest, TooLong
from rerankd.pipeline.chunks import share_of
from rerankd.pipeline.stage import Stage
from rerankd.scorers.base import PairReader


@dataclass(frozen=True, slots=True)
class _Read:
    """What is read of a query, how many of its tokens are not, and the options for the documents beside it."""

    query: str
    dropped: int
    options: ScoreOptions


class LongQueryStage:
    """Wraps a stage that refuses queries which leave no room for documents. That is right unless the caller asked for a
    cut: by `truncation: truncate`, or by a number of tokens for the query or for the pair.

    A query that leaves no room keeps half of what the model reads. Cutting the longer of query and document, token by
    token, gives the same beside a long document. Half does not depend on a request's other documents. Where queries are
    read by themselves, `query_room` says how many tokens the model reads of one.
    """

    def __init__(
        self,
        inner: Stage,
        reader: PairReader,
        tokenizing: SharedWorker,
        *,
        query_room: Callable[[], int] | None = None,
    ) -> None:
        self._inner = inner
        self._reader = reader
        self._tokenizing = tokenizing
        self._query_room = query_room

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Score every document, in the order given; `query_dropped` says how much of the query was not read.

        Raises:
            InvalidRequest: the tokens that are allowed leave none for a document.
            RerankError: what the inner stage raises.
        """
        if not self._may_be_cut(query, options):
            return await self._inner.score(query, documents, options)
        share = share_of(options.terms, [query])
        read = await self._tokenizing.run(share, self._cut, query, options)
        scores = await self._inner.score(read.query, documents, read.options)
        return replace(scores, query_dropped=read.dropped) if read.dropped else scores

    def _may_be_cut(self, query: str, options: ScoreOptions) -> bool:
        if options.max_tokens_per_query is not None or options.max_tokens_per_pair is not None:
            return True
        # Almost no text has two tokens a byte.
        return options.truncation is Truncation.TRUNCATE and 2 * len(query.encode()) > self._reader.max_length

    def _cut(self, query: str, options: ScoreOptions) -> _Read:
        """Blocking."""
        dropped = 0
        if options.max_tokens_per_query is not None:
            query, dropped = self._beginning(query, options.max_tokens_per_query, options.truncation_side)
            if dropped and options.truncation is Truncation.ERROR:
                raise InvalidRequest(TooLong(problem=f"the query has {dropped} tokens more than max_tokens_per_query"))
        if options.truncation is not Truncation.TRUNCATE:
            return _Read(query, dropped, options)
        # What the model could read and the caller does not want.
        spare = max(0, self._reader.max_length - (options.max_tokens_per_pair or self._reader.max_length))
        room = self._room(query, options) - spare
        if room < 1 or (spare and self._query_room):
            query, more = self._beginning(query, self._most(spare, options), options.truncation_side)
            dropped += more
            room = self._reader.room(query, options.instruction) - spare
        if spare:
            options = replace(options, max_tokens_per_doc=min(room, options.max_tokens_per_doc or room))
        return _Read(query, dropped, options)

    def _room(self, query: str, options: ScoreOptions) -> int:
        """How many tokens of a document fit beside a query; 0: none.

        Raises:
            InvalidRequest: the model reads no instruction, or it is the instruction that is too long.
        """
        try:
            return self._reader.room(query, options.instruction)
        except InvalidRequest:
            # Raises again if it is not the query that is too long.
            self._reader.room("", options.instruction)
            return 0

    def _most(self, spare: int, options: ScoreOptions) -> int:
        """How many tokens a query keeps.

        Raises:
            InvalidRequest: none, or none would be left for a document.
        """
        empty = self._reader.room("", options.instruction)
        most = self._query_room() - spare if self._query_room else (empty - spare) // 2
        if most < 1:
            raise InvalidRequest(
                f"{options.max_tokens_per_pair} tokens leave no room for a query and a document beside what this model "
                f"reads around them; allow at least {self._reader.max_length - empty + 2}"
            )
        return most

    def _beginning(self, query: str, most: int, side: Side) -> tuple[str, int]:
        """At most that many tokens of a query, or of its end where the left is cut, and how many others it has."""
        (edges,) = self._reader.edges([query])
        dropped = max(0, edges.tokens - most)
        if side is Side.LEFT:
            return query[int(edges.characters[dropped]) :], dropped
        return query[: int(edges.characters[edges.tokens - dropped])], dropped
