"""Reads the files of a retrieval experiment: corpus, queries and run, plain or gzipped.

A corpus and queries are JSONL ({"id", "text", "title"?}). A run is TREC's six columns (query Q0 document rank score
tag) or four (query document rank score), in any order of lines.
"""

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rerankd.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Candidates:
    """One query of a run and its documents, best first, with the run's scores of them."""

    query_id: str
    document_ids: Sequence[str]
    scores: Sequence[float]


def read_texts(path: Path) -> dict[str, str]:
    """Texts by id, each preceded by its title, if any.

    Raises:
        ConfigError: the file is missing, or a line is not an object with an id and a text.
    """
    return {str(entry["id"]): _with_title(entry) for _, entry in read_objects(path, fields=("id", "text"))}


def read_run(path: Path, *, depth: int | None = None) -> list[Candidates]:
    """A run's queries in order of first appearance, each with its best `depth` documents by rank.

    Raises:
        ConfigError: the file is missing, or a line is in neither format.
    """
    ranked: dict[str, list[tuple[float, str, float]]] = {}
    for number, line in enumerate(_lines(path), start=1):
        columns = line.split()
        if not columns:
            continue
        if len(columns) not in (4, 6):
            raise ConfigError(f"{path}:{number}: a run has 6 columns (or 4); got {len(columns)}: {line[:80]!r}")
        document, rank, score = columns[2:5] if len(columns) == 6 else columns[1:]
        try:
            ranked.setdefault(columns[0], []).append((float(rank), document, float(score)))
        except ValueError:
            raise ConfigError(f"{path}:{number}: the rank {rank!r} or the score {score!r} is not a number") from None
    best = {query_id: sorted(documents, key=_rank)[:depth] for query_id, documents in ranked.items()}
    return [
        Candidates(query_id, [document for _, document, _ in documents], [score for *_, score in documents])
        for query_id, documents in best.items()
    ]


def read_objects(path: Path, *, fields: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The objects of a JSONL file with their line numbers.

    Raises:
        ConfigError: a line is not a JSON object with these fields.
    """
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path}:{number}: not valid JSON: {error}") from None
        if not isinstance(entry, dict) or any(name not in entry for name in fields):
            raise ConfigError(f"{path}:{number}: each line must be a JSON object with {', '.join(fields)}")
        yield number, entry


def _rank(ranked: tuple[float, str, float]) -> float:
    return ranked[0]


def _with_title(entry: Mapping[str, Any]) -> str:
    title = entry.get("title")
    return f"{title}. {entry['text']}" if title else str(entry["text"])


def _lines(path: Path) -> Iterator[str]:
    try:
        with _open(path) as file:
            yield from file
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error}") from None


def _open(path: Path) -> IO[str]:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
