"""Reads evaluation data: questions, their candidates in first-stage order, and judgements.

A data folder holds `corpus.jsonl`, `queries.jsonl`, `qrels.tsv` (or `qrels.<name>.tsv`) and the candidates:
`run.<name>.tsv`, or `candidates.tsv` (a fixed pool per query). A folder without candidates is a set of judged pairs:
only its judged documents are scored, and only the AUC is meaningful. Any file may be gzipped.
"""

import gzip
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

from rerankd.errors import ConfigError
from rerankd.tools.trec import Candidates, read_run, read_texts

Grades = Mapping[str, Mapping[str, int]]

_DEFAULT_RUN = "bm25"
_POOL = "candidates"
_PREFERRED_QRELS = "full"


@dataclass(frozen=True, slots=True)
class Question:
    """A judged query: its candidates in first-stage order, the grades of its documents, and the first stage's scores of
    the candidates; empty: it has none, as a pool.
    """

    query_id: str
    text: str
    document_ids: Sequence[str]
    grades: Mapping[str, int]
    first_scores: Sequence[float] = ()

    @property
    def half(self) -> int:
        """0 or 1, by a hash of the query's id: the same in every run, and whatever other questions there are."""
        return blake2b(self.query_id.encode(), digest_size=1).digest()[0] % 2

    @property
    def answerable(self) -> bool:
        """Whether any document is relevant. If none is, every order is equally good."""
        return max(self.grades.values(), default=0) > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Questions with a judgement, in the order of the queries file. `level` is the lowest grade that is relevant where
    a measure knows only relevant and not; `unjudged` counts the run's queries that have no judgement.
    """

    name: str
    questions: Sequence[Question]
    texts: Mapping[str, str]
    candidates: str | None
    judgements: str
    unjudged: int
    level: int = 1

    @property
    def ranked(self) -> Sequence[Question]:
        """The questions that measures of an order are averaged over; none in a set of judged pairs."""
        return [question for question in self.questions if question.answerable] if self.candidates else []

    def first(self, count: int | None) -> "DataSet":
        return replace(self, questions=self.questions[:count])

    def half(self, number: int) -> "DataSet":
        """The questions of one half, under a name of its own."""
        questions = [question for question in self.questions if question.half == number]
        return replace(self, questions=questions, name=f"{self.name}, half {number + 1}")

    def with_level(self, level: int) -> "DataSet":
        return replace(self, level=level)


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The files of one set. `run` None: the candidates are the judged documents."""

    name: str
    corpus: Path
    queries: Path
    qrels: Path
    run: Path | None


def files_of_folder(folder: Path, *, run: str | None, qrels: str | None) -> Files:
    """A data folder's files: candidates of the retriever `run` and judgements of the split `qrels`.

    Raises:
        ConfigError: a file is missing, or the folder leaves open which run is meant.
    """
    return Files(
        name=folder.resolve().name,
        corpus=corpus_file(folder),
        queries=_wanted(folder, "queries.jsonl"),
        qrels=_qrels_file(folder, qrels),
        run=_run_file(folder, run),
    )


def corpus_file(folder: Path) -> Path:
    """A data folder's documents.

    Raises:
        ConfigError: there is no such folder, or it has none.
    """
    if not folder.is_dir():
        raise ConfigError(f"there is no data folder {folder}; correct the path")
    return _wanted(folder, "corpus.jsonl")


def read_data_set(files: Files, *, depth: int) -> DataSet:
    """Read a set with the best `depth` candidates per query. A pool of judged pairs is not cut.

    Raises:
        ConfigError: a file is missing or malformed, nothing is judged, or a candidate has no text.
    """
    grades, queries, texts = read_grades(files.qrels), read_texts(files.queries), read_texts(files.corpus)
    candidates = _candidates(files.run, depth) if files.run else _judged(grades)
    nothing = Candidates("", (), ())
    questions = [
        Question(query_id, text, found.document_ids, grades[query_id], found.scores)
        for query_id, text in queries.items()
        if query_id in grades and (found := candidates.get(query_id, nothing))
    ]
    if not questions:
        raise ConfigError(f"{files.qrels} judges none of the queries in {files.queries}; choose others with --qrels")
    _check_texts(files, questions, texts)
    return DataSet(
        name=files.name,
        questions=questions,
        texts=texts,
        candidates=files.run.name if files.run else None,
        judgements=files.qrels.name,
        unjudged=sum(query_id not in grades for query_id in candidates),
    )


def read_grades(path: Path) -> dict[str, dict[str, int]]:
    """Grades by query and document: TREC's four columns (query 0 document grade) or three (query document grade).

    Raises:
        ConfigError: the file is missing or holds no judgement, or a line is in neither format.
    """
    grades: dict[str, dict[str, int]] = {}
    for number, columns in _rows(path):
        if len(columns) not in (3, 4):
            raise ConfigError(f"{path}:{number}: qrels have 4 columns (or 3); got {len(columns)}")
        try:
            grades.setdefault(columns[0], {})[columns[-2]] = int(columns[-1])
        except ValueError:
            if number > 1:  # the first line may be BEIR's header
                raise ConfigError(f"{path}:{number}: the grade {columns[-1]!r} is not a whole number") from None
    grades = {query: of_query for query, of_query in grades.items() if of_query}
    if not grades:
        raise ConfigError(f"{path} holds no judgements; leave the set out, or choose others with --qrels")
    return grades


def _candidates(path: Path, depth: int) -> dict[str, Candidates]:
    if path.name.removesuffix(".gz") == f"{_POOL}.tsv":
        return {query: Candidates(query, documents[:depth], ()) for query, documents in _read_pool(path).items()}
    return {wanted.query_id: wanted for wanted in read_run(path, depth=depth)}


def _judged(grades: Grades) -> dict[str, Candidates]:
    return {query: Candidates(query, list(of_query), ()) for query, of_query in grades.items()}


def _read_pool(path: Path) -> dict[str, list[str]]:
    """A pool has two columns (query document), or a third with the rank; without one the order of lines counts."""
    pools: dict[str, list[tuple[float, str]]] = {}
    for number, columns in _rows(path):
        try:
            query, document, *rank = columns
            pool = pools.setdefault(query, [])
            pool.append((float(rank[0]) if rank else len(pool), document))
        except ValueError:
            raise ConfigError(f"{path}:{number}: a pool has a query, a document and maybe a rank") from None
    return {
        query: [document for _, document in sorted(pool, key=lambda entry: entry[0])] for query, pool in pools.items()
    }


def _check_texts(files: Files, questions: Sequence[Question], texts: Mapping[str, str]) -> None:
    for question in questions:
        missing = [document for document in question.document_ids if document not in texts]
        if missing:
            source = (files.run or files.qrels).name
            raise ConfigError(f"{source} names documents {', '.join(missing[:3])}, which {files.corpus} does not have")


def _run_file(folder: Path, name: str | None) -> Path | None:
    if name is not None:
        return _wanted(folder, f"{_POOL}.tsv" if name == _POOL else f"run.{name}.tsv")
    runs = sorted({*folder.glob("run.*.tsv"), *folder.glob("run.*.tsv.gz")})
    default = _found(folder, f"run.{_DEFAULT_RUN}.tsv") or _found(folder, f"{_POOL}.tsv")
    if default or not runs:
        return default
    if len(runs) > 1:
        names = ", ".join(path.name.split(".")[1] for path in runs)
        raise ConfigError(f"{folder} has several runs; choose one with --run: {names}")
    return runs[0]


def _qrels_file(folder: Path, name: str | None) -> Path:
    """`name` is a split, or `qrels` for the plain file where there is another one that is preferred."""
    if name is None:
        return _found(folder, f"qrels.{_PREFERRED_QRELS}.tsv") or _wanted(folder, "qrels.tsv")
    return _wanted(folder, "qrels.tsv" if name == "qrels" else f"qrels.{name}.tsv")


def _wanted(folder: Path, name: str) -> Path:
    path = _found(folder, name)
    if path is None:
        alike = sorted(entry.name for entry in folder.glob(f"{name.partition('.')[0]}*"))
        there = f"; there is {', '.join(alike)}" if alike else "; docs/evaluation.md says what a data folder holds"
        raise ConfigError(f"{folder} has no {name} (or {name}.gz){there}")
    return path


def _found(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            yield from ((number, line.split()) for number, line in enumerate(file, start=1) if line.strip())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error}") from None
