"""Items that hold texts, and an engine that answers texts with texts: the batcher must know nothing of either."""

import asyncio
from collections.abc import Sequence

from rerankd.batching.admission import Estimate
from rerankd.batching.batcher import Batcher
from rerankd.batching.ticket import Outcome
from rerankd.batching.work import WorkItem
from rerankd.domain import Terms
from tests.fakes import GatedEngine, logit_of

_ORDINARY = Terms()


class TextEngine(GatedEngine):
    """Answers a text of numbers with another number, as text."""

    def run(self, texts: Sequence[str]) -> list[str]:
        return [str(value) for value in self.compute([[int(word) for word in text.split()] for text in texts])]


def text_items(*rows: Sequence[int]) -> list[WorkItem[str]]:
    """One item for each row of numbers, which costs as many tokens."""
    texts = [" ".join(map(str, row)) for row in rows]
    return [WorkItem(text.encode(), len(row), None, text) for text, row in zip(texts, rows, strict=True)]


def answers_to(rows: Sequence[Sequence[int]]) -> list[str]:
    """What a `TextEngine` must answer."""
    return [str(logit_of(row)) for row in rows]


def length_of(text: str) -> int:
    return len(text.split())


async def served(batcher: Batcher[str, str], items: list[WorkItem[str]], terms: Terms = _ORDINARY) -> Outcome[str]:
    """One request with these items, admitted as what they cost: a token has four characters until more is learnt."""
    tokens = sum(item.cost for item in items)
    async with batcher.admit(Estimate(characters=4 * tokens, items=len(items), longest=10**9), terms) as ticket:
        return await ticket.run(items)


async def until_a_pass_runs(engine: GatedEngine, passes: int = 1) -> None:
    while len(engine.batches) < passes:  # noqa: ASYNC110 - the engine runs in a thread and knows no asyncio
        await asyncio.sleep(0.001)
