"""Reranks files through the same pipeline as the service, without HTTP: `rerankd rank`.

It can be resumed: answers are appended in the order of the input, one whole request at a time. A second run skips
finished requests, and first removes a half-written one.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from rerankd.config.named_models import served_registry
from rerankd.config.settings import Settings
from rerankd.domain import RerankRequest, RerankResult
from rerankd.errors import ConfigError, ModelNotFound, RerankError, few
from rerankd.serving.assembly import running_service
from rerankd.serving.service import RerankService
from rerankd.telemetry.observer import Silent
from rerankd.tools.trec import read_objects, read_run, read_texts

_IN_FLIGHT = 16
_RUN_TAG = "rerankd"


@dataclass(frozen=True, slots=True)
class Job:
    """One request of a file. `write` turns its outcome into lines of output."""

    request: RerankRequest
    write: Callable[[RerankResult | RerankError], bytes]


@dataclass(frozen=True, slots=True)
class Plan:
    """The jobs in order, without the `done` of `total` that an earlier run finished, of which `failed` have an error.
    `models` are the models that they name, None for the default one. `model` is used by jobs that name none.
    """

    jobs: Iterable[Job]
    done: int
    total: int
    models: frozenset[str | None]
    model: str | None
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished request, for progress and the exit status."""

    pairs: int
    error: RerankError | None


def without_limits(settings: Settings) -> Settings:
    """The same, for files: nobody waits for an answer."""
    return settings.model_copy(update={"max_waiting_tokens": 2**62, "request_timeout_s": 1e9})


async def rerank_file(settings: Settings, plan: Plan, output: Path) -> AsyncIterator[Outcome]:
    """Run a plan's jobs and append to `output`. Yields when each is finished.

    Raises:
        ConfigError: the registry cannot be used, or has no such model.
        ModelNotReady: a model cannot be loaded.
    """
    registry = served_registry(settings)
    registry.only([plan.model])  # raises
    if plan.done == plan.total:
        return
    served = {name for name in plan.models if registry.find(name)}
    known = few([spec.name for spec in registry.model])
    async with running_service(without_limits(settings), Silent(), only=served or {None}) as service:
        for name in served:
            await service.model_named(name).settled()

        async def rerank(request: RerankRequest) -> RerankResult | RerankError:
            if request.model not in served:
                return ModelNotFound(f"unknown model {request.model!r}; known: {known}")
            return await outcome_of(service, request)

        with output.open("ab") as file:
            async for job, outcome in in_order(plan.jobs, rerank):
                _append(file, job.write(outcome), output)
                yield Outcome(len(job.request.documents), outcome if isinstance(outcome, RerankError) else None)


def _append(file: BinaryIO, lines: bytes, output: Path) -> None:
    try:
        file.write(lines)
        file.flush()
    except OSError as error:
        with suppress(OSError):
            file.close()  # which would raise it again, at the end
        raise ConfigError(
            f"cannot write to {output} ({error.strerror}); finished requests are kept: "
            "free some space, then run the same command again to continue"
        ) from None


async def in_order(
    jobs: Iterable[Job], rerank: Callable[[RerankRequest], Awaitable[RerankResult | RerankError]]
) -> AsyncIterator[tuple[Job, RerankResult | RerankError]]:
    """Run several requests at a time, so that they share batches, and yield outcomes in the order of the jobs."""
    running: deque[tuple[Job, asyncio.Future[RerankResult | RerankError]]] = deque()
    try:
        for job in jobs:
            running.append((job, asyncio.ensure_future(rerank(job.request))))
            if len(running) >= _IN_FLIGHT:
                first, task = running.popleft()
                yield first, await task
        while running:
            first, task = running.popleft()
            yield first, await task
    finally:
        for _, task in running:
            task.cancel()


async def outcome_of(service: RerankService, request: RerankRequest) -> RerankResult | RerankError:
    try:
        return await service.rerank(request)
    except RerankError as error:
        return error


def plan_requests(path: Path, output: Path, *, model: str | None) -> Plan:
    """A JSONL file of requests ({"query", "documents", "model"?, "top_n"?, "id"?}), one answer line each.

    Raises:
        ConfigError: the file is missing, or a line is no such request.
    """
    requests = [read_request(path, number, entry, model) for number, entry in read_objects(path, fields=_REQUIRED)]
    done = _cut_to_whole_lines(output)
    if done > len(requests):
        raise ConfigError(
            f"{output} has {done} answers, {path} only {len(requests)} requests; delete it to start again"
        )
    models = frozenset(job.request.model for job in requests)
    return Plan(requests[done:], done, len(requests), models, model, failed=_errors_in(output))


_REQUIRED = ("query", "documents")


def read_request(path: Path, number: int, entry: Mapping[str, Any], model: str | None) -> Job:
    """A line of a file of requests as a job.

    Raises:
        ConfigError: its query or documents are no texts.
    """
    documents = entry["documents"]
    texts = [document.get("text") if isinstance(document, dict) else document for document in documents]
    strings = [text for text in texts if isinstance(text, str)]
    if not isinstance(entry["query"], str) or len(strings) < len(texts):
        raise ConfigError(f"{path}:{number}: query must be a string, documents strings or objects with a text")
    request = RerankRequest(
        query=entry["query"], documents=strings, model=entry.get("model") or model, top_n=entry.get("top_n") or None
    )
    identity = {"id": entry["id"]} if "id" in entry else {}
    return Job(request, lambda outcome: answer_line(identity, outcome))


def answer_line(identity: Mapping[str, Any], outcome: RerankResult | RerankError) -> bytes:
    """A request's line of the output; `identity` is its id, if it has one."""
    answer: dict[str, Any]
    if isinstance(outcome, RerankError):
        answer = {"error": outcome.message, "error_type": outcome.code}
    else:
        results = [{"index": ranked.index, "relevance_score": ranked.relevance_score} for ranked in outcome.results]
        answer = {"model": outcome.model, "results": results}
    return orjson.dumps({**identity, **answer}, option=orjson.OPT_APPEND_NEWLINE)


def plan_run(run: Path, output: Path, *, corpus: Path, queries: Path, depth: int | None, model: str | None) -> Plan:
    """A TREC run to rerank into another; the raw scores become its score column.

    Raises:
        ConfigError: a file is missing or malformed, or the run names a query or document without a text.
    """
    texts, questions, candidates = read_texts(corpus), read_texts(queries), read_run(run, depth=depth)
    for wanted in candidates:
        missing = [document for document in wanted.document_ids if document not in texts]
        if wanted.query_id not in questions or missing:
            what = f"documents {', '.join(missing[:3])}" if missing else f"query {wanted.query_id}"
            raise ConfigError(f"{run} names {what}, which {corpus if missing else queries} does not have")
    finished = _finished_queries(output, {wanted.query_id: len(wanted.document_ids) for wanted in candidates})
    jobs = (
        _run_job(wanted.query_id, questions[wanted.query_id], wanted.document_ids, texts, model)
        for wanted in candidates
        if wanted.query_id not in finished
    )
    return Plan(jobs, len(finished), len(candidates), frozenset({model}), model)


def _run_job(
    query_id: str, query: str, document_ids: Sequence[str], texts: Mapping[str, str], model: str | None
) -> Job:
    request = RerankRequest(query=query, documents=[texts[document] for document in document_ids], model=model)
    return Job(request, lambda outcome: b"".join(_run_lines(query_id, document_ids, outcome)))


def _run_lines(query_id: str, document_ids: Sequence[str], outcome: RerankResult | RerankError) -> Iterator[bytes]:
    """No lines for a query that failed, so that the next run tries it again."""
    if isinstance(outcome, RerankError):
        return
    for rank, ranked in enumerate(outcome.results, start=1):
        yield f"{query_id} Q0 {document_ids[ranked.index]} {rank} {ranked.value:.6f} {_RUN_TAG}\n".encode()


def _finished_queries(output: Path, sizes: Mapping[str, int]) -> set[str]:
    """Count the queries that an earlier run completed, and cut off an incomplete last one."""
    _cut_to_whole_lines(output)
    lines = output.read_text(encoding="utf-8").splitlines(keepends=True) if output.exists() else []
    written: dict[str, int] = {}
    for line in lines:
        query_id = line.split(" ", 1)[0]
        written[query_id] = written.get(query_id, 0) + 1
    partial = {query_id for query_id, count in written.items() if count < sizes.get(query_id, 0)}
    foreign = [query_id for query_id, count in written.items() if count > sizes.get(query_id, 0)]
    if foreign:
        raise ConfigError(
            f"{output} has other results for query {foreign[0]} than this run would write; delete it to start again"
        )
    if partial:
        output.write_text("".join(line for line in lines if line.split(" ", 1)[0] not in partial), encoding="utf-8")
    return set(written) - partial


def _errors_in(output: Path) -> int:
    """How many answers of an earlier run are errors."""
    lines = output.read_bytes().splitlines() if output.exists() else []
    return sum("error_type" in orjson.loads(line) for line in lines if b'"error_type"' in line)


def _cut_to_whole_lines(output: Path) -> int:
    """Cut off an incomplete last line, and count the others."""
    if not output.exists():
        return 0
    content = output.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with output.open("r+b") as file:
            file.truncate(whole)
    return content.count(b"\n")
