"""Builds the stages between a request and a model's batcher, for each kind of scorer."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

from rerankd.batching.admission import Estimate
from rerankd.batching.ticket import Intake
from rerankd.cache.base import Cache
from rerankd.concurrency.sharing import SharedWorker
from rerankd.domain import (
    AnchorPlan,
    DiversityPlan,
    Embedder,
    FusionPlan,
    ImageLimits,
    PassagePlan,
    ScoreOptions,
    Truncation,
)
from rerankd.pipeline.anchored import AnchorStage
from rerankd.pipeline.blanks import BlankStage, Drops
from rerankd.pipeline.blocks import BlockStage
from rerankd.pipeline.budget import BudgetStage
from rerankd.pipeline.cached import MARKED_PAIRS, PAIRS, REMARKED_PAIRS, CachedStage
from rerankd.pipeline.cached_list import CachedListStage
from rerankd.pipeline.cached_texts import CachedTexts
from rerankd.pipeline.choices import METHODS
from rerankd.pipeline.chosen import ANSWERS, ChosenStage, check_method
from rerankd.pipeline.comparators import Comparator, ListComparator, PairComparator
from rerankd.pipeline.compared import ComparedStage
from rerankd.pipeline.diversity import DiversityStage, TextEmbedder
from rerankd.pipeline.embedded import BatchedTexts, Texts
from rerankd.pipeline.extracts import ExtractStage
from rerankd.pipeline.fusion import FusionStage
from rerankd.pipeline.grouped import GroupedStage
from rerankd.pipeline.image_limits import ImageLimitStage
from rerankd.pipeline.known_scores import KnownScores
from rerankd.pipeline.long_queries import LongQueryStage
from rerankd.pipeline.passages import PassageStage
from rerankd.pipeline.pointwise import PointwiseStage
from rerankd.pipeline.pruning import Marking, PruneStage
from rerankd.pipeline.score_codec import ScoreCodec
from rerankd.pipeline.several_queries import SeveralQueriesStage
from rerankd.pipeline.spans import SpanStage
from rerankd.pipeline.stage import Stage
from rerankd.pipeline.text_only import TextOnlyStage
from rerankd.pipeline.windowed import WindowedStage, check_windows
from rerankd.scorers.anchors import Anchors
from rerankd.scorers.base import (
    AnyBlockScorer,
    AnyComparisonScorer,
    AnyGroupScorer,
    AnyListScorer,
    AnyPairScorer,
    AnyVectorScorer,
    AsksOverDocuments,
    Prunes,
    ReadsImages,
    Remarks,
    StatesScores,
)
from rerankd.scorers.ranking import Activation, identity
from rerankd.telemetry.observer import Observer

_NOT_FOR_PAIRS: Final = ("windows",)
# Their scores depend on the other documents.
_NOT_FOR_CHOSEN: Final = (
    "truncation",
    "passages",
    "max_tokens_per_query",
    "truncate_prompt_tokens",
    "relevant_spans",
    "confidence",
)
_NOT_FOR_TOGETHER: Final = ("windows", *_NOT_FOR_CHOSEN)
# A part of their work is of no use.
_NOT_FOR_LISTS: Final = (*_NOT_FOR_CHOSEN, "on_deadline")
_NOT_FOR_BLOCKS: Final = (*_NOT_FOR_TOGETHER, "on_deadline")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """`direct` only scores, `whole` is that with all around it. `activation` turns values into relevance. `ignores`
    names the wishes of requests that mean nothing here. `estimate` says what a request costs before its texts are read.
    `prunes`: documents can be pruned. `embedder` gives documents vectors.
    """

    direct: Stage
    whole: Stage
    activation: Activation
    scores: Literal["logit", "rank", "relevance", "similarity"]
    estimate: Callable[[str, Sequence[str], ScoreOptions], Estimate]
    ignores: Collection[str]
    prunes: bool = False
    embedder: Embedder | None = None


class ScheduleCheck:
    """Checks that the schedule of a scorer's plan is known and suits it.

    Raises:
        ConfigError: it does not.
    """

    def pairs(self, _: AnyPairScorer, /) -> None: ...

    def vectors(self, _: AnyVectorScorer, /) -> None: ...

    def blocks(self, _: AnyBlockScorer, /) -> None: ...

    def groups(self, _: AnyGroupScorer, /) -> None: ...

    def lists(self, scorer: AnyListScorer, /) -> None:
        if scorer.plan.schedule in METHODS:
            check_method(scorer.plan)
        else:
            check_windows(scorer)

    def comparisons(self, scorer: AnyComparisonScorer, /) -> None:
        check_method(scorer.plan)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageBuilder:
    """What stages are built from; `cache` None: nothing is remembered. `passages` and `truncation` are the operator's
    word on long documents, `fusion` on the first stage's scores.
    `calibrated` gives probabilities of relevance instead of what a scorer's own activation gives. `anchors` estimate
    scores of pairs.
    """

    batcher: Intake[Any, Any]
    tokenizing: SharedWorker
    cache: Cache | None
    fingerprint: str
    observer: Observer
    model: str
    passages: PassagePlan
    truncation: Truncation
    fusion: FusionPlan
    diversity: DiversityPlan
    anchor_plan: AnchorPlan
    images: ImageLimits
    calibrated: Activation | None = None
    anchors: Anchors | None = None

    def pairs(self, scorer: AnyPairScorer, /) -> Stages:
        """Each document by itself, long ones in passages."""
        direct: Stage = PointwiseStage(scorer, self.batcher, self.tokenizing)
        if not isinstance(scorer, ReadsImages):
            direct = TextOnlyStage(direct, model=self.model)
        cached: Stage = BudgetStage(direct, self.batcher, longest=scorer.max_length)
        if self.cache is not None:
            codec = REMARKED_PAIRS if isinstance(scorer, Remarks) else PAIRS
            cached = CachedStage(cached, self.cache, fingerprint=self.fingerprint, observer=self.observer, codec=codec)
        read = self._in_passages(cached, scorer)
        if isinstance(scorer, Prunes):
            read = self._pruned(read, direct, scorer, threshold=scorer.prune_threshold)
        written = self._not_blank(read, scorer.drops)
        anchored = written
        if self.anchors is not None:
            part = AnchorStage(read, self.tokenizing, self.anchors, plan=self.anchor_plan)
            anchored = self._not_blank(part, scorer.drops)
        whole = self._around(anchored, scorer, sentences=written)
        return Stages(
            direct=direct,
            prunes=isinstance(scorer, Prunes),
            whole=ImageLimitStage(whole, self.images) if isinstance(scorer, ReadsImages) else whole,
            activation=self.calibrated or scorer.activation,
            scores=scorer.scores if isinstance(scorer, StatesScores) else "logit",
            estimate=partial(_each_once, longest=scorer.max_length),
            ignores=_NOT_FOR_PAIRS,
        )

    def vectors(self, scorer: AnyVectorScorer, /) -> Stages:
        """The vectors of query and documents compared, long documents in passages."""
        batched: Texts = BatchedTexts(scorer, self.batcher, self.tokenizing)
        cached = batched
        if self.cache is not None:
            cached = CachedTexts(batched, self.cache, scorer.form, fingerprint=self.fingerprint, observer=self.observer)
        direct, compared = (
            TextOnlyStage(ComparedStage(scorer, texts, self.tokenizing), model=self.model)
            for texts in (batched, cached)
        )
        together = isinstance(scorer, AsksOverDocuments)
        # One vector a text, of numbers.
        embedder = TextEmbedder(cached) if len(scorer.form.shape) == 1 and scorer.form.dtype.names is None else None
        inner = compared if together else self._in_passages(compared, scorer)
        written = self._not_blank(inner, scorer.drops, embedder=embedder)
        return Stages(
            direct=direct,
            whole=written if together else self._around(written, scorer, query_room=scorer.query_room),
            activation=self.calibrated or scorer.activation,
            scores="similarity",
            estimate=partial(_each_once, longest=scorer.max_length),
            ignores=_NOT_FOR_TOGETHER if together else _NOT_FOR_PAIRS,
            embedder=embedder,
        )

    def lists(self, scorer: AnyListScorer, /) -> Stages:
        """All documents in windows, or by comparisons."""
        if scorer.plan.schedule in METHODS:
            return self._chosen(ListComparator(scorer), drops=scorer.drops)
        direct = TextOnlyStage(WindowedStage(scorer, self.batcher, self.tokenizing), model=self.model)
        whole = self._not_blank(self._cached_whole(direct), scorer.drops)
        estimate = partial(_each_once, longest=scorer.max_length)
        return Stages(
            direct=direct, whole=whole, activation=identity, scores="rank", estimate=estimate, ignores=_NOT_FOR_LISTS
        )

    def groups(self, scorer: AnyGroupScorer, /) -> Stages:
        """All documents in groups, each several times."""
        grouped = GroupedStage(scorer, self.batcher, self.tokenizing)
        direct = TextOnlyStage(grouped, model=self.model)
        return Stages(
            direct=direct,
            whole=self._not_blank(self._cached_whole(direct, scheduled=False), scorer.drops),
            activation=identity,
            scores="relevance",
            estimate=grouped.estimate,
            ignores=_NOT_FOR_TOGETHER,
        )

    def comparisons(self, scorer: AnyComparisonScorer, /) -> Stages:
        """The first documents against one another."""
        return self._chosen(PairComparator(scorer), drops=scorer.drops)

    def _chosen(self, comparator: Comparator[Any, Any], *, drops: Drops) -> Stages:
        def stage(known: KnownScores | None) -> ChosenStage[Any, Any]:
            return ChosenStage(comparator, self.batcher, self.tokenizing, known=known, fingerprint=self.fingerprint)

        plain = compared = stage(None)
        if self.cache is not None:
            codec = ScoreCodec(ANSWERS, parts=comparator.told)
            compared = stage(KnownScores(self.cache, codec, observer=self.observer))
        return Stages(
            direct=TextOnlyStage(plain, model=self.model),
            whole=self._not_blank(TextOnlyStage(compared, model=self.model), drops),
            activation=identity,
            scores="rank",
            estimate=plain.estimate,
            ignores=_NOT_FOR_CHOSEN,
        )

    def _in_passages(self, inner: Stage, scorer: AnyPairScorer | AnyVectorScorer) -> Stage:
        plan, truncation = self.passages, self.truncation
        passages = PassageStage(inner, scorer, self.batcher, self.tokenizing, plan=plan, truncation=truncation)
        return ExtractStage(passages, scorer, self.batcher, self.tokenizing, plan=plan, truncation=truncation)

    def _pruned(self, inner: Stage, direct: Stage, scorer: AnyPairScorer, *, threshold: float) -> Stage:
        """With documents pruned where a request asks for it. What is known of their tokens is cached by itself."""
        marked = direct
        if self.cache is not None:
            marked = CachedStage(
                direct, self.cache, fingerprint=f"{self.fingerprint}|marked", observer=self.observer, codec=MARKED_PAIRS
            )
        return PruneStage(
            inner,
            Marking(marked, threshold),
            scorer,
            self.batcher,
            self.tokenizing,
            plan=self.passages,
            truncation=self.truncation,
        )

    def _around(
        self,
        inner: Stage,
        scorer: AnyPairScorer | AnyVectorScorer,
        *,
        query_room: Callable[[], int] | None = None,
        sentences: Stage | None = None,
    ) -> Stage:
        """Relevant spans, and queries that are cut. `sentences` scores those of spans, which are all read."""
        spans = SpanStage(
            inner,
            scorer,
            self.batcher,
            self.tokenizing,
            plan=self.passages,
            activation=self.calibrated or scorer.activation,
            sentences=sentences,
        )
        return LongQueryStage(spans, scorer, self.tokenizing, query_room=query_room)

    def blocks(self, scorer: AnyBlockScorer, /) -> Stages:
        """All documents together, in as few prompts as they fit into."""
        direct = TextOnlyStage(BlockStage(scorer, self.batcher, self.tokenizing), model=self.model)
        whole = self._not_blank(self._cached_whole(direct, scheduled=False), scorer.drops)
        return Stages(
            direct=direct,
            whole=whole,
            activation=scorer.activation,
            scores="similarity",
            estimate=partial(_each_once, longest=scorer.max_length),
            ignores=_NOT_FOR_BLOCKS,
        )

    def _not_blank(self, inner: Stage, drops: Drops, *, embedder: Embedder | None = None) -> Stage:
        """Without blank documents, for several queries, fused with the first stage's scores, and diverse."""
        blanks = BlankStage(inner, self.tokenizing, drops=drops)
        fused = FusionStage(SeveralQueriesStage(blanks), plan=self.fusion)
        return DiversityStage(fused, self.tokenizing, plan=self.diversity, own=embedder)

    def _cached_whole(self, direct: Stage, *, scheduled: bool = True) -> Stage:
        """Behind a cache of whole requests, where there is one."""
        if self.cache is None:
            return direct
        return CachedListStage(
            direct, self.cache, fingerprint=self.fingerprint, observer=self.observer, scheduled=scheduled
        )


def _each_once(query: str, documents: Sequence[str], options: ScoreOptions, *, longest: int) -> Estimate:
    """Each document is read once beside the query, and once more by its sentences if spans are looked for."""
    times = 1 if options.spans is None else 2
    characters = sum(map(len, documents)) + len(query) * len(documents)
    return Estimate(characters=times * characters, items=times * len(documents), longest=longest)
