"""Reads the data folders (`corpus.jsonl`, `queries.jsonl`, `qrels*.tsv`, `run.*.tsv`), each of them gzipped or not."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Grades = dict[str, dict[str, int]]


class DataMissing(FileNotFoundError):
    """A file that the recipe reads is not in the data folder."""


@dataclass(frozen=True)
class Document:
    """A passage; `full_text` is what a retriever indexes and a reranker reads."""

    text: str
    title: str

    @property
    def full_text(self) -> str:
        return f"{self.title}. {self.text}" if self.title else self.text


@dataclass(frozen=True)
class Query:
    text: str
    answers: tuple[str, ...]


def lines_of(folder: Path, name: str) -> Iterator[str]:
    """Yield the lines of `name` or `name.gz`; raise `DataMissing` where the folder has neither."""
    plain, packed = folder / name, folder / f"{name}.gz"
    if plain.exists():
        with plain.open(encoding="utf-8") as file:
            yield from file
    elif packed.exists():
        with gzip.open(packed, mode="rt", encoding="utf-8") as file:
            yield from file
    else:
        raise DataMissing(f"neither {name} nor {name}.gz in {folder}")


def read_documents(folder: Path) -> dict[str, Document]:
    rows = map(json.loads, lines_of(folder, "corpus.jsonl"))
    return {row["id"]: Document(row["text"], row.get("title") or "") for row in rows}


def read_queries(folder: Path) -> dict[str, Query]:
    rows = map(json.loads, lines_of(folder, "queries.jsonl"))
    return {row["id"]: Query(row["text"], tuple(row.get("answers") or ())) for row in rows}


def read_grades(folder: Path, name: str = "qrels.tsv") -> Grades:
    """Return the grades by query and document."""
    grades: Grades = {}
    for line in lines_of(folder, name):
        query, document, grade = line.split("\t")
        grades.setdefault(query, {})[document] = int(grade)
    return grades


def read_run(folder: Path, name: str = "run.bm25.tsv", *, depth: int = 100) -> dict[str, dict[str, float]]:
    """Return the scores of each query's first `depth` documents, in the order of their ranks."""
    run: dict[str, dict[str, float]] = {}
    for line in lines_of(folder, name):
        query, document, rank, score = line.split("\t")
        if int(rank) <= depth:
            run.setdefault(query, {})[document] = float(score)
    return run
