"""Asks a loaded model questions with an obvious answer: a model with a wrong prompt, head or label scores noise.

Each question comes with a passage that answers it and one about something else. A reranker puts the first one first. A
model that fails at one of them loads and computes without a fault, so that nothing else finds it out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from rerankd.concurrency.slices import run_to_end
from rerankd.domain import IntArray
from rerankd.engines.base import LogitsEngine
from rerankd.errors import ConfigError, InvalidRequest
from rerankd.scorers.base import (
    AnyBlockScorer,
    AnyComparisonScorer,
    AnyGroupScorer,
    AnyListScorer,
    AnyPairScorer,
    AnyVectorScorer,
    AsksOverDocuments,
    PairReader,
    Scorer,
)


class Question(NamedTuple):
    text: str
    answer: str
    other: str


ENGLISH: Final = (
    Question(
        "What is the capital of France?",
        "Paris is the capital and the largest city of France.",
        "Knead the dough for ten minutes and let it rise in a warm place.",
    ),
    Question(
        "how do bees make honey",
        "Bees collect nectar from flowers, carry it to the hive and turn it into honey there.",
        "The central bank raised its interest rate by half a percentage point on Thursday.",
    ),
    Question(
        "symptoms of dehydration",
        "Thirst, dark urine, dizziness and tiredness are symptoms of dehydration.",
        "The train to Vienna leaves from platform four at half past nine.",
    ),
    Question(
        "Who wrote Hamlet?",
        "Hamlet is a tragedy that William Shakespeare wrote about the year 1600.",
        "Solar panels turn light into electricity without moving parts.",
    ),
    Question(
        "how to change a bicycle tyre",
        "To change a bicycle tyre, take the wheel off, lift the tyre over the rim with levers and put the new one on.",
        "Penguins live in the southern hemisphere and cannot fly.",
    ),
    Question(
        "why is the sky blue",
        "The sky is blue because air scatters blue light from the sun more than red light.",
        "The company has two hundred employees and an office in Madrid.",
    ),
)
# Asked only where the tokenizer reads the language: see `_reads`.
OTHERS: Final = (
    Question(
        "Какой город является столицей Франции?",
        "Париж является столицей и самым большим городом Франции.",
        "Поезд в Вену уходит в половине десятого утра.",
    ),
    Question(
        "Was sind die Symptome von Wassermangel?",
        "Durst, dunkler Urin, Schwindel und Müdigkeit sind Symptome von Wassermangel.",
        "Der Zug nach Wien fährt um halb zehn von Gleis vier ab.",
    ),
    Question(
        "为什么天空是蓝色的?",
        "天空是蓝色的,因为空气散射的蓝光比红光多。",
        "这家公司有两百名员工,在马德里设有办事处。",
    ),
    Question(
        "¿Quién escribió Don Quijote?",
        "Don Quijote es una novela que Miguel de Cervantes escribió a comienzos del siglo XVII.",
        "Los paneles solares convierten la luz en electricidad.",
    ),
)
_MULTILINGUAL: Final = OTHERS[0]
# A token of a language that a tokenizer was made for has about four characters; of another alphabet one, or less.
_LEAST_CHARACTERS: Final = 2


@dataclass(frozen=True, slots=True)
class Certificate:
    """How many questions were asked, and which of them the model answered wrongly."""

    asked: int
    wrong: Sequence[str]

    @property
    def certified(self) -> bool:
        return not self.wrong

    @property
    def reason(self) -> str:
        """Why it is not certified; empty where it is."""
        if self.certified:
            return ""
        return (
            f"uncertified: of {self.asked} questions with an obvious answer it ranks {len(self.wrong)} wrongly, for "
            f"example {self.wrong[0]!r}; check its prompt, its head and its options with `rerankd inspect`"
        )


def certify(engine: LogitsEngine, scorer: Scorer) -> Certificate | None:
    """Ask a model its questions; None where they do not fit into what it reads."""
    try:
        return scorer.by_kind(_Asking(engine))
    except InvalidRequest:
        return None


@dataclass(frozen=True, slots=True)
class _Asking:
    """Asks a scorer of each kind."""

    engine: LogitsEngine

    def pairs(self, scorer: AnyPairScorer, /) -> Certificate:
        (pair,) = scorer.encode(_MULTILINGUAL.text, [_MULTILINGUAL.answer], max_document_tokens=None).encodings
        return _certificate(scorer, pair.ids, lambda question: self._separates(scorer, question))

    def vectors(self, scorer: AnyVectorScorer, /) -> Certificate:
        (query,) = scorer.encode("query", [_MULTILINGUAL.text], max_tokens=None).encodings
        (answer,) = scorer.encode("document", [_MULTILINGUAL.answer], max_tokens=None).encodings
        ids = np.concatenate((query.ids, answer.ids))
        return _certificate(scorer, ids, lambda question: self._is_closer(scorer, question))

    def lists(self, scorer: AnyListScorer, /) -> Certificate:
        return Certificate(len(ENGLISH), [question.text for question in ENGLISH if not self._orders(scorer, question)])

    def groups(self, scorer: AnyGroupScorer, /) -> Certificate:
        raise ConfigError(f"a model that writes text is not asked ({scorer.task.name})")

    def blocks(self, scorer: AnyBlockScorer, /) -> Certificate:
        wrong = [question.text for question in ENGLISH if not self._compares(scorer, question)]
        return Certificate(len(ENGLISH), wrong)

    def comparisons(self, scorer: AnyComparisonScorer, /) -> Certificate:
        return Certificate(len(ENGLISH), [question.text for question in ENGLISH if not self._prefers(scorer, question)])

    def _separates(self, scorer: AnyPairScorer, question: Question) -> bool:
        """Whether the answer scores higher than the other passage."""
        pairs = scorer.encode(question.text, [question.answer, question.other], max_document_tokens=None)
        answer, other = scorer.interpret(self.engine.run(pairs.encodings))
        return bool(answer > other)

    def _is_closer(self, scorer: AnyVectorScorer, question: Question) -> bool:
        """Whether the answer's vectors are closer to the question's than the other passage's."""
        asked_text = question.text
        if isinstance(scorer, AsksOverDocuments):
            asked_text = scorer.query_over(question.text, [question.answer, question.other], None)
        query = scorer.encode("query", [asked_text], max_tokens=None).encodings
        documents = scorer.encode("document", [question.answer, question.other], max_tokens=None).encodings
        encodings = [*query, *documents]
        asked, *passages = map(scorer.vectors, encodings, self.engine.run(encodings))
        answer, other = scorer.compare(asked, passages)
        return bool(answer > other)

    def _orders(self, scorer: AnyListScorer, question: Question) -> bool:
        """Whether the answer comes first, be it the first candidate or the second."""
        windows = [[question.answer, question.other], [question.other, question.answer]]
        encoded = [scorer.encode_window(question.text, window, max_document_tokens=None).encoding for window in windows]
        first, second = (scorer.interpret_window(row, candidates=2) for row in self.engine.run(encoded))
        return bool(first[0] > first[1] and second[1] > second[0])

    def _compares(self, scorer: AnyBlockScorer, question: Question) -> bool:
        """Whether the answer scores higher, be it the first document or the second."""
        requests = [[question.answer, question.other], [question.other, question.answer]]
        blocks = [
            run_to_end(scorer.encode_blocks(question.text, texts, max_document_tokens=None)) for texts in requests
        ]
        first, second = (scorer.interpret_blocks(list(self.engine.run(block.encodings))) for block in blocks)
        return bool(first[0] > first[1] and second[1] > second[0])

    def _prefers(self, scorer: AnyComparisonScorer, question: Question) -> bool:
        """Whether the answer wins more against the other passage than that against the answer."""
        documents = [question.answer, question.other]
        encoded = scorer.encode_comparisons(question.text, documents, [(0, 1), (1, 0)], max_document_tokens=None)
        answer, other = scorer.interpret_comparisons(self.engine.run(encoded.encodings))
        return bool(answer > other)


def _certificate(reader: PairReader, ids: IntArray, answers: Callable[[Question], bool]) -> Certificate:
    """`ids` are those of the multilingual question and its answer."""
    questions = (*ENGLISH, *OTHERS) if _reads(reader, ids) else ENGLISH
    return Certificate(len(questions), [question.text for question in questions if not answers(question)])


def _reads(reader: PairReader, ids: IntArray) -> bool:
    """Whether a tokenizer knows a language: it cuts its words into a few tokens each, and those are not all unknown."""
    texts = [_MULTILINGUAL.text, _MULTILINGUAL.answer]
    tokens = sum(edges.tokens for edges in reader.edges(texts))
    return tokens <= sum(map(len, texts)) / _LEAST_CHARACTERS and len(np.unique(ids)) > tokens / 2
