"""Perturbations, and what an audit says of a model that counts the query's words."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from rerankd.domain import RerankRequest
from rerankd.errors import ConfigError
from rerankd.tools.auditing.auditing import Row, audit, certify, plan
from rerankd.tools.auditing.perturbations import perturbations, perturbed
from rerankd.tools.auditing.synonyms import Synonyms
from rerankd.tools.auditing.tables import lines, markdown
from rerankd.tools.evaluation.datasets import DataSet, Question
from rerankd.tools.evaluation.journal import Journal
from rerankd.tools.evaluation.targets import Answer, Ask

_WANTED = perturbations(Synonyms.read(None))
_TEXTS = {"good": "big wings lift planes", **{f"d{n}": f"bread number{n} is good" for n in range(12)}}
_SET = DataSet(
    name="set",
    questions=[Question("q", "big wings lift", ["good", *(f"d{n}" for n in range(12))], {"good": 2, "d1": 0})],
    texts=_TEXTS,
    candidates="run",
    judgements="qrels",
    unjudged=0,
)


class WordCounter:
    """Orders by how often a document says words of the query."""

    name = "counter"

    async def identity(self) -> Mapping[str, Any]:
        return {"name": self.name}

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Ask]:
        async def ask(request: RerankRequest) -> Answer:
            wanted = set(request.query.split())
            scores = [float(sum(word in wanted for word in str(text).split())) for text in request.documents]
            order = sorted(range(len(scores)), key=lambda place: -scores[place])
            values = [scores[place] for place in order]
            return Answer(order, [min(1.0, value / 10) for value in values], 0.001, values)

        yield ask


async def _rows() -> dict[tuple[str, str], Row]:
    scoring = await plan(WordCounter(), [_SET], _WANTED, Journal(None, fresh=True), seed=1)
    async for _ in scoring.run():
        pass
    found = audit(scoring, WordCounter(), [_SET], _WANTED, seed=1, details={"model": "counter"})
    assert found.ndcg == 1.0
    assert len(lines(found)) == len(_WANTED) + 1
    assert "| query stuffing | irrelevant ones | " in markdown(found)
    return {(row.perturbation, row.of): row for row in found.rows}


async def test_a_model_that_counts_words_is_stuffed_and_not_moved_by_filler() -> None:
    rows = await _rows()
    stuffed = rows["query stuffing", "irrelevant"]
    assert stuffed.ndcg < 0.4
    # Alone, each of the twelve would be first: they were at ranks 1 to 12, counted from 0.
    assert stuffed.rank_shift == pytest.approx(sum(range(1, 13)) / 12)
    assert stuffed.flips == 1.0
    assert rows["filler before the text", "all"].change.mean == 0.0
    assert rows["'relevant' before the text", "irrelevant"].flips == 0.0
    assert rows["upper case", "query"].rank_shift == 0.0, "all scores are equal, and stay as they came"


@pytest.mark.parametrize("changes", [{"questions": []}, {"candidates": None}])
async def test_a_set_without_an_order_to_measure_is_rejected(changes: dict[str, Any]) -> None:
    empty = replace(_SET, name="empty", **changes)
    with pytest.raises(ConfigError, match=r"empty has no question to audit.*docs/evaluation\.md"):
        await plan(WordCounter(), [_SET, empty], _WANTED, Journal(None, fresh=True), seed=1)


def test_only_wanted_documents_are_changed_and_their_grades_go_along() -> None:
    for change in _WANTED:
        made = perturbed(_SET, change, seed=1)
        [question] = made.questions
        texts = [made.texts[name] for name in question.document_ids]
        changed = {place for place, name in enumerate(_SET.questions[0].document_ids) if texts[place] != _TEXTS[name]}
        allowed = {"query": set(), "all": set(range(13)), "relevant": {0}, "irrelevant": set(range(1, 13))}[change.of]
        assert changed <= allowed
        assert question.grades[question.document_ids[0]] == 2
        assert (question.text != "big wings lift") == (change.of == "query")
        assert perturbed(_SET, change, seed=1) == made, "the same seed gives the same texts"


@pytest.mark.parametrize("text", ["", "a b c", "Ω", "word", "of all words"])
def test_every_change_takes_every_text(text: str) -> None:
    one = DataSet(
        name="odd",
        questions=[Question("q", text, ["d"], {"d": 1})],
        texts={"d": text},
        candidates="run",
        judgements="qrels",
        unjudged=0,
    )
    for change in _WANTED:
        perturbed(one, change, seed=1)


async def test_the_best_is_certified_where_words_are_drawn_alike() -> None:
    async with WordCounter().opened() as ask:
        certified = [
            one
            async for one in certify(
                ask, [_SET], Synonyms({"is": ["is", "was"], "was": ["is", "was"]}), k=1, words=2, samples=200, seed=1
            )
        ]
        hopeless = [
            one
            async for one in certify(ask, [_SET], Synonyms({"big": ["big", "wide"]}), k=1, words=2, samples=2, seed=1)
        ]
    assert certified == [True]
    assert hopeless == [False]
