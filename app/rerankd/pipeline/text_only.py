"""Refuses images where the model would read the text alone."""

from collections.abc import Sequence

from rerankd.domain import Document, ScoreOptions, Scores
from rerankd.errors import InvalidRequest
from rerankd.pipeline.stage import Stage


class TextOnlyStage:
    """Wraps the stage of a scorer that reads texts. `model` is its name, for the message."""

    def __init__(self, inner: Stage, *, model: str) -> None:
        self._inner = inner
        self._model = model

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Score every document, in the order given.

        Raises:
            InvalidRequest: a document or the query has an image.
            RerankError: what the inner stage raises.
        """
        with_image = "the query" if type(query) is Document else "a document"
        if Document in {type(query), *map(type, documents)}:
            raise InvalidRequest(
                f"model {self._model!r} reads text only, and {with_image} has an image: send its text alone, or name a "
                "model that reads images"
            )
        return await self._inner.score(query, documents, options)
