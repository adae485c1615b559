"""Asks every target for the order of every question, one at a time, so that a time is the latency of one caller and no
batch depends on others.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from rerankd.domain import RerankRequest, ScoreOptions
from rerankd.errors import ConfigError, RerankError
from rerankd.tools.evaluation.datasets import DataSet, Question
from rerankd.tools.evaluation.journal import Journal, answer_key
from rerankd.tools.evaluation.targets import FIRST_STAGE, Answer, Ask, Ranked, Target

# By target, then by data set, then by query.
Rankings = Mapping[str, Mapping[str, Mapping[str, Ranked]]]


@dataclass(frozen=True, slots=True)
class Work:
    """One question to one target."""

    target: Target
    data_set: DataSet
    question: Question
    key: str


class Scoring:
    """All questions to ask. The journal may have some answers already."""

    def __init__(self, works: Sequence[Work], journal: Journal, *, max_tokens_per_doc: int | None) -> None:
        self._works = works
        self._journal = journal
        self._max_tokens_per_doc = max_tokens_per_doc

    @property
    def total(self) -> int:
        return len(self._works)

    @property
    def done(self) -> int:
        return sum(work.key in self._journal for work in self._works)

    async def run(self) -> AsyncIterator[Work]:
        """Ask the questions that the journal does not have. Yields after each answer.

        Raises:
            ConfigError: a model cannot be loaded, or a question cannot be answered; what was answered is kept.
        """
        waiting = (work for work in self._works if work.key not in self._journal)
        for target, works in groupby(waiting, key=lambda work: work.target):
            async with target.opened() as ask:
                for work in works:
                    self._journal.add(work.key, await self._answer(ask, work))
                    yield work

    async def _answer(self, ask: Ask, work: Work) -> Answer:
        try:
            return await ask(_request(work.data_set, work.question, self._max_tokens_per_doc))
        except RerankError as error:
            where = f"query {work.question.query_id} of {work.data_set.name}"
            raise ConfigError(f"{work.target.name} cannot score {where}: {error.message}") from None

    def rankings(self) -> Rankings:
        """All answers, and the first stage's own order."""
        rankings: dict[str, dict[str, dict[str, Ranked]]] = {FIRST_STAGE: {}}
        for work in self._works:
            of_set = rankings.setdefault(work.target.name, {}).setdefault(work.data_set.name, {})
            of_set[work.question.query_id] = self._journal[work.key]
            as_it_came = Answer(range(len(work.question.document_ids)), (), 0.0)
            rankings[FIRST_STAGE].setdefault(work.data_set.name, {})[work.question.query_id] = as_it_came
        return rankings


async def plan_scoring(
    targets: Sequence[Target], data_sets: Sequence[DataSet], journal: Journal, *, max_tokens_per_doc: int | None
) -> Scoring:
    """Find the questions to ask.

    Raises:
        ConfigError: a target is not there.
    """
    works = []
    for target in targets:
        identity = await target.identity()
        works += [
            Work(target, data_set, question, answer_key(identity, _request(data_set, question, max_tokens_per_doc)))
            for data_set in data_sets
            for question in data_set.questions
            if question.document_ids
        ]
    return Scoring(works, journal, max_tokens_per_doc=max_tokens_per_doc)


def _request(data_set: DataSet, question: Question, max_tokens_per_doc: int | None) -> RerankRequest:
    return RerankRequest(
        query=question.text,
        documents=[data_set.texts[document] for document in question.document_ids],
        options=ScoreOptions(max_tokens_per_doc=max_tokens_per_doc),
    )
