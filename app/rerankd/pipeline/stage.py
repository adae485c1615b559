"""What a stage is. Stages wrap one another; an option of the service is one more stage, not a branch in all of them."""

from collections.abc import Sequence
from typing import Protocol

from rerankd.domain import ScoreOptions, Scores


class Stage(Protocol):
    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Score every document, in the order given. Documents are not empty and the list is not.

        Raises:
            RerankError: see `rerankd.errors`.
        """
