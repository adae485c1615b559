"""What a model learns from: queries, and how relevant documents are to them. Reads corpora and judgements. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Final

from rerankd.errors import ConfigError
from rerankd.tools.evaluation.datasets import DataSet, Question
from rerankd.tools.trec import read_objects, read_texts

_HELD_OUT_OF: Final = 5
# nDCG is linear in gains, and its judgements are whole numbers.
_GRADES_PER_GAIN: Final = 100


@dataclass(frozen=True, slots=True)
class Document:
    """A document of the corpus; `full_text` is what a reranker reads."""

    title: str
    text: str

    @property
    def full_text(self) -> str:
        return f"{self.title}. {self.text}" if self.title else self.text


Corpus = Mapping[str, Document]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """A query with the gains of its relevant documents, all above 0, and its candidates, best first.

    `reads` is what stands for a document from which the query was taken. Lessons of one `family` are held out together.
    """

    query_id: str
    query: str
    gains: Mapping[str, float]
    family: str
    reads: Mapping[str, str] = field(default_factory=dict)
    candidates: Sequence[str] = ()

    def text_of(self, document_id: str, corpus: Corpus) -> str:
        return self.reads.get(document_id) or corpus[document_id].full_text

    def with_candidates(self, document_ids: Sequence[str]) -> "Lesson":
        return replace(self, candidates=document_ids)


def read_corpus(path: Path) -> dict[str, Document]:
    """Documents by id: JSONL with `id`, `text` and an optional `title`.

    Raises:
        ConfigError: the file is missing or holds fewer than two documents, or a line is no document.
    """
    corpus: dict[str, Document] = {}
    for number, entry in read_objects(path, fields=("id", "text")):
        title, text = entry.get("title") or "", entry["text"]
        if not isinstance(text, str) or not isinstance(title, str):
            raise ConfigError(f"{path}:{number}: text and title must be strings")
        corpus[str(entry["id"])] = Document(title, text)
    if len(corpus) < 2:
        raise ConfigError(f"{path} holds {len(corpus)} documents; a model learns to tell one from others")
    return corpus


def judged_lessons(grades: Mapping[str, Mapping[str, int]], queries: Path, corpus: Corpus) -> list[Lesson]:
    """A lesson for each query with a relevant document; a gain is the grade's share of the highest one.

    Raises:
        ConfigError: no judged query has a text and a relevant document in the corpus.
    """
    texts = read_texts(queries)
    highest = max((grade for of_query in grades.values() for grade in of_query.values()), default=0)
    lessons = []
    for query_id, of_query in grades.items():
        gains = {name: grade / highest for name, grade in of_query.items() if grade > 0 and name in corpus}
        if gains and query_id in texts:
            query = texts[query_id]
            lessons.append(Lesson(query_id=query_id, query=query, gains=gains, family=family_of(query)))
    if not lessons:
        raise ConfigError(f"no query of {queries} has a judged relevant document in the corpus; judge some first")
    return lessons


def family_of(query: str) -> str:
    """Queries that differ in case and white space alone are of one family."""
    return " ".join(query.lower().split())


def without(lessons: Iterable[Lesson], held_out: Sequence[DataSet]) -> list[Lesson]:
    """The lessons whose queries are in none of the sets that the proof is made on."""
    taken = {family_of(question.text) for one in held_out for question in one.questions}
    return [lesson for lesson in lessons if family_of(lesson.query) not in taken]


def split(lessons: Sequence[Lesson], *, seed: int, most_held_out: int) -> tuple[list[Lesson], list[Lesson]]:
    """Lessons to learn from, and about a fifth that is held out: whole families, by a hash of the family and the seed.

    Raises:
        ConfigError: nothing is left on one of the sides.
    """
    learnt: list[Lesson] = []
    held_out: list[Lesson] = []
    for lesson in lessons:
        digest = blake2b(f"{seed} {lesson.family}".encode(), digest_size=4).digest()
        (learnt if int.from_bytes(digest) % _HELD_OUT_OF else held_out).append(lesson)
    if not learnt or not held_out:
        raise ConfigError(
            f"{len(lessons)} queries are too few to learn from and to hold some out; give more, or judged questions "
            "with --held-out"
        )
    return learnt, held_out[:most_held_out]


def data_set(lessons: Sequence[Lesson], corpus: Corpus, *, name: str) -> DataSet:
    """Lessons as a set that `rerankd eval` measures. A document that reads otherwise for a query has a name of its own
    there.
    """
    texts = {name: document.full_text for name, document in corpus.items()}
    questions = []
    for lesson in lessons:
        alias = {name: f"{name} of {lesson.query_id}" for name in lesson.reads}
        texts |= {alias[name]: text for name, text in lesson.reads.items()}
        grades = {alias.get(name, name): round(_GRADES_PER_GAIN * gain) for name, gain in lesson.gains.items()}
        candidates = [alias.get(name, name) for name in lesson.candidates]
        questions.append(Question(lesson.query_id, lesson.query, candidates, grades))
    return DataSet(
        name=name, questions=questions, texts=texts, candidates="BM25", judgements="the queries' own", unjudged=0
    )


def renumbered(lessons: Iterable[Lesson], *, prefix: str) -> list[Lesson]:
    """Lessons without those whose query another one has already, with ids of their own."""
    first = {lesson.query.lower(): lesson for lesson in reversed(list(lessons))}
    kept = list(reversed(first.values()))
    return [replace(lesson, query_id=f"{prefix}{number}") for number, lesson in enumerate(kept)]
