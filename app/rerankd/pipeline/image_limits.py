"""Bounds the images of a request, whichever front end it came by."""

from collections.abc import Sequence

from rerankd.domain import ImageLimits, ScoreOptions, Scores, images_of
from rerankd.pipeline.stage import Stage


class ImageLimitStage:
    """Wraps the stages of a model that reads images."""

    def __init__(self, inner: Stage, limits: ImageLimits) -> None:
        self._inner = inner
        self._limits = limits

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Score every document, in the order given.

        Raises:
            RequestTooLarge: there are too many images, or one is too large.
            RerankError: what the inner stage raises.
        """
        images = images_of([query, *documents])
        self._limits.check(images=len(images), largest=max(map(len, images), default=0))
        return await self._inner.score(query, documents, options)
