"""The rerank endpoints: one per path, whatever dialects share it."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf, nan
from typing import Any, TypeVar

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive

from rerankd.api.access import access_of
from rerankd.api.answers import ERROR_SCHEMA, error_answer, json_answer, server_timing
from rerankd.api.auth import ApiKeys, security_of
from rerankd.api.dialects.base import Call, CallLimits, Dialect, Json
from rerankd.api.parsing.bodies import SMALL_BYTES, BodyReader
from rerankd.api.rates import RequestMeter
from rerankd.api.transport.held_bytes import DOCUMENT_BYTES, QUERY_BYTES, claim_of
from rerankd.concurrency.steps import Steps, advance
from rerankd.concurrency.turns import Share
from rerankd.domain import Meter, RerankRequest, RerankResult, Timings
from rerankd.errors import DeadlineExceeded, InvalidRequest, RerankError, Unavailable
from rerankd.serving.service import RerankService
from rerankd.telemetry.logs import request_id
from rerankd.telemetry.observer import Observer

T = TypeVar("T")

_CLIENT_GONE = 499
_PATH_PARAMETER = re.compile(r"{(\w+)")
_SHOWN = 50
# Of more than these the answer is written beside the event loop.
_AT_ONCE_BYTES = 1 << 18
_AT_ONCE_RESULTS = 1000
# So many queries of one call are worked on at a time.
_TOGETHER = 128


def rerank_routes(
    dialects: Sequence[Dialect],
    *,
    service: RerankService,
    keys: ApiKeys,
    bodies: BodyReader,
    observer: Observer,
    limits: CallLimits,
    strict: bool = False,
) -> APIRouter:
    """A router with every path of every dialect; `strict` refuses fields that mean nothing."""
    router = APIRouter()
    for path in dict.fromkeys(path for dialect in dialects for path in dialect.paths):
        sharing = [dialect for dialect in dialects if path in dialect.paths]
        others = [dialect for dialect in dialects if dialect not in sharing and dialect.shares]
        choice = _Choice(sharing, others)
        endpoint = _Endpoint(
            choice,
            service=service,
            keys=keys,
            bodies=bodies,
            observer=observer,
            limits=limits,
            strict=strict,
        )
        router.add_api_route(
            path,
            endpoint.answer,
            methods=["POST"],
            name=f"rerank {path}",
            summary="Order documents by relevance to a query",
            tags=["rerank"],
            openapi_extra=_description(path, sharing) | security_of(keys),
            response_class=Response,
            responses=_answers(sharing),
        )
    return router


class _Choice:
    """Whose a body is. A path of one dialect's own takes the bodies of others too: clients are told a base address, and
    append what another server calls the path (llama.cpp's `/reranking` takes `documents`, Mixedbread's `input`).
    """

    def __init__(self, dialects: Sequence[Dialect], others: Sequence[Dialect]) -> None:
        self._dialects = dialects
        self._others = others

    @property
    def default(self) -> Dialect:
        """Whose words a refusal uses when nothing says whose the body is."""
        return self._dialects[-1]

    def of(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> Dialect:
        if len(self._dialects) == 1 and self.default.takes.isdisjoint(body):
            others = (dialect for dialect in self._others if not dialect.takes.isdisjoint(body))
            return next((dialect for dialect in others if dialect.claims(body, headers)), self.default)
        return next((dialect for dialect in self._dialects if dialect.claims(body, headers)), self.default)


class _Endpoint:
    def __init__(
        self,
        choice: _Choice,
        *,
        service: RerankService,
        keys: ApiKeys,
        bodies: BodyReader,
        observer: Observer,
        limits: CallLimits,
        strict: bool,
    ) -> None:
        self._choice = choice
        self._service = service
        self._keys = keys
        self._bodies = bodies
        self._observer = observer
        self._limits = limits
        self._strict = strict

    async def answer(self, request: Request) -> Response:
        finish = _Finish(dialect=self._choice.default.name, observer=self._observer, clock=self._service.clock)
        access = access_of(request.scope)
        meter = None
        dialect, wanted = self._choice.default, list[RerankRequest]()
        try:
            caller = self._keys.check(request.headers)
            finish.key = access.key = caller.name
            caller.allowance.ask(now=finish.started)
            caller.allowance.check_tokens(now=finish.started)
            meter = RequestMeter(caller.allowance, self._service.clock)
            deadline = _deadline(request.headers, since=finish.started)
            body = await self._bodies.read_object(request, caller=caller.name)
            fields = {**request.path_params, **body.fields}
            dialect = self._choice.of(fields, request.headers)
            finish.dialect = access.dialect = dialect.name
            claim_of(request.scope).take(DOCUMENT_BYTES * min(dialect.count(fields), self._limits.documents))
            reading = _understand(dialect, fields, body.text, limits=self._limits, strict=self._strict)
            call, requests = await self._by_turns(reading, request, caller.name, size=len(body.text), deadline=deadline)
            claim_of(request.scope).take(QUERY_BYTES * len(requests))
            ignored = dialect.ignored(body.fields)
            del reading, body, fields  # a body may be large, and most calls keep nothing of it but its texts
            wanted = [_on_terms(one, caller=caller.name, deadline=deadline, meter=meter) for one in requests]
            access.documents = sum(len(one.documents) for one in wanted)
            finish.model = access.model = self._service.model_named(wanted[0].model).name
            results = await _while_connected(request.receive, self._rerank(wanted))
            finish.tokens = sum(result.tokens for result in results)
            meter.settle(finish.tokens)
            content = partial(call.render, results, request_id=request_id.get() or "")
            render = partial(_rendered, content, headers=finish.headers(results))
            size = sum(len(result.results) for result in results)
            at_once = _AT_ONCE_RESULTS if call.sent.size <= _AT_ONCE_BYTES else 0
            answer = await self._done(render, caller.name, size=size, at_once=at_once)
            answer.headers.update(_ignored([*ignored, *results[0].ignored]))
            claim_of(request.scope).change(len(answer.body))
        except RerankError as error:
            finish(error.status)
            return error_answer(dialect.in_own_words(error, wanted))
        except (_ClientGone, ClientDisconnect):
            finish(_CLIENT_GONE)
            return Response(status_code=_CLIENT_GONE)
        except asyncio.CancelledError:
            finish(Unavailable.status)
            raise
        except Exception:
            finish(500)
            raise
        finally:
            if meter:
                meter.close()
        finish(200)
        return answer

    async def _rerank(self, requests: Sequence[RerankRequest]) -> Sequence[RerankResult]:
        """The result of each; the first failure stops all of them. Not all at a time: the event loop would be busy with
        the steps of one call only.
        """
        if len(requests) == 1:
            return [await self._service.rerank(requests[0])]
        results: dict[int, RerankResult] = {}
        waiting = iter(enumerate(requests))

        async def work() -> None:
            for index, request in waiting:
                results[index] = await self._service.rerank(request)

        running = [asyncio.create_task(work()) for _ in requests[:_TOGETHER]]
        try:
            await asyncio.gather(*running)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        return [results[index] for index in range(len(requests))]

    async def _by_turns(self, steps: Steps[T], request: Request, caller: str, *, size: int, deadline: float) -> T:
        """Do plain Python here if it is short, else slice by slice when it is the caller's turn, as long as the client
        waits for it.
        """
        try:
            if size <= SMALL_BYTES:
                advance(steps)
        except StopIteration as end:
            made: T = end.value
            return made
        work = self._bodies.loop.run(Share(caller=caller, left=size), steps)
        left_s = min(deadline - self._service.clock(), self._service.limits.request_timeout_s)
        try:
            async with asyncio.timeout(max(0.0, left_s)):
                return await _while_connected(request.receive, work)
        except TimeoutError:
            raise DeadlineExceeded(f"not read within {max(0.0, left_s):g} s; send fewer documents or fields") from None

    async def _done(self, call: Callable[[], T], caller: str, *, size: int, at_once: int) -> T:
        """Do plain Python here if it is short, else beside the event loop when it is the caller's turn."""
        if size <= at_once:
            return call()
        return await self._service.aside.run(Share(caller=caller, cost=size, left=size), call)


def _understand(
    dialect: Dialect, fields: Mapping[str, Any], text: bytes, *, limits: CallLimits, strict: bool
) -> Steps[tuple[Call, Sequence[RerankRequest]]]:
    call = dialect.parse(fields, text, limits=limits, strict=strict)
    yield from call.prepare()
    return call, call.to_requests()


def _on_terms(request: RerankRequest, *, caller: str, deadline: float, meter: Meter) -> RerankRequest:
    terms = replace(request.options.terms, caller=caller, deadline=deadline, meter=meter)
    return replace(request, options=replace(request.options, terms=terms))


def _deadline(headers: Mapping[str, str], *, since: float) -> float:
    """When the caller wants its answer, by the header X-Request-Deadline-Ms: milliseconds from now on."""
    given = headers.get("x-request-deadline-ms")
    if given is None:
        return inf
    try:
        milliseconds = float(given)
    except ValueError:
        milliseconds = nan
    if not 0 < milliseconds < inf:
        raise InvalidRequest(f"X-Request-Deadline-Ms: {given[:_SHOWN]!r} is not a positive number of milliseconds")
    return since + milliseconds / 1000


class _Finish:
    """States the facts that a request began, and that it ended, whichever way it did."""

    def __init__(self, *, dialect: str, observer: Observer, clock: Callable[[], float]) -> None:
        self.dialect = dialect
        self.model = "none"
        self.key = ""
        self.tokens = 0
        self._observer = observer
        self._clock = clock
        self.started = clock()
        observer.request_started()

    def __call__(self, status: int) -> None:
        self._observer.request_finished(
            model=self.model,
            dialect=self.dialect,
            status=status,
            duration_s=self._clock() - self.started,
            key=self.key,
            tokens=self.tokens,
        )

    def headers(self, results: Sequence[RerankResult]) -> dict[str, str]:
        timings = sum((result.timings for result in results), start=Timings())
        headers = {"Server-Timing": server_timing(timings, total_s=self._clock() - self.started)}
        cut = sum(result.scores.query_dropped for result in results)
        return headers | {"X-Truncated-Query-Tokens": str(cut)} if cut else headers


def _ignored(names: Sequence[str]) -> dict[str, str]:
    return {"X-Ignored-Fields": ", ".join(names)} if names else {}


def _rendered(content: Callable[[], Json | list[Json]], *, headers: dict[str, str]) -> Response:
    return json_answer(content(), headers=headers)


class _ClientGone(Exception):
    """The client closed the connection before its answer was there."""


async def _while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """Do the work, but give it up when the client goes away."""
    working = asyncio.ensure_future(work)
    gone = asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return await working
        raise _ClientGone
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _description(path: str, dialects: Sequence[Dialect]) -> Json:
    return {
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in _PATH_PARAMETER.findall(path)
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": _any_of([_inlined(dialect.call.model_json_schema()) for dialect in dialects]),
                    "examples": {dialect.name: {"value": dialect.example} for dialect in dialects},
                }
            },
        },
    }


def _answers(dialects: Sequence[Dialect]) -> dict[int | str, Json]:
    errors = {
        400: "The request must be changed; the message says how.",
        401: "No API key, or a wrong one.",
        404: "No such model.",
        408: "The body did not arrive in time.",
        413: "Too many documents, or too large a body.",
        429: "Too much waits already; Retry-After says when to come back.",
        503: "The model is not ready; Retry-After says when to come back.",
        504: "Not answered in time.",
    }
    schema = _any_of([_inlined(dialect.answer.model_json_schema()) for dialect in dialects])
    return {
        200: {"description": "Results, best first.", "content": {"application/json": {"schema": schema}}},
        **{
            status: {"description": text, "content": {"application/json": {"schema": ERROR_SCHEMA}}}
            for status, text in errors.items()
        },
    }


def _any_of(schemas: list[Json]) -> Json:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _inlined(schema: Json) -> Json:
    """A schema without references of its own, which would point nowhere inside an OpenAPI document."""
    definitions = schema.pop("$defs", {})

    def resolve(part: Any) -> Any:  # noqa: ANN401 - any JSON
        if isinstance(part, dict):
            if "$ref" in part:
                return resolve(definitions[part["$ref"].rsplit("/", 1)[-1]])
            return {name: resolve(value) for name, value in part.items()}
        return [resolve(item) for item in part] if isinstance(part, list) else part

    inlined: Json = resolve(schema)
    return inlined
