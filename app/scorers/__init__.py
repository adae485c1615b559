"""The scorers by name. A new one is a file of this folder and one line here."""

from collections.abc import Callable
from typing import Final

from app.errors import ConfigError
from app.scorers.base import PairScorer, ScorerSpec
from app.scorers.cross_encoder import CrossEncoder

SCORERS: Final[dict[str, Callable[[ScorerSpec], PairScorer]]] = {
    "cross-encoder": CrossEncoder.load,
}


def load_scorer(name: str, spec: ScorerSpec) -> PairScorer:
    """Load a scorer.

    Raises:
        ConfigError: no such scorer, or the model's files do not suit it.
    """
    if name not in SCORERS:
        raise ConfigError(f"unknown scorer {name!r}; known: {', '.join(SCORERS)}")
    return SCORERS[name](spec)
