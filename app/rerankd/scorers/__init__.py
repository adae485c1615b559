"""The scorers by name. A new one is a file of this folder and one line here: pair scorers or list scorers."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import BaseModel

from rerankd.config.options import read_options
from rerankd.errors import ConfigError
from rerankd.scorers.base import AnyListScorer, AnyPairScorer, Scorer, ScorerSpec
from rerankd.scorers.cross_encoder import CrossEncoder, CrossEncoderOptions
from rerankd.scorers.first import First, FirstOptions
from rerankd.scorers.generative import Generative
from rerankd.scorers.list_prompt import WindowOptions
from rerankd.scorers.prompted_classifier import PromptedClassifier, PromptedClassifierOptions
from rerankd.scorers.yes_no import YesNo, YesNoOptions

SCORERS: Final[dict[str, Callable[[ScorerSpec], AnyPairScorer]]] = {
    "cross-encoder": CrossEncoder.load,
    "prompted-classifier": PromptedClassifier.load,
    "yes-no": YesNo.load,
}
LIST_SCORERS: Final[dict[str, Callable[[ScorerSpec], AnyListScorer]]] = {
    "first": First.load,
    "generative": Generative.load,
}
# Those that read logits, which a graph gives.
EXPORTED_SCORERS: Final = ("cross-encoder", "yes-no", "first")

_OPTIONS: Final[dict[str, type[BaseModel]]] = {
    "cross-encoder": CrossEncoderOptions,
    "prompted-classifier": PromptedClassifierOptions,
    "yes-no": YesNoOptions,
    "first": FirstOptions,
    "generative": WindowOptions,
}


def check_scorer(name: str, options: Mapping[str, Any]) -> None:
    """Check what can be checked of a scorer without a model.

    Raises:
        ConfigError: no such scorer, or an option that it does not take.
    """
    if name not in _OPTIONS:
        raise _unknown(name)
    read_options(options, _OPTIONS[name], of=f"scorer {name!r}")


def load_scorer(name: str, spec: ScorerSpec) -> AnyPairScorer:
    """Load a scorer of pairs.

    Raises:
        ConfigError: no such scorer, or the model's files do not suit it.
    """
    if name not in SCORERS:
        raise _unknown(name)
    return SCORERS[name](spec)


def load_any_scorer(name: str, spec: ScorerSpec) -> Scorer:
    """Load a scorer of either kind.

    Raises:
        ConfigError: no such scorer, or the model's files do not suit it.
    """
    loaders: Mapping[str, Callable[[ScorerSpec], Scorer]] = {**SCORERS, **LIST_SCORERS}
    if name not in loaders:
        raise _unknown(name)
    return loaders[name](spec)


def _unknown(name: str) -> ConfigError:
    return ConfigError(f"unknown scorer {name!r}; known: {', '.join([*SCORERS, *LIST_SCORERS])}")


def load_list_scorer(name: str, spec: ScorerSpec) -> AnyListScorer:
    """Load a scorer of lists; `name` is one of `LIST_SCORERS`.

    Raises:
        ConfigError: the model's files do not suit it.
    """
    return LIST_SCORERS[name](spec)
