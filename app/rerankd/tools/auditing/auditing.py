"""An audit: a model's answers to every set as it is and under each perturbation, and what has changed."""

import random
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from rerankd.domain import RerankRequest
from rerankd.errors import ConfigError
from rerankd.tools.auditing.certificates import is_certified, largest_change, sampling_error
from rerankd.tools.auditing.perturbations import Perturbation, changed_documents, perturbed
from rerankd.tools.auditing.synonyms import Synonyms
from rerankd.tools.evaluation.datasets import DataSet, Question
from rerankd.tools.evaluation.journal import Journal
from rerankd.tools.evaluation.measures import MAIN_MEASURE, measure
from rerankd.tools.evaluation.scoring import Scoring, plan_scoring
from rerankd.tools.evaluation.significance import Difference, paired_difference
from rerankd.tools.evaluation.targets import Ask, Ranked, Target

_TOP: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one perturbation does. `change` is that of nDCG@10, with its p.

    `rank_shift`: of a changed query, how many ranks a candidate moves on average, up or down; of changed documents, how
    many ranks one rises (or falls, below 0) if it alone is changed. `flips`: of a changed query, the share of the top
    ten that leaves it; of changed documents, the share of those outside the top ten that get in alone, or, of relevant
    ones, of those in it that fall out.
    """

    perturbation: str
    of: str
    ndcg: float
    change: Difference
    rank_shift: float
    flips: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Certified:
    """How many of the questions have a top K that no substitution of synonyms can change."""

    k: int
    words: int
    samples: int
    error: float
    certified: int
    questions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The report; `details` say what was audited, on what, and how."""

    details: Mapping[str, Any]
    ndcg: float
    rows: Sequence[Row]
    certified: Certified | None = None


async def plan(
    target: Target, data_sets: Sequence[DataSet], wanted: Sequence[Perturbation], journal: Journal, *, seed: int
) -> Scoring:
    """All questions to ask: each set as it is, and perturbed.

    Raises:
        ConfigError: the target is not there, or a set has no question whose order can be measured.
    """
    for one in data_sets:
        if not one.ranked:
            raise ConfigError(
                f"{one.name} has no question to audit: one needs candidates and a relevant document; "
                "docs/evaluation.md says which files hold them"
            )
    sets = [perturbed(one, change, seed=seed) for one in data_sets for change in wanted]
    return await plan_scoring([target], [*data_sets, *sets], journal, max_tokens_per_doc=None)


def audit(
    scoring: Scoring,
    target: Target,
    data_sets: Sequence[DataSet],
    wanted: Sequence[Perturbation],
    *,
    seed: int,
    details: Mapping[str, Any],
) -> Audit:
    """Compare the answers, once all questions are answered."""
    answers = scoring.rankings()[target.name]
    before = [_ndcg(one, answers[one.name]) for one in data_sets]
    rows = [_row(data_sets, answers, change, before, seed=seed) for change in wanted]
    return Audit(details=details, ndcg=float(np.mean([values.mean() for values in before])), rows=rows)


def _row(
    data_sets: Sequence[DataSet],
    answers: Mapping[str, Mapping[str, Ranked]],
    change: Perturbation,
    before: Sequence[Any],
    *,
    seed: int,
) -> Row:
    after, shifts, flips = [], list[float](), list[float]()
    for one in data_sets:
        changed = perturbed(one, change, seed=seed)
        after.append(_ndcg(changed, answers[changed.name]))
        for question in one.ranked:
            old, new = (answers[name].get(question.query_id) for name in (one.name, changed.name))
            if old is None or new is None or not len(old.order) or not len(new.order):
                continue
            moves = _moves(question, old, new, change, level=one.level)
            shifts += moves[0]
            flips += moves[1]
    return Row(
        perturbation=change.name,
        of=change.of,
        ndcg=float(np.mean([values.mean() for values in after])),
        change=paired_difference([b - a for a, b in zip(before, after, strict=True)]),
        rank_shift=float(np.mean(shifts)) if shifts else 0.0,
        flips=float(np.mean(flips)) if flips else 0.0,
    )


def _ndcg(data_set: DataSet, answers: Mapping[str, Ranked]) -> Any:  # noqa: ANN401 - an array
    orders = {
        question.query_id: [question.document_ids[place] for place in answers[question.query_id].order]
        for question in data_set.ranked
        if question.query_id in answers
    }
    return measure(data_set.ranked, orders, level=data_set.level)[MAIN_MEASURE]


def _moves(
    question: Question, old: Ranked, new: Ranked, change: Perturbation, *, level: int
) -> tuple[list[float], list[float]]:
    """Rank shifts and flips of one question: see `Row`."""
    old_rank = {place: rank for rank, place in enumerate(old.order)}
    if change.of == "query":
        new_rank = {place: rank for rank, place in enumerate(new.order)}
        shifts = [float(abs(old_rank[place] - new_rank[place])) for place in old_rank]
        stayed = [place for place in list(old.order)[:_TOP] if new_rank[place] < _TOP]
        return shifts, [1.0 - len(stayed) / min(_TOP, len(old_rank))]
    names = set(changed_documents(question, change, level=level))
    scores = dict(zip(old.order, old.values, strict=True))
    after = dict(zip(new.order, new.values, strict=True))
    shifts, flips = [], list[float]()
    for place in (place for place in old_rank if question.document_ids[place] in names):
        # Of equal scores the first document is first, as in an answer.
        own = (-after[place], place)
        alone = sum((-score, other) < own for other, score in scores.items() if other != place)
        shifts.append(float(old_rank[place] - alone))
        was_in, is_in = old_rank[place] < _TOP, alone < _TOP
        if was_in == (change.of == "relevant"):
            flips.append(float(was_in != is_in))
    return shifts, flips


async def certify(
    ask: Ask,
    data_sets: Sequence[DataSet],
    synonyms: Synonyms,
    *,
    k: int,
    words: int,
    samples: int,
    seed: int,
) -> AsyncIterator[bool]:
    """For each question, whether its top K is certified."""
    for one in data_sets:
        for question in one.ranked:
            texts = [one.texts[name] for name in question.document_ids]
            total = np.zeros(len(texts))
            for sample in range(samples):
                rng = random.Random(f"{seed} {question.query_id} {sample}")
                request = RerankRequest(query=question.text, documents=[synonyms.sampled(text, rng) for text in texts])
                answer = await ask(request)
                total[list(answer.order)] += answer.relevance_scores
            changes = [largest_change(synonyms.overlaps(text), words=words) for text in texts]
            yield is_certified((total / samples).tolist(), changes, k=k, error=sampling_error(samples))


def with_certificates(found: Audit, certified: Sequence[bool], *, k: int, words: int, samples: int) -> Audit:
    counted = Certified(
        k=k,
        words=words,
        samples=samples,
        error=sampling_error(samples),
        certified=sum(certified),
        questions=len(certified),
    )
    return replace(found, certified=counted)
