"""Reranks files of millions of pairs on a Ray cluster: `rerankd rank --ray`.

The input is cut into chunks of whole lines. Actors rank one chunk at a time, and write its answers to a file of their
own, which appears at once or not at all. Its name has the chunk's number and a hash of the chunk's bytes. An actor that
ranks a chunk again, after a death or because a death was only suspected, writes the same file. So each request has
exactly one answer, whatever dies. A manifest says what the files belong to, and the same command continues from there.
At the end they become one file, in the order of the input. All nodes must see the files at the same path.
"""

import asyncio
import os
import shutil
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import orjson
import ray
from ray.exceptions import RayActorError

from rerankd import __version__
from rerankd.config.settings import Settings, read_settings
from rerankd.domain import RerankRequest, RerankResult
from rerankd.errors import ConfigError, InvalidRequest, ModelNotFound, RerankError
from rerankd.serving.assembly import running_service
from rerankd.telemetry.observer import Silent
from rerankd.tools.rank import Job, answer_line, in_order, outcome_of, read_request, without_limits

Rerank = Callable[[RerankRequest], Awaitable[RerankResult | RerankError]]
# Opens what reranks, in an actor.
Opening = Callable[["Work"], AbstractAsyncContextManager[Rerank]]

# A chunk that ends its actor as often as this would do so for ever.
_TRIES: Final = 5
_MANIFEST: Final = "manifest.json"
_NO_DOCUMENTS: Final = InvalidRequest("no documents; give at least one")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is ranked, and into which folder. `settings` win over the environment's, as in `read_settings`."""

    source: str
    parts: str
    model: str | None
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Whole lines of the input, by their bytes."""

    number: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Ranked:
    """A chunk that is done. `failed` of its requests have an error for an answer."""

    chunk: Chunk
    pairs: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Actors:
    """How many rank at a time, and what each of them needs of the cluster."""

    number: int
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    resources: Mapping[str, float] | None = None


def plan(work: Work, *, chunk_bytes: int) -> tuple[list[Chunk], list[Chunk]]:
    """All chunks of the input, and those that have no answers yet.

    Raises:
        ConfigError: the input cannot be read, or the folder has parts of another run.
    """
    source, parts = Path(work.source), Path(work.parts)
    try:
        chunks = list(_cut(source, chunk_bytes))
        changed = source.stat().st_mtime_ns
    except OSError as error:
        raise ConfigError(f"cannot read {source}: {error.strerror or error}") from None
    size = chunks[-1].end if chunks else 0
    manifest = {"input": str(source.resolve()), "bytes": size, "changed": changed, "chunk_bytes": chunk_bytes}
    manifest |= {"model": work.model or "", "version": __version__, "settings": dict(work.settings)}
    _keep(parts, orjson.dumps(manifest, default=str, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2))
    done = {number for number, _ in finished(parts)}
    return chunks, [chunk for chunk in chunks if chunk.number not in done]


def finished(parts: Path) -> list[tuple[int, Path]]:
    """The chunks that have answers, in their order, and the files of those."""
    return sorted((int(path.name.partition("-")[0]), path) for path in parts.glob("*.jsonl"))


def join(work: Work, chunks: Sequence[Chunk], output: Path) -> None:
    """Make one file of all parts, and remove them. The file appears at once or not at all.

    Raises:
        ConfigError: a part is missing or there twice, or there is no space.
    """
    parts = finished(Path(work.parts))
    if [number for number, _ in parts] != [chunk.number for chunk in chunks]:
        raise ConfigError(
            f"{work.parts} has {len(parts)} files for {len(chunks)} chunks: the input has changed while it was ranked; "
            "delete the folder to start again"
        )
    whole = output.with_name(f"{output.name}.partial")
    try:
        with whole.open("wb") as file:
            for _, path in parts:
                with path.open("rb") as part:
                    shutil.copyfileobj(part, file, 1 << 20)
            _flush(file.fileno())
        whole.replace(output)
    except OSError as error:
        raise ConfigError(f"cannot write {output} ({error.strerror}); its parts are kept in {work.parts}") from None
    shutil.rmtree(work.parts)


def rank_chunks(
    work: Work, chunks: Sequence[Chunk], actors: Actors, *, opening: Opening | None = None
) -> Iterator[Ranked]:
    """Rank chunks on the cluster that this process is connected to, in any order. A chunk whose actor dies goes to
    another one; the actor is started again where there is room.

    Raises:
        ConfigError: the models cannot be loaded, or a chunk ends one actor after another.
    """
    kind = ray.remote(_Ranker).options(
        num_cpus=actors.num_cpus,
        num_gpus=actors.num_gpus,
        resources=dict(actors.resources or {}),
        max_restarts=-1,
    )
    waiting, tries = deque(chunks), dict.fromkeys((chunk.number for chunk in chunks), 0)
    # Actors that rank a chunk, or that start. The others are idle: a chunk may come back to be ranked again.
    running: dict[Any, tuple[Any, Chunk | None]] = {}
    for _ in range(min(actors.number, len(chunks))):
        actor = kind.remote(work, opening or opened)
        running[_greeting(actor)] = actor, None
    idle: list[Any] = []
    left = len(chunks)
    while left:
        while idle and waiting:
            actor, following = idle.pop(), waiting.popleft()
            running[actor.rank.remote(following)] = actor, following
        (ended, *_), _ = ray.wait(list(running), num_returns=1)
        actor, chunk = running.pop(ended)
        ranked = _result(ended)
        if ranked is None:
            if chunk is not None:
                tries[chunk.number] += 1
                _check_tries(tries[chunk.number], chunk, work)
                waiting.appendleft(chunk)
            running[_greeting(actor)] = actor, None
            continue
        idle.append(actor)
        if chunk is not None:
            left -= 1
            yield ranked


def _check_tries(tries: int, chunk: Chunk, work: Work) -> None:
    if tries >= _TRIES:
        raise ConfigError(
            f"the requests in bytes {chunk.start} to {chunk.end} of {work.source} ended {_TRIES} processes one after "
            "another; Ray's log says how, for example by too little memory"
        )


def _result(reference: Any) -> Any:  # noqa: ANN401 - Ray's references have no types
    """What an actor answered; None: it has died."""
    try:
        return ray.get(reference)
    except RayActorError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, ConfigError | RerankError):
            raise ConfigError(str(cause)) from None
        return None
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ConfigError | RerankError):
            raise ConfigError(str(error.cause)) from None
        raise


def _greeting(actor: Any) -> Any:  # noqa: ANN401 - Ray's references have no types
    """Ends once the actor runs, again if it had died."""
    return actor.greet.options(max_task_retries=-1).remote()


@asynccontextmanager
async def opened(work: Work) -> AsyncIterator[Rerank]:
    """The service's own pipeline, with one model.

    Raises:
        ConfigError: the registry cannot be used, or has no such model.
        ModelNotReady: the model cannot be loaded.
    """
    settings: Settings = without_limits(read_settings(**work.settings))
    async with running_service(settings, Silent(), only={work.model}) as service:
        served = service.model_named(work.model)
        await served.settled()

        async def rerank(request: RerankRequest) -> RerankResult | RerankError:
            if request.model is not None and request.model not in (served.name, *served.aliases):
                return ModelNotFound(f"{request.model!r} is not what this run loads; name it with --model")
            return await outcome_of(service, request)

        yield rerank


class _Ranker:
    """Ranks chunks, one at a time, in a process of its own."""

    async def __init__(self, work: Work, opening: Opening) -> None:  # type: ignore[misc] # Ray awaits it
        self._work = work
        self._opened = AsyncExitStack()
        self._opening = opening
        self._rerank: Rerank | None = None
        self._lock = asyncio.Lock()

    async def greet(self) -> bool:
        """Load what reranks."""
        async with self._lock:
            if self._rerank is None:
                self._rerank = await self._opened.enter_async_context(self._opening(self._work))
        return True

    async def rank(self, chunk: Chunk) -> Ranked:
        """Rank a chunk and write its file."""
        text = await asyncio.to_thread(_read, Path(self._work.source), chunk)
        lines, pairs, failed = [], 0, 0
        async for job, outcome in in_order(self._jobs(text, chunk), self._answer):
            lines.append(job.write(outcome))
            pairs += len(job.request.documents)
            failed += isinstance(outcome, RerankError)
        name = f"{chunk.number:08d}-{blake2b(text, digest_size=16).hexdigest()}.jsonl"
        await asyncio.to_thread(_write, Path(self._work.parts) / name, b"".join(lines))
        return Ranked(chunk, pairs, failed)

    async def _answer(self, request: RerankRequest) -> RerankResult | RerankError:
        assert self._rerank is not None  # noqa: S101 - it was greeted before
        return await self._rerank(request) if request.documents else _NO_DOCUMENTS

    def _jobs(self, text: bytes, chunk: Chunk) -> Iterator[Job]:
        position = chunk.start
        for line in text.splitlines(keepends=True):
            if line.strip():
                yield _job(Path(self._work.source), position, line, self._work.model)
            position += len(line)


def _job(source: Path, position: int, line: bytes, model: str | None) -> Job:
    """A line as a job. A line that is no request is answered by its error, so that it does not stop millions."""
    try:
        entry = orjson.loads(line)
        if not isinstance(entry, dict) or not isinstance(entry.get("documents"), list):
            raise ConfigError("each line must be a JSON object with query, documents")
        return read_request(source, position, {"query": None, **entry}, model)
    except (ValueError, ConfigError) as error:
        problem = InvalidRequest(f"the line at byte {position}: {error}")
        return Job(RerankRequest(query="", documents=[]), lambda _: answer_line({}, problem))


def _cut(source: Path, chunk_bytes: int) -> Iterator[Chunk]:
    """Chunks of about as many bytes, each up to the end of a line."""
    size = source.stat().st_size
    start = number = 0
    with source.open("rb") as file:
        while start < size:
            file.seek(min(size, start + chunk_bytes) - 1)
            file.readline()
            yield Chunk(number, start, file.tell())
            start, number = file.tell(), number + 1


def _keep(parts: Path, manifest: bytes) -> None:
    """Write the manifest of a new run, or compare it with that of the run to continue."""
    path = parts / _MANIFEST
    if path.exists():
        if path.read_bytes() != manifest:
            raise ConfigError(f"{parts} is of another input, model or version; delete it to start again")
        return
    parts.mkdir(parents=True, exist_ok=True)
    _write(path, manifest)


def _read(source: Path, chunk: Chunk) -> bytes:
    with source.open("rb") as file:
        file.seek(chunk.start)
        return file.read(chunk.end - chunk.start)


def _write(path: Path, content: bytes) -> None:
    """All or nothing, even if another process writes the same."""
    partial = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
    with partial.open("wb") as file:
        file.write(content)
        _flush(file.fileno())
    partial.replace(path)


def _flush(descriptor: int) -> None:
    os.fsync(descriptor)
