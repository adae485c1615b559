"""Scores with a served model, or with its fallback where the model cannot answer."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

from rerankd.domain import EmbeddedDocuments, FloatArray, ScoreOptions, Scores, Truncation
from rerankd.errors import InvalidRequest, RateLimited, RerankError
from rerankd.serving.model import LoadedModel, ServedModel

logger = logging.getLogger(__name__)

# The part of the time until a deadline after which a model's fallback is asked.
_FIRST_PART = 0.5


@dataclass(frozen=True, slots=True)
class Answered:
    """Scores, and the model that gave them: what they mean is its activation."""

    model: ServedModel
    loaded: LoadedModel
    scores: Scores


async def answer(
    model: ServedModel,
    loaded: LoadedModel,
    query: str,
    documents: Sequence[str],
    options: ScoreOptions,
    *,
    clock: Callable[[], float] = perf_counter,
) -> Answered:
    """Score every document with one model: this one, or its fallback, or that one's. A model with a fallback has half
    of the time that is left; `clock` is that of deadlines.

    Raises:
        RerankError: what the last model's stage raises, or what the caller must change.
    """
    if options.prune is not None and not loaded.prunes:
        raise InvalidRequest(
            f"the model {model.name!r} does not prune documents; leave prune out, or name a model that does (Provence)"
        )
    selector = model.passage_selector
    embedder = model.diversity_model
    options = replace(
        options,
        selector=None if selector is None else ModelSelector(selector, clock),
        embedder=None if embedder is None else ModelEmbedder(embedder, clock),
    )
    fallback = model.fallback
    if fallback is None:
        return Answered(model, loaded, await loaded.stage.score(query, documents, options))
    try:
        return Answered(model, loaded, await loaded.stage.score(query, documents, _sooner(options, now=clock())))
    except (InvalidRequest, RateLimited):
        raise
    except RerankError as error:
        model.failed_to_answer(error.code)
        extra = {"model": model.name, "fallback": fallback.name, "reason": error.message}
        logger.warning("a fallback answers", extra=extra)
    options.terms.meter.start_over()
    other = await fallback.loaded_within(options.terms.deadline - clock())
    with other.usage:
        return await answer(fallback, other, query, documents, options, clock=clock)


@dataclass(frozen=True, slots=True)
class ModelSelector:
    """Selects passages by a served model's scores; it is given nothing else that a request wishes."""

    model: ServedModel
    clock: Callable[[], float]

    async def values(
        self, query: str, passages: Sequence[str], _counts: Sequence[int], options: ScoreOptions, /
    ) -> FloatArray:
        """The raw score of each passage.

        Raises:
            RerankError: see `answer`.
        """
        terms = options.terms.undivided()
        loaded = await self.model.loaded_within(terms.deadline - self.clock())
        alone = ScoreOptions(truncation=Truncation.TRUNCATE, scope=options.scope, terms=terms)
        with loaded.usage:
            answered = await answer(self.model, loaded, query, passages, alone, clock=self.clock)
        return answered.scores.values


@dataclass(frozen=True, slots=True)
class ModelEmbedder:
    """A served model's vectors of documents."""

    model: ServedModel
    clock: Callable[[], float]

    async def vectors(self, documents: Sequence[str], options: ScoreOptions, /) -> EmbeddedDocuments:
        """The vector of each document.

        Raises:
            InvalidRequest: the model gives documents no vectors.
            RerankError: it is not in service, or see `Texts.embed`.
        """
        loaded = await self.model.loaded_within(options.terms.deadline - self.clock())
        if loaded.embedder is None:
            raise InvalidRequest(
                f"the model {self.model.name!r}, which diversity_model names, gives documents no vectors; its operator "
                "must name a bi-encoder"
            )
        with loaded.usage:
            return await loaded.embedder.vectors(documents, options)


@dataclass(frozen=True, slots=True)
class AnsweringStage:
    """A served model, or its fallback, as a stage of another."""

    model: ServedModel
    loaded: LoadedModel

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Score every document, in the order given.

        Raises:
            RerankError: see `answer`.
        """
        answered = await answer(self.model, self.loaded, query, documents, options)
        return answered.scores


def _sooner(options: ScoreOptions, *, now: float) -> ScoreOptions:
    """A partial answer is for the last model: half of the scores are worth less than a fallback's. So are final places,
    which a fallback's answer would change.
    """
    deadline = now + _FIRST_PART * (options.terms.deadline - now)
    return replace(
        options, budgeted=False, settled=None, terms=replace(options.terms, deadline=deadline, partial=False)
    )
