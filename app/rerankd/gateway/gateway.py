"""Answers calls, whatever carries them: HTTP, another protocol, or a function call in this process.

A front end that has the requests already needs one line:

    results = await gateway.rerank(requests, api_key="...", timeout_s=2.0)

One that reads them only after the key was checked opens a call:

    with gateway.call() as call:
        await call.identify([key])
        call.deadline = call.started + 2.0
        results = await call.rerank(await read_requests())

The end of the `with` block ends the call: its metrics are recorded and its quota is settled. `failure_of` says what to
tell the client of an error. When the client hangs up, the front end raises `CallerGone` in the block or cancels the
task; either stops the work, and the key pays for what was computed by then.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from math import inf
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from rerankd.concurrency.pacing import Pacing
from rerankd.config.api_keys import Scope
from rerankd.domain import RerankRequest, RerankResult, images_of
from rerankd.domain.requests import queries_of
from rerankd.errors import InvalidRequest, Overloaded, RateLimited, RequestTooLarge
from rerankd.gateway.early_retries import EarlyRetries
from rerankd.gateway.failures import failure_of
from rerankd.gateway.held_bytes import DOCUMENT_BYTES, QUERY_BYTES, Claim, HeldBytes
from rerankd.gateway.keys import ApiKeys, Caller
from rerankd.gateway.rates import RequestMeter
from rerankd.serving.service import RerankService
from rerankd.telemetry.observer import Observer

R = TypeVar("R")

_ANSWERED: Final = 200
# Of the bytes that may be held, jobs use at most this part.
_PART_OF_BYTES: Final = 0.5


@dataclass(slots=True)
class CallFacts:
    """What is known of a call so far, for its metrics and its log line. Empty or None: not known yet."""

    dialect: str = ""
    key: str = ""
    model: str = ""
    documents: int | None = None
    tokens: int = 0


class Gateway:
    """The one way from any front end to the service."""

    def __init__(
        self, service: RerankService, *, keys: ApiKeys, held: HeldBytes, pacing: Pacing, observer: Observer
    ) -> None:
        self.service = service
        self.keys = keys
        self.held = held
        self.pacing = pacing
        self.observer = observer
        self.early_retries = EarlyRetries()

    async def rerank(
        self,
        requests: Sequence[RerankRequest],
        *,
        api_key: str = "",
        timeout_s: float = inf,
        facts: CallFacts | None = None,
    ) -> Sequence[RerankResult]:
        """The result of each request; all share one key, one quota and one deadline.

        Raises:
            RerankError: see `rerankd.errors`; the first failure stops all requests.
        """
        with self.call(facts) as call:
            await call.identify([api_key.encode()] if api_key else [])
            call.deadline = call.started + timeout_s
            claim = call.claim = Claim(self.held, call.facts.key)
            try:
                claim.take(sum(map(_bytes_of, requests)))
                return await call.paced(call.rerank(requests))
            finally:
                claim.release()

    def call(self, facts: CallFacts | None = None) -> "GatewayCall":
        """A call that begins now; `facts` are filled in as they become known."""
        return GatewayCall(self, CallFacts() if facts is None else facts)

    def background_call(self, key: str) -> "BackgroundCall":
        """A call that begins now and that nobody waits for; `key` is the name of the API key that asked for it."""
        return BackgroundCall(self, CallFacts(key=key))

    async def admit(self, spellings: Sequence[bytes], facts: CallFacts, *, scope: Scope = "rerank") -> Caller:
        """Identify the caller and count one request, of whatever kind.

        Raises:
            Unauthorized: there is no key, or a wrong one.
            Forbidden: the key has no such scope.
            RateLimited: the key has sent too many requests.
        """
        caller = self.keys.identify(spellings, scope=scope)
        facts.key = caller.name
        await caller.allowance.ask(now=self.service.clock())
        return caller


class GatewayCall:
    """One call, from its first byte to its answer. `deadline` is a moment on the service's clock, as `started` is.
    `claim` is what the front end holds for it, and releases. `size` is that of its body in bytes, where it is known.
    """

    _background = False

    def __init__(self, gateway: Gateway, facts: CallFacts) -> None:
        self.facts = facts
        self.started = gateway.service.clock()
        self.deadline = inf
        self.size = 0
        self._gateway = gateway
        self._service = gateway.service
        self._meter: RequestMeter | None = None
        self._arrived = False
        self.claim = Claim(gateway.held, "")

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._meter is not None:
            self._meter.close()
            self._gateway.pacing.leave(self.facts.key, arrived=self._arrived)
        self._end(_ANSWERED if error is None else failure_of(error).status)

    def _begin(self) -> None:
        self._gateway.observer.request_started()

    def _end(self, status: int) -> None:
        self._gateway.observer.request_finished(
            model=self.facts.model or "none",
            dialect=self.facts.dialect or "none",
            status=status,
            duration_s=self.elapsed_s,
            key=self.facts.key,
            tokens=self.facts.tokens,
        )

    @property
    def elapsed_s(self) -> float:
        return self._service.clock() - self.started

    @property
    def left_s(self) -> float:
        """Seconds until the deadline, at most the service's own limit."""
        return max(0.0, min(self.deadline - self._service.clock(), self._service.limits.request_timeout_s))

    async def identify(self, spellings: Sequence[bytes]) -> None:
        """Check the key, of which these are the possible encodings, and its quota.

        Raises:
            Unauthorized: there is no key, or a wrong one.
            Forbidden: the key may not rank.
            RateLimited: the key has sent too many requests, or its quota of tokens is used up.
        """
        self._enter(await self._gateway.admit(spellings, self.facts))

    def _enter(self, caller: Caller) -> None:
        caller.allowance.check_tokens(now=self.started)
        self._meter = RequestMeter(caller.allowance, self._service.clock)
        self._gateway.pacing.enter(self.facts.key)

    def paced(self, work: Coroutine[Any, Any, R]) -> Coroutine[Any, Any, R]:
        """Some of the call's work after `identify`, which leaves other keys their share of the event loop."""
        return self._gateway.pacing.paced(self.facts.key, work) if self.facts.key else work

    def arrive(self) -> None:
        """All of the call is here, and its caller waits. Others leave it its share of the event loop from now on."""
        if not self._arrived:
            self._arrived = True
            self._gateway.pacing.arrive(self.facts.key)

    async def check_retry(self) -> None:
        """Refuse a large request that comes back too early, before its body is read, while other keys have requests
        here.

        Raises:
            Overloaded: see `EarlyRetries`; not at once.
        """
        key, early = self.facts.key, self._gateway.early_retries
        models = [model.name for model in self._service.models if model.status.answers]
        wait_s = early.wait_s(key, models, size=self.size, now=self._service.clock())
        if wait_s and self._gateway.pacing.is_shared:
            await asyncio.sleep(min(wait_s, self.left_s))
            self._gateway.observer.request_shed(model=models[0], reason=Overloaded.code)
            raise early.refusal(key, models, now=self._service.clock())

    async def rerank(self, requests: Sequence[RerankRequest]) -> Sequence[RerankResult]:
        """The result of each request; the first failure stops all of them.

        Raises:
            RerankError: see `rerankd.errors`.
        """
        if self._meter is None:
            raise RuntimeError("call identify() before rerank()")
        self.arrive()
        if not requests:
            raise InvalidRequest("no queries; send at least one")
        self.facts.documents = sum(len(request.documents) for request in requests)
        self.facts.model = self._service.model_named(requests[0].model).name
        try:
            results = await self._service.rerank_all([self._with_terms(request, self._meter) for request in requests])
        except Overloaded as refusal:
            self._remember(refusal)
            raise
        self.facts.tokens = sum(result.tokens for result in results)
        self._meter.settle(self.facts.tokens)
        return results

    def _remember(self, refusal: Overloaded) -> None:
        self._gateway.early_retries.refused(
            self.facts.key,
            self.facts.model,
            size=self.size,
            retry_after_s=refusal.retry_after_s,
            now=self._service.clock(),
        )

    def _hold(self, size: int) -> None:
        if size > self.claim.held.max_bytes:
            raise RequestTooLarge(
                f"the vectors of this request take {size} bytes; at most {self.claim.held.max_bytes} may be held: "
                "send fewer documents, or fewer passages of them"
            )
        self.claim.take(size)

    def _with_terms(self, request: RerankRequest, meter: RequestMeter) -> RerankRequest:
        terms = replace(
            request.options.terms,
            caller=self.facts.key,
            background=self._background,
            deadline=self.deadline,
            meter=meter,
            hold=self._hold,
        )
        return replace(request, options=replace(request.options, terms=terms))


class BackgroundCall(GatewayCall):
    """A call of a job, in place of a request: it runs when no request waits, and takes no more of a quota or of memory
    than leaves half of it to requests. It must have a deadline.
    """

    _background = True

    async def resume(self) -> None:
        """Go on for a key that was checked when the job was made.

        Raises:
            Unauthorized, Forbidden: the key is not valid for this any more.
            RateLimited: less than half of the key's quota is left.
        """
        caller = self._gateway.keys.named(self.facts.key)
        if wait_s := caller.allowance.spare_s(now=self.started):
            raise RateLimited(
                "half of this API key's quota is left to requests; the job waits for the other half",
                retry_after_s=wait_s,
            )
        await caller.allowance.ask(now=self.started)
        self._enter(caller)
        self.claim = Claim(self._gateway.held, self.facts.key, part=_PART_OF_BYTES)

    def arrive(self) -> None:
        """Nobody waits for it, so no other caller leaves it a share of the event loop."""

    def _begin(self) -> None:
        pass

    def _remember(self, refusal: Overloaded) -> None:
        """No request of the key is refused for what its job could not have."""

    def _end(self, status: int) -> None:
        self._gateway.observer.job_line_tried(
            model=self.facts.model or "none", status=status, key=self.facts.key, tokens=self.facts.tokens
        )


def _bytes_of(request: RerankRequest) -> int:
    """About what a request holds: its texts and images, and what the work on them takes."""
    images = sum(map(len, images_of([*queries_of(request), *request.documents])))
    texts = sum(map(len, queries_of(request))) + sum(map(len, request.documents))
    return QUERY_BYTES + DOCUMENT_BYTES * len(request.documents) + texts + images
