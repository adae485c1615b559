"""Grades documents in groups: each is read in several groups, drawn again for each pass, and its score is the mean.

Sun et al., "GroupRank: A Groupwise Reranking Paradigm Driven by Reinforcement Learning", 2025. The reference counts the
documents of an answer without grades as 0; here it is skipped, and a document without any grade has no score.
"""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from math import ceil
from typing import Generic, TypeVar

import numpy as np

from rerankd.batching.admission import Estimate
from rerankd.batching.ticket import Intake
from rerankd.concurrency.sharing import SharedWorker
from rerankd.concurrency.turns import Share
from rerankd.domain import GroupPlan, Remark, ScoreOptions, Scores
from rerankd.pipeline.cached import keys_of
from rerankd.pipeline.window_prompts import WindowPrompts
from rerankd.pipeline.windows import Window, even_chunks
from rerankd.scorers.base import GroupScorer

T = TypeVar("T")
R = TypeVar("R")


def groups_of(keys: Sequence[bytes], plan: GroupPlan) -> list[Window]:
    """The groups of all passes, as indices of documents. They depend on the documents' keys alone, and not on the order
    in which the documents come; the groups of one pass differ by one document at most.
    """
    count = ceil(len(keys) / plan.size)
    groups: list[Window] = []
    for number in range(plan.passes):
        drawn = {index: blake2b(key, key=number.to_bytes(2)).digest() for index, key in enumerate(keys)}
        groups += [list(group) for group in even_chunks(sorted(drawn, key=drawn.__getitem__), count)]
    return groups


class GroupedStage(Generic[T, R]):
    """All groups of a request are one trip through the batcher: one serial round."""

    def __init__(self, scorer: GroupScorer[T, R], batcher: Intake[T, R], tokenizing: SharedWorker) -> None:
        self._scorer = scorer
        self._batcher = batcher
        self._tokenizing = tokenizing

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Score every document, in the order given. Where the deadline comes first and a partial answer was asked for,
        a score is the mean of those groups that were answered.

        Raises:
            InvalidRequest: a prompt does not fit into the model, or the model reads no instruction.
            Overloaded, DeadlineExceeded, ScoringFailed, Unavailable: see `Intake.admit` and `Ticket.run`.
        """
        keys = await keys_of("groups", query, documents)
        passes = self._scorer.plan.passes
        share = Share(caller=options.terms.caller, cost=passes * len(keys), left=passes * len(keys))
        groups = await self._tokenizing.run(share, groups_of, keys, self._scorer.plan)
        prompts = WindowPrompts(self._scorer, self._batcher, self._tokenizing, query, documents, options)
        async with self._batcher.admit(prompts.estimate(groups), options.terms) as ticket:
            outcome = await prompts.run(groups, ticket)
        answered = groups if outcome.finished is None else [groups[place] for place in outcome.finished]
        sums = np.zeros(len(documents))
        counts = np.zeros(len(documents), dtype=np.int64)
        remarks = np.full(len(documents), None, dtype=np.object_)
        for group, result in zip(answered, outcome.results, strict=True):
            grades = self._scorer.grades(result, candidates=len(group))
            graded = np.isfinite(grades)
            named = np.array(group)[graded]
            sums[named] += grades[graded]
            counts[named] += 1
            written = self._scorer.written(result)
            options.terms.meter.compute(written)
            prompts.charge(group, written)
            remark = Remark(self._scorer.reason(result), {})
            for index in named.tolist():
                remarks[index] = remarks[index] or remark
        scores = prompts.scores((sums / np.maximum(counts, 1)).astype(np.float32))
        whole = bool(counts.all()) and outcome.finished is None
        ungraded = sum(map(len, answered)) - int(counts.sum())
        return replace(scores, scored=None if whole else counts > 0, ungraded=ungraded, remarks=remarks)

    def estimate(self, query: str, documents: Sequence[str], _options: ScoreOptions) -> Estimate:
        """What a request should cost."""
        plan = self._scorer.plan
        groups = plan.passes * ceil(len(documents) / plan.size)
        characters = plan.passes * sum(map(len, documents)) + groups * len(query)
        return Estimate(characters=characters, items=groups, longest=self._scorer.max_length)
