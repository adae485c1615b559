"""Keeps answers in an append-only file, so that an interrupted evaluation can be resumed.

One JSON line per answer, with a key made of everything that changes it: model, depth, texts and truncation. Lines that
are no longer needed do no harm.
"""

import os
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import orjson

from rerankd.domain import RerankRequest
from rerankd.errors import ConfigError
from rerankd.tools.evaluation.targets import Answer

# Of a line, in the order of an answer's.
_FIELDS = ("order", "scores", "seconds", "values")


def answer_key(identity: Mapping[str, Any], request: RerankRequest) -> str:
    asked = [identity, request.query, list(request.documents), request.options.max_tokens_per_doc]
    return blake2b(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()


class Journal:
    """Answers by key. Without a path they are kept in memory only."""

    def __init__(self, path: Path | None, *, fresh: bool) -> None:
        """Read an earlier run's answers, or delete them with `fresh`. An incomplete last line is cut off.

        Raises:
            ConfigError: the file is no journal, or cannot be read or written.
        """
        self._answers: dict[str, Answer] = {}
        self._file: IO[bytes] | None = None
        if path is None:
            return
        try:
            if not fresh and path.exists():
                self._read(path)
            self._file = path.open("wb" if fresh else "ab")
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror or error}") from None

    def __getitem__(self, key: str) -> Answer:
        return self._answers[key]

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def add(self, key: str, answer: Answer) -> None:
        self._answers[key] = answer
        if self._file is not None:
            line = {
                "key": key,
                "order": answer.order,
                "scores": answer.relevance_scores,
                "seconds": answer.seconds,
                "values": answer.values,
            }
            self._file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, path: Path) -> None:
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                entry = orjson.loads(line)
                self._answers[entry["key"]] = Answer(*map(entry.__getitem__, _FIELDS))
            except (ValueError, KeyError, TypeError):
                raise ConfigError(f"{path}:{number} is not a line of a journal; start again with --fresh") from None
        if whole < len(content):
            os.truncate(path, whole)
