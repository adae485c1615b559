"""The rerank endpoints: one per path, whatever dialects share it. Each reads a body in a dialect's words, hands it to
the gateway, and writes the answer in the same words.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf, nan
from typing import Any, Final, TypeVar

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rerankd.api.access import access_of
from rerankd.api.answers import error_answer, json_response, server_timing, write_json
from rerankd.api.auth import key_in, security_of
from rerankd.api.connected import while_connected
from rerankd.api.dialects.base import Dialect, RequestBody, RequestLimits
from rerankd.api.lines import answer_in_lines, wants_lines
from rerankd.api.middleware import claim_of
from rerankd.api.openapi import answers_of, description_of
from rerankd.api.parsing.bodies import SMALL_BYTES, BodyReader
from rerankd.concurrency.slices import Sliced, run_slice, run_to_end
from rerankd.concurrency.turns import Share
from rerankd.domain import RerankRequest, RerankResult, Settled, Timings
from rerankd.domain.requests import queries_of
from rerankd.errors import DeadlineExceeded, InvalidRequest, Overloaded, RerankError
from rerankd.gateway.failures import CANCELLED, CallerGone
from rerankd.gateway.gateway import Gateway, GatewayCall
from rerankd.gateway.held_bytes import DOCUMENT_BYTES, QUERY_BYTES
from rerankd.telemetry.logs import request_id
from rerankd.telemetry.spans import traced

T = TypeVar("T")

Endpoint = Callable[[Request], Awaitable[Response]]

_SHOWN: Final = 50
# A larger answer is written slice by slice, in its caller's turns.
_AT_ONCE_BYTES: Final = 1 << 18
_AT_ONCE_RESULTS: Final = 1000


def rerank_routes(
    dialects: Sequence[Dialect],
    *,
    gateway: Gateway,
    bodies: BodyReader,
    limits: RequestLimits,
    strict: bool = False,
) -> tuple[APIRouter, Mapping[str, Endpoint]]:
    """A router with every path of every dialect, and what answers at those without parameters; `strict` rejects unknown
    fields.
    """
    router = APIRouter()
    endpoints: dict[str, Endpoint] = {}
    for path in dict.fromkeys(path for dialect in dialects for path in dialect.paths):
        choice = Choice.on(path, dialects)
        answer = _Endpoint(choice, gateway=gateway, bodies=bodies, limits=limits, strict=strict).answer
        if "{" not in path:
            endpoints[path] = answer
        router.add_api_route(
            path,
            answer,
            methods=["POST"],
            name=f"rerank {path}",
            summary="Order documents by relevance to a query",
            tags=["rerank"],
            openapi_extra=description_of(path, choice.dialects) | security_of(gateway.keys),
            response_class=Response,
            responses=answers_of(choice.dialects),
        )
    return router, endpoints


class RerankPaths:
    """Answers requests to rank before any routing, which takes as long as much of the rest."""

    def __init__(self, app: ASGIApp, *, endpoints: Mapping[str, Endpoint]) -> None:
        self._app = app
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._endpoints.get(scope["path"]) if scope["type"] == "http" else None
        if endpoint is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        response = await endpoint(Request(scope, receive))
        await response(scope, receive, send)


class Choice:
    """Finds the dialect of a body. A path of one dialect also takes the bodies of others: clients are given a base
    address and append what another server calls the path (llama.cpp's `/reranking` takes `documents`, Mixedbread's
    `input`).
    """

    def __init__(self, dialects: Sequence[Dialect], others: Sequence[Dialect]) -> None:
        self.dialects = dialects
        self._others = others

    @classmethod
    def on(cls, path: str, dialects: Sequence[Dialect]) -> "Choice":
        """The choice among those that use a path."""
        sharing = [dialect for dialect in dialects if path in dialect.paths]
        return cls(sharing, [dialect for dialect in dialects if dialect not in sharing and dialect.shares])

    @property
    def default(self) -> Dialect:
        """The dialect of a body that fits no other one, and of calls that fail before there is a body."""
        return self.dialects[-1]

    def of(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> Dialect:
        if len(self.dialects) == 1 and not self.default.has_documents(body):
            others = (dialect for dialect in self._others if dialect.has_documents(body))
            return next((dialect for dialect in others if dialect.claims(body, headers)), self.default)
        return next((dialect for dialect in self.dialects if dialect.claims(body, headers)), self.default)


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A body in its dialect's words and in ours, and which of its fields mean nothing."""

    dialect: Dialect
    body: RequestBody
    requests: Sequence[RerankRequest]
    ignored: Sequence[str]


class _Endpoint:
    def __init__(
        self, choice: Choice, *, gateway: Gateway, bodies: BodyReader, limits: RequestLimits, strict: bool
    ) -> None:
        self._choice = choice
        self._gateway = gateway
        self._bodies = bodies
        self._limits = limits
        self._strict = strict

    async def answer(self, request: Request) -> Response:
        if wants_lines(request.headers):
            return await answer_in_lines(partial(self._answer_call, request), form=self._choice.default.errors)
        return await self._answer_call(request)

    async def _answer_call(self, request: Request, settled: Settled | None = None) -> Response:
        facts = access_of(request.scope).call
        facts.dialect = self._choice.default.name
        try:
            with self._gateway.call(facts) as call:
                await call.identify([] if self._gateway.keys.open else key_in(request.headers))
                return await call.paced(self._answer(call, request, settled))
        except RerankError as error:
            return error_answer(error, form=self._choice.default.errors)
        except CallerGone:
            return Response(status_code=CANCELLED.status)

    async def _answer(self, call: GatewayCall, request: Request, settled: Settled | None) -> Response:
        call.deadline = call.started + _timeout_s(request.headers)
        call.size = _announced_bytes(request.headers)
        if call.size > SMALL_BYTES:
            await self._check_retry(call, request)
        with traced("parse"):
            parsed = await self._read(call, request)
        try:
            with while_connected(request.receive):
                results = await call.rerank(_telling(parsed.requests, settled))
        except InvalidRequest as error:
            raise parsed.dialect.reworded(error, parsed.requests) from None
        with traced("write"):
            answer = await self._write(call, parsed, results, request.receive)
        claim_of(request.scope).change(len(answer.body))
        return answer

    async def _check_retry(self, call: GatewayCall, request: Request) -> None:
        try:
            await call.check_retry()
        except Overloaded:
            # Most clients read no answer before they have sent the body; with `Expect` they ask whether to send it.
            if "expect" not in request.headers:
                try:
                    await self._bodies.discard(request)
                except ClientDisconnect:
                    raise CallerGone from None
            raise

    async def _read(self, call: GatewayCall, request: Request) -> _Parsed:
        try:
            body = await self._bodies.read_object(request, caller=call.facts.key, on_arrival=call.arrive)
        except ClientDisconnect:
            raise CallerGone from None
        fields = {**request.path_params, **body.fields}
        dialect = self._choice.of(fields, request.headers)
        call.facts.dialect = dialect.name
        claim = call.claim = claim_of(request.scope)
        claim.take(DOCUMENT_BYTES * min(dialect.count(fields), self._limits.documents))
        parsing = parse(dialect, fields, body.text, limits=self._limits, strict=self._strict)
        parsed_body, requests = await self._run_sliced(parsing, call, request.receive, size=len(body.text))
        queries = sum(len(queries_of(request)) for request in requests)
        claim.take(QUERY_BYTES * queries + parsed_body.image_bytes)
        return _Parsed(dialect, parsed_body, requests, dialect.ignored(body.fields))

    async def _write(
        self, call: GatewayCall, parsed: _Parsed, results: Sequence[RerankResult], receive: Receive
    ) -> Response:
        headers = _headers(results, total_s=call.elapsed_s, ignored=[*parsed.ignored, *results[0].ignored])
        writing = written(parsed.body, results, request_id=request_id.get() or "")
        size = sum(len(result.results) for result in results)
        if size <= _AT_ONCE_RESULTS and parsed.body.raw_body.size <= _AT_ONCE_BYTES:
            return json_response(run_to_end(writing), headers=headers)
        try:
            async with asyncio.timeout(call.left_s):
                with while_connected(receive):
                    content = await self._bodies.loop.run(Share(caller=call.facts.key, left=size), writing)
        except TimeoutError:
            raise DeadlineExceeded("the answer was not written in time; ask for fewer results") from None
        return json_response(content, headers=headers)

    async def _run_sliced(self, work: Sliced[T], call: GatewayCall, receive: Receive, *, size: int) -> T:
        """Parse a small body at once, a large one slice by slice in the caller's turns, while the client waits."""
        loop, left_s = self._bodies.loop, call.left_s
        try:
            (run_slice if size <= SMALL_BYTES else loop.try_now)(work)
        except StopIteration as end:
            result: T = end.value
            return result
        try:
            async with asyncio.timeout(left_s):
                with while_connected(receive):
                    return await loop.run(Share(caller=call.facts.key, left=size), work)
        except TimeoutError:
            raise DeadlineExceeded(f"not read within {left_s:g} s; send fewer documents or fields") from None


def _telling(requests: Sequence[RerankRequest], settled: Settled | None) -> Sequence[RerankRequest]:
    """The requests that tell of final places. Those of several would say nothing about which one they belong to."""
    if settled is None or len(requests) != 1:
        return requests
    (request,) = requests
    return [replace(request, options=replace(request.options, settled=settled))]


def _announced_bytes(headers: Mapping[str, str]) -> int:
    """The size of a body by its head; 0: not known."""
    announced = headers.get("content-length", "")
    return int(announced) if announced.isdecimal() else 0


def parse(
    dialect: Dialect, fields: Mapping[str, Any], text: bytes, *, limits: RequestLimits, strict: bool
) -> Sliced[tuple[RequestBody, Sequence[RerankRequest]]]:
    """A body in its dialect's words, and the requests in it."""
    body = dialect.parse(fields, text, limits=limits, strict=strict)
    yield from body.prepare()
    return body, body.to_requests()


def _timeout_s(headers: Mapping[str, str]) -> float:
    """How long the client waits, by the header X-Request-Deadline-Ms."""
    given = headers.get("x-request-deadline-ms")
    if given is None:
        return inf
    try:
        milliseconds = float(given)
    except ValueError:
        milliseconds = nan
    if not 0 < milliseconds < inf:
        raise InvalidRequest(f"X-Request-Deadline-Ms: {given[:_SHOWN]!r} is not a positive number of milliseconds")
    return milliseconds / 1000


def _headers(results: Sequence[RerankResult], *, total_s: float, ignored: Sequence[str]) -> dict[str, str]:
    timings = sum((result.timings for result in results), start=Timings())
    headers = {"Server-Timing": server_timing(timings, total_s=total_s)}
    if cut := sum(result.scores.query_dropped for result in results):
        headers["X-Truncated-Query-Tokens"] = str(cut)
    if ignored:
        headers["X-Ignored-Fields"] = ", ".join(ignored)
    return headers


def written(body: RequestBody, results: Sequence[RerankResult], *, request_id: str) -> Sliced[bytes]:
    """The answer in the words of its body's dialect."""
    return (yield from write_json(body.render(results, request_id=request_id)))
