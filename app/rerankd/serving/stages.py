"""Builds the stages between a request and a model's batcher, for each kind of scorer."""

from dataclasses import dataclass
from typing import Any, Literal

from rerankd.batching.batcher import Batcher
from rerankd.cache.base import Cache
from rerankd.concurrency.sharing import SharedWorker
from rerankd.domain import PassagePlan, Truncation
from rerankd.pipeline.blanks import BlankStage
from rerankd.pipeline.blocks import BlockStage
from rerankd.pipeline.cached import CachedStage
from rerankd.pipeline.cached_list import CachedListStage
from rerankd.pipeline.cached_texts import CachedTexts
from rerankd.pipeline.compared import ComparedStage
from rerankd.pipeline.embedded import BatchedTexts, Texts
from rerankd.pipeline.long_queries import LongQueryStage
from rerankd.pipeline.passages import PassageStage
from rerankd.pipeline.pointwise import PointwiseStage
from rerankd.pipeline.stage import Stage
from rerankd.pipeline.text_only import TextOnlyStage
from rerankd.pipeline.windowed import WindowedStage
from rerankd.scorers.base import AnyBlockScorer, AnyListScorer, AnyPairScorer, AnyVectorScorer
from rerankd.scorers.ranking import Activation, identity
from rerankd.telemetry.observer import Observer


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """`direct` only scores, `whole` is that with all around it. `activation` turns values into relevance."""

    direct: Stage
    whole: Stage
    activation: Activation
    scores: Literal["logit", "rank", "similarity"]

    @property
    def reads_windows(self) -> bool:
        return self.scores == "rank"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageBuilder:
    """What stages are built from; `cache` None: nothing is remembered. `passages` and `truncation` are the operator's
    word on long documents.
    """

    batcher: Batcher[Any, Any]
    tokenizing: SharedWorker
    cache: Cache | None
    fingerprint: str
    observer: Observer
    model: str
    passages: PassagePlan
    truncation: Truncation

    def pairs(self, scorer: AnyPairScorer, /) -> Stages:
        """Each document by itself, long ones in passages."""
        direct = TextOnlyStage(PointwiseStage(scorer, self.batcher, self.tokenizing), model=self.model)
        cached: Stage = direct
        if self.cache is not None:
            cached = CachedStage(direct, self.cache, fingerprint=self.fingerprint, observer=self.observer)
        written = self._in_passages(cached, scorer)
        whole = LongQueryStage(written, scorer, self.tokenizing)
        return Stages(direct=direct, whole=whole, activation=scorer.activation, scores="logit")

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
        written = self._in_passages(compared, scorer)
        whole = LongQueryStage(written, scorer, self.tokenizing, kept=lambda _: scorer.query_room())
        return Stages(direct=direct, whole=whole, activation=scorer.activation, scores="similarity")

    def lists(self, scorer: AnyListScorer, /) -> Stages:
        """All documents in windows."""
        direct = TextOnlyStage(WindowedStage(scorer, self.batcher, self.tokenizing), model=self.model)
        whole = BlankStage(self._cached_whole(direct), self.tokenizing, drops=scorer.drops)
        return Stages(direct=direct, whole=whole, activation=identity, scores="rank")

    def _in_passages(self, inner: Stage, scorer: AnyPairScorer | AnyVectorScorer) -> Stage:
        passages = PassageStage(
            inner, scorer, self.batcher, self.tokenizing, plan=self.passages, truncation=self.truncation
        )
        return BlankStage(passages, self.tokenizing, drops=scorer.drops)

    def blocks(self, scorer: AnyBlockScorer, /) -> Stages:
        """All documents together, in as few prompts as they fit into."""
        direct = TextOnlyStage(BlockStage(scorer, self.batcher, self.tokenizing), model=self.model)
        whole = BlankStage(self._cached_whole(direct), self.tokenizing, drops=scorer.drops)
        return Stages(direct=direct, whole=whole, activation=scorer.activation, scores="similarity")

    def _cached_whole(self, direct: Stage) -> Stage:
        """Behind a cache of whole requests, where there is one."""
        if self.cache is None:
            return direct
        return CachedListStage(direct, self.cache, fingerprint=self.fingerprint, observer=self.observer)
