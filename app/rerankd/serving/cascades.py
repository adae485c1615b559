"""A served cascade: other served models, one after another. It loads nothing, and is ready when all of them are."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf

from rerankd.concurrency.sharing import SharedWorker
from rerankd.domain import DiversityPlan, FusionPlan, ScoreOptions, Scores
from rerankd.pipeline.blanks import BlankStage, drops_nothing
from rerankd.pipeline.cascade import CascadeStage, Member
from rerankd.pipeline.diversity import DiversityStage
from rerankd.pipeline.fusion import FusionStage
from rerankd.pipeline.several_queries import SeveralQueriesStage
from rerankd.scorers.ranking import identity
from rerankd.serving.answering import AnsweringStage
from rerankd.serving.model import Canary, LoadedModel, ServedModel, Status

_MEMBERS_ARE_ASKED = Canary(pairs=(), tolerance=None)


@dataclass(frozen=True, slots=True)
class ServedMember:
    """A served model by the name that the registry calls it; it reorders the first `depth` documents, None: all."""

    name: str
    model: ServedModel
    depth: int | None


@dataclass(frozen=True, slots=True)
class _ServedStages:
    """Scores with the versions of its members that serve when a request begins."""

    members: Sequence[ServedMember]

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Order the documents.

        Raises:
            ModelNotReady: a member is not in service.
            RerankError: what a member's stage raises.
        """
        with ExitStack() as using:
            members = []
            for member in self.members:
                # The service keeps the deadline.
                loaded = await member.model.loaded_within(inf)
                using.enter_context(loaded.usage)
                members.append(Member(member.name, AnsweringStage(member.model, loaded), member.depth, loaded.fits))
            return await CascadeStage(members).score(query, documents, options)


def follow(
    cascade: ServedModel,
    members: Sequence[ServedMember],
    tokenizing: SharedWorker,
    *,
    fusion: FusionPlan,
    diversity: DiversityPlan,
) -> None:
    """Give a cascade the state of its worst member."""
    failed = next((member.model for member in members if member.model.status is Status.FAILED), None)
    if failed is not None:
        cascade.doubt(f"a member of this cascade is not ready: model {failed.name!r}: {failed.reason}")
    elif all(member.model.status.answers for member in members):
        cascade.serve(_loaded(members, tokenizing, fusion, diversity))


def _loaded(
    members: Sequence[ServedMember], tokenizing: SharedWorker, fusion: FusionPlan, diversity: DiversityPlan
) -> LoadedModel:
    stages = _ServedStages(members)
    fused = FusionStage(SeveralQueriesStage(BlankStage(stages, tokenizing, drops=drops_nothing)), plan=fusion)
    return LoadedModel(
        stage=DiversityStage(fused, tokenizing, plan=diversity, own=None),
        direct=stages,
        activation=identity,
        canary=_MEMBERS_ARE_ASKED,
        details={
            "scorer": "cascade",
            "stages": [member.name if member.depth is None else f"{member.name}:{member.depth}" for member in members],
            "scores": "rank",
        },
        # The deadline may end a cascade between two members, whatever they are.
        ignores={"relevant_spans", "confidence"}.union(
            set.intersection(*(set(member.model.ignores) - {"on_deadline"} for member in members))
        ),
    )
