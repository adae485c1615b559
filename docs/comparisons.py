"""What schedules of comparisons cost, and what they find: the table of models.md, from simulated models."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from statistics import mean
from typing import Final

from rerankd.pipeline.choices import METHODS, Answer, Comparison, Extent

DOCUMENTS: Final = 100
SETTLE: Final = 10
# Of a document, and of all else in a prompt.
DOCUMENT_TOKENS: Final = 130
PROMPT_TOKENS: Final = 100
_WRONG: Final = 0.1
_QUERIES: Final = 8

_Answering = Callable[[Comparison], Answer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """Means over queries: prompts, their tokens, the rounds that follow one another, and how many of the true first ten
    are among the ten that are ranked first.
    """

    prompts: float
    tokens: float
    rounds: float
    found: float


def comparisons_table() -> str:
    """A row for each schedule."""
    rows = []
    for name, method in METHODS.items():
        for window in (2,) if method.pairs else (4, 10, 20):
            right = _simulated(name, window, wrong=0)
            often = _simulated(name, window, wrong=_WRONG)
            shown = f"`{name}`" if method.pairs else f"`{name}`, {window} in a prompt"
            rows.append(
                f"| {shown} | {right.prompts:,.0f} | {right.tokens / 1000:,.0f} | {right.rounds:.0f} "
                f"| {right.found:.1f} | {often.found:.1f} |"
            )
    head = "| schedule | prompts | thousand tokens | rounds | of the first 10 | with 1 in 10 answers random |"
    return "\n".join([head, "|---|---|---|---|---|---|", *rows]) + "\n"


def _simulated(name: str, window: int, *, wrong: float) -> Simulated:
    found = [_query(name, window, Random(seed), wrong=wrong) for seed in range(_QUERIES)]  # noqa: S311 - a simulation
    names = ("prompts", "tokens", "rounds", "found")
    return Simulated(**{name: mean(getattr(one, name) for one in found) for name in names})


def _query(name: str, window: int, random: Random, *, wrong: float) -> Simulated:
    method = METHODS[name]
    truth = list(range(DOCUMENTS))
    random.shuffle(truth)
    rank = {place: number for number, place in enumerate(truth)}

    def answer(comparison: Comparison) -> Answer:
        if random.random() < wrong:
            return random.randrange(len(comparison))
        return min(range(len(comparison)), key=lambda index: rank[comparison[index]])

    standing = method.standing(DOCUMENTS)
    schedule = method.run(standing, Extent(candidates=DOCUMENTS, window=window, settle=SETTLE))
    prompts, tokens, rounds = 0, 0, 0
    comparisons = next(schedule, None)
    while comparisons is not None:
        orders = 2 if method.pairs else 1
        rounds += 1
        prompts += orders * len(comparisons)
        tokens += orders * sum(PROMPT_TOKENS + DOCUMENT_TOKENS * len(one) for one in comparisons)
        answers = [_of_both(answer, one) if method.pairs else answer(one) for one in comparisons]
        try:
            comparisons = schedule.send(answers)
        except StopIteration:
            comparisons = None
    best = set(standing.order()[:SETTLE]) & set(truth[:SETTLE])
    return Simulated(prompts=prompts, tokens=tokens, rounds=rounds, found=len(best))


def _of_both(answer: _Answering, comparison: Comparison) -> Answer:
    return (answer(comparison) + 1 - answer(comparison[::-1])) / 2


if __name__ == "__main__":
    sys.stdout.write(comparisons_table())
