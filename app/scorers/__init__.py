"""The scorers by name. A new one is a file of this folder and one line here: pair scorers or list scorers."""

from collections.abc import Callable
from typing import Final

from app.errors import ConfigError
from app.scorers.base import ListScorer, PairScorer, ScorerSpec
from app.scorers.cross_encoder import CrossEncoder
from app.scorers.first import First
from app.scorers.generative import Generative
from app.scorers.yes_no import YesNo

SCORERS: Final[dict[str, Callable[[ScorerSpec], PairScorer]]] = {
    "cross-encoder": CrossEncoder.load,
    "yes-no": YesNo.load,
}
LIST_SCORERS: Final[dict[str, Callable[[ScorerSpec], ListScorer]]] = {
    "first": First.load,
    "generative": Generative.load,
}


def load_scorer(name: str, spec: ScorerSpec) -> PairScorer:
    """Load a scorer of pairs.

    Raises:
        ConfigError: no such scorer, or the model's files do not suit it.
    """
    if name not in SCORERS:
        raise ConfigError(f"unknown scorer {name!r}; known: {', '.join([*SCORERS, *LIST_SCORERS])}")
    return SCORERS[name](spec)


def load_list_scorer(name: str, spec: ScorerSpec) -> ListScorer:
    """Load a scorer of lists; `name` is one of `LIST_SCORERS`.

    Raises:
        ConfigError: the model's files do not suit it.
    """
    return LIST_SCORERS[name](spec)
