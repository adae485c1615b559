"""The scorers by name. A new one is a file of this folder and one line here, by what it scores."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, NamedTuple, TypeVar

from pydantic import BaseModel

from rerankd.config.options import read_options
from rerankd.errors import ConfigError
from rerankd.scorers.attention import AttentionOptions, InContextAttention
from rerankd.scorers.base import (
    AnyBlockScorer,
    AnyComparisonScorer,
    AnyGroupScorer,
    AnyListScorer,
    AnyPairScorer,
    AnyVectorScorer,
    Scorer,
    ScorerSpec,
)
from rerankd.scorers.bi_encoder import BiEncoder, BiEncoderOptions
from rerankd.scorers.cross_encoder import CrossEncoder, CrossEncoderOptions
from rerankd.scorers.first import First, FirstOptions
from rerankd.scorers.generative import Generative, GenerativeOptions
from rerankd.scorers.graded import GradedOptions, load_graded
from rerankd.scorers.groupwise import Groupwise, GroupwiseOptions
from rerankd.scorers.last_but_not_late import LastButNotLate, LastButNotLateOptions
from rerankd.scorers.late_interaction import LateInteractionOptions, LateInteractionScorer
from rerankd.scorers.listwise_embedding import ListwiseEmbedding, ListwiseEmbeddingOptions
from rerankd.scorers.pairwise import Pairwise, PairwiseOptions
from rerankd.scorers.prompted_classifier import PromptedClassifier, PromptedClassifierOptions
from rerankd.scorers.pruning import PruningCrossEncoder, PruningOptions
from rerankd.scorers.reasoning import Reasoning, ReasoningOptions
from rerankd.scorers.remote import Remote, RemoteOptions
from rerankd.scorers.splade import Splade, SpladeOptions
from rerankd.scorers.vision_language import VisionLanguage, VisionLanguageOptions
from rerankd.scorers.yes_no import YesNo, YesNoOptions

S = TypeVar("S", bound=Scorer)


class Entry(NamedTuple, Generic[S]):
    """How a scorer is loaded, and the options that it takes."""

    load: Callable[[ScorerSpec], S]
    options: type[BaseModel]


SCORERS: Final[dict[str, Entry[AnyPairScorer]]] = {
    "cross-encoder": Entry(CrossEncoder.load, CrossEncoderOptions),
    "prompted-classifier": Entry(PromptedClassifier.load, PromptedClassifierOptions),
    "pruning": Entry(PruningCrossEncoder.load, PruningOptions),
    "reasoning": Entry(Reasoning.load, ReasoningOptions),
    "graded": Entry(load_graded, GradedOptions),
    "yes-no": Entry(YesNo.load, YesNoOptions),
    "vision-language": Entry(VisionLanguage.load, VisionLanguageOptions),
    "remote": Entry(Remote.load, RemoteOptions),
}
LIST_SCORERS: Final[dict[str, Entry[AnyListScorer]]] = {
    "first": Entry(First.load, FirstOptions),
    "attention": Entry(InContextAttention.load, AttentionOptions),
    "generative": Entry(Generative.load, GenerativeOptions),
}
GROUP_SCORERS: Final[dict[str, Entry[AnyGroupScorer]]] = {
    "groupwise": Entry(Groupwise.load, GroupwiseOptions),
}
VECTOR_SCORERS: Final[dict[str, Entry[AnyVectorScorer]]] = {
    "bi-encoder": Entry(BiEncoder.load, BiEncoderOptions),
    "late-interaction": Entry(LateInteractionScorer.load, LateInteractionOptions),
    "listwise-embedding": Entry(ListwiseEmbedding.load, ListwiseEmbeddingOptions),
    "splade": Entry(Splade.load, SpladeOptions),
}
BLOCK_SCORERS: Final[dict[str, Entry[AnyBlockScorer]]] = {
    "last-but-not-late": Entry(LastButNotLate.load, LastButNotLateOptions),
}
COMPARISON_SCORERS: Final[dict[str, Entry[AnyComparisonScorer]]] = {
    "pairwise": Entry(Pairwise.load, PairwiseOptions),
}
_AnyEntry = (
    Entry[AnyPairScorer]
    | Entry[AnyListScorer]
    | Entry[AnyGroupScorer]
    | Entry[AnyVectorScorer]
    | Entry[AnyBlockScorer]
    | Entry[AnyComparisonScorer]
)
# Those that read logits, which a graph gives.
EXPORTED_SCORERS: Final = ("cross-encoder", "prompted-classifier", "yes-no", "first")


def check_scorer(name: str, options: Mapping[str, Any]) -> None:
    """Check what can be checked of a scorer without a model.

    Raises:
        ConfigError: no such scorer, or an option that it does not take.
    """
    read_options(options, _entry(name).options, of=f"scorer {name!r}")


def load_scorer(name: str, spec: ScorerSpec) -> AnyPairScorer:
    """Load a scorer of pairs.

    Raises:
        ConfigError: no such scorer, or the model's files do not suit it.
    """
    if name not in SCORERS:
        _entry(name)  # raises for one that is unknown
        raise ConfigError(f"scorer {name!r} scores no pairs; this is for models with one of: {', '.join(SCORERS)}")
    return SCORERS[name].load(spec)


def load_any_scorer(name: str, spec: ScorerSpec) -> Scorer:
    """Load a scorer of any kind.

    Raises:
        ConfigError: no such scorer, or the model's files do not suit it.
    """
    return _entry(name).load(spec)


def _entry(name: str) -> _AnyEntry:
    if name in SCORERS:
        return SCORERS[name]
    if name in LIST_SCORERS:
        return LIST_SCORERS[name]
    if name in GROUP_SCORERS:
        return GROUP_SCORERS[name]
    if name in VECTOR_SCORERS:
        return VECTOR_SCORERS[name]
    if name in BLOCK_SCORERS:
        return BLOCK_SCORERS[name]
    if name in COMPARISON_SCORERS:
        return COMPARISON_SCORERS[name]
    raise _unknown(name)


def _unknown(name: str) -> ConfigError:
    known = [*SCORERS, *LIST_SCORERS, *GROUP_SCORERS, *VECTOR_SCORERS, *BLOCK_SCORERS, *COMPARISON_SCORERS]
    return ConfigError(f"unknown scorer {name!r}; known: {', '.join(known)}")


def load_list_scorer(name: str, spec: ScorerSpec) -> AnyListScorer:
    """Load a scorer of lists; `name` is one of `LIST_SCORERS`.

    Raises:
        ConfigError: the model's files do not suit it.
    """
    return LIST_SCORERS[name].load(spec)
