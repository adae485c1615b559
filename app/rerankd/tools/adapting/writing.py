"""Queries that a chat model behind an OpenAI-compatible endpoint writes for documents, by a few examples (Promptagator,
Dai et al. 2022, arXiv 2209.11755).
"""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from math import inf
from pathlib import Path
from typing import Final

from rerankd.engines.base import EngineSpec
from rerankd.engines.remote.endpoint import EndpointEngine
from rerankd.errors import ConfigError, RemoteFailed, RemoteUnavailable
from rerankd.tasks.generate import Chat, Conversation, Message
from rerankd.tools.adapting.lessons import Corpus, Lesson
from rerankd.tools.trec import read_objects

_TASK: Final = (
    "You get a passage. Write one search query that a user would type and that this passage answers. "
    "Answer with the query alone."
)
_BEES: Final = (
    "A worker bee lives about six weeks in summer. Bees that hatch in autumn live up to five months, since they "
    "rest in the hive over winter."
)
_ASPIRIN: Final = (
    "In four randomised trials, daily aspirin for five years reduced the twenty-year risk of colon cancer by a "
    "quarter. No effect on rectal cancer was found."
)
_CONE: Final = (
    "Heat transfer was measured on a blunt cone at Mach 10. The boundary layer became turbulent earlier when the "
    "surface was rough."
)
_EXAMPLES: Final = (
    (_BEES, "how long do honey bees live"),
    (_ASPIRIN, "does aspirin prevent colon cancer"),
    (_CONE, "effect of surface roughness on hypersonic boundary layer transition"),
)
_AT_A_TIME: Final = 4
_DOCUMENT_CHARS: Final = 2000
_QUERY_WORDS: Final = range(2, 33)


def read_examples(path: Path | None) -> Sequence[tuple[str, str]]:
    """Documents and their queries (JSONL: `document`, `query`), or the built-in ones for None.

    Raises:
        ConfigError: the file is missing or empty, or a line is no such pair.
    """
    if path is None:
        return _EXAMPLES
    examples = []
    for number, entry in read_objects(path, fields=("document", "query")):
        if not isinstance(entry["document"], str) or not isinstance(entry["query"], str):
            raise ConfigError(f"{path}:{number}: document and query must be strings")
        examples.append((entry["document"], entry["query"]))
    if not examples:
        raise ConfigError(f"{path} holds no examples; leave --examples out to use the built-in ones")
    return examples


class QueryWriter:
    """Asks one endpoint; it answers at temperature 0, so the same documents get the same queries."""

    def __init__(self, url: str, model: str, *, api_key_file: Path | None, examples: Sequence[tuple[str, str]]) -> None:
        """Raises `ConfigError` if an option cannot be used; nothing is asked yet."""
        options = {"url": url, "model": model, "max_tokens": 64}
        if api_key_file is not None:
            options["api_key_file"] = str(api_key_file)
        engine = EndpointEngine.load(EngineSpec(folder=Path(), pad_id=0, task=Chat(), options=options))
        assert isinstance(engine, EndpointEngine)  # noqa: S101 - the task is not to sample
        self._engine = engine
        self._opening = [Message("system", _TASK)]
        for document, query in examples:
            self._opening += [Message("user", document), Message("assistant", query)]

    async def write(self, document_ids: Sequence[str], corpus: Corpus) -> AsyncIterator[tuple[str, str]]:
        """A query for each document, "" where the answer is none, in the order of the documents.

        Raises:
            ConfigError: the endpoint does not answer; what it answered before has been yielded.
        """
        for start in range(0, len(document_ids), _AT_A_TIME):
            part = document_ids[start : start + _AT_A_TIME]
            try:
                answers = await asyncio.gather(*(self._ask(corpus[name].full_text) for name in part))
            except (RemoteUnavailable, RemoteFailed) as error:
                raise ConfigError(f"--endpoint: {error.message}; the same command continues from there") from None
            for document_id, answer in zip(part, answers, strict=True):
                yield document_id, query_in(answer)

    async def close(self) -> None:
        await self._engine.client.close()

    async def _ask(self, document: str) -> str:
        conversation = Conversation((*self._opening, Message("user", document[:_DOCUMENT_CHARS])))
        [answer] = await self._engine.ask([conversation], inf)
        return answer.text


def query_in(answer: str) -> str:
    """The query of an answer: its first line, without a label and quotation marks; "" if that is no query."""
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    if not lines:
        return ""
    query = re.sub(r"^(search )?query:\s*", "", lines[0], flags=re.IGNORECASE).strip("\"'“”`* ")
    return query if len(query.split()) in _QUERY_WORDS else ""


def written_lesson(document_id: str, query: str) -> Lesson:
    return Lesson(query_id=document_id, query=query, gains={document_id: 1.0}, family=document_id)
