"""The whole path of requests, from their bytes to their answers, in virtual time: everything between the socket and the
engine is the real thing, and knows no other clock. What takes time is what clients, threads and the loop spend here.

The machine is one of round numbers: it tokenizes 5 MB a second and thread, reads 100 MB of JSON a second, ranks
in 20 ms, reads or writes a slice of a large request in 2 ms on the event loop, and scores about 200 usual pairs a
second and worker.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from math import inf
from random import Random
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
from fastapi import FastAPI
from starlette.types import ASGIApp, Message

from rerankd.api.dialects import DIALECTS
from rerankd.api.dialects.base import RequestLimits
from rerankd.api.middleware import BodyBounds, BodyLimit
from rerankd.api.parsing.bodies import STEP_BYTES, BodyLimits, BodyReader
from rerankd.api.rerank import rerank_routes
from rerankd.batching.admission import Estimate
from rerankd.batching.batcher import Batcher
from rerankd.batching.passes import ThreadPasses
from rerankd.batching.planner import BatchPlanner
from rerankd.cache.base import Cache
from rerankd.concurrency.pacing import Pacing
from rerankd.concurrency.sharing import SharedLoop, SharedWorker
from rerankd.concurrency.slices import SLICE_S, Sliced
from rerankd.concurrency.turns import Share
from rerankd.config.api_keys import ApiKey, hash_key
from rerankd.domain import DiversityPlan, FloatArray, FusionPlan, PassagePlan, ScoreOptions
from rerankd.engines.base import BatchLimits
from rerankd.gateway.gateway import Gateway
from rerankd.gateway.held_bytes import HeldBytes
from rerankd.gateway.keys import ApiKeys
from rerankd.pipeline.blanks import BlankStage, drops_nothing
from rerankd.pipeline.budget import BudgetStage
from rerankd.pipeline.cached import CachedStage
from rerankd.pipeline.passages import PassageStage
from rerankd.pipeline.pointwise import PointwiseStage
from rerankd.pipeline.several_queries import SeveralQueriesStage
from rerankd.pipeline.stage import Stage
from rerankd.scorers.base import EncodedPairs
from rerankd.scorers.ranking import sigmoid
from rerankd.serving.cascades import ServedMember, follow
from rerankd.serving.catalog import Catalog
from rerankd.serving.model import Canary, LoadedModel, ServedModel
from rerankd.serving.service import Limits, RerankService
from rerankd.tasks.encoding import Encoding
from tests.fakes import IMAGES, RecordingObserver, WordScorer, put_into_service
from tests.simulation.virtual_time import Clock, VirtualLoop, VirtualWorker
from tests.unit.batching.simulation import pass_s

T = TypeVar("T")

_CORES: Final = 2
_TOKENIZE_S: Final = 1 / 5e6
_READ_S: Final = 1 / 100e6
_RANK_S: Final = 0.02
# The second model of the cascade.
_DEAR: Final = 10.0
_READ_BY_DEAR: Final = 100
_LIMITS: Final = RequestLimits(
    documents=10_000, queries=100, query_chars=32_768, rank_fields=100, fields=1000, images=IMAGES
)
# A step of reading holds the loop for so long: as many bytes as the reader takes in one turn.
_STEP_S: Final = STEP_BYTES * _READ_S
# A text of these has a token for each character, one of all others one for each four.
DENSE: Final = "密"
_DENSITY: Final = 4
# The status of a request that is open when the simulation ends, with how long it has waited so far.
UNANSWERED: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What became of a request that was sent at a moment."""

    sent: float
    latency_s: float
    status: int
    headers: dict[str, str]
    body: bytes = b""


class _Scorer(WordScorer):
    """Takes time for what it tokenizes, and gives ids that no other text has."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._numbers = count()

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        *,
        max_document_tokens: int | None,
        instruction: str | None = None,
        owner: str = "",
    ) -> EncodedPairs[Encoding]:
        self._clock.spend(_TOKENIZE_S * sum(map(len, documents)))
        room = min(self.max_length - 10, max_document_tokens or self.max_length)
        lengths = [len(text) // (1 if text.startswith(DENSE) else _DENSITY) + 1 for text in documents]
        return EncodedPairs(
            [Encoding(self._ids(10 + min(room, length)), 10) for length in lengths],
            np.array([max(0, length - room) for length in lengths], dtype=np.int64),
        )

    def _ids(self, length: int) -> Any:
        ids = np.zeros(length, dtype=np.int64)
        ids[0] = next(self._numbers)
        return ids


class _Engine:
    """Takes `slowness` times as long for a pass as that of `tests.unit.batching.simulation`."""

    name = "virtual"
    workers = 2
    preferred_batch = BatchLimits(tokens=512, pairs=64)

    def __init__(self, clock: Clock, *, slowness: float = 1.0) -> None:
        self._clock = clock
        self._slowness = slowness
        self.tokens = self.pairs = 0

    def run(self, encodings: Sequence[Encoding]) -> FloatArray:
        lengths = [len(encoding.ids) for encoding in encodings]
        self.tokens += sum(lengths)
        self.pairs += len(lengths)
        self._clock.spend(self._slowness * pass_s(lengths))
        return np.zeros((len(encodings), 1), dtype=np.float32)


class _Bodies(BodyReader):
    """Its steps take the loop's time."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__(BodyLimits(max_values=4_000_000, max_fields=1000, max_text_bytes=64 << 20))
        self.loop = _Loop(loop)
        self._virtual = loop

    async def _in_turn(self, steps: Sliced[T], caller: str, *, size: int) -> T:
        return await super()._in_turn(_slow(steps, self._virtual, _STEP_S), caller, size=size)


class _Loop(SharedLoop):
    """Each step of its work is a slice."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__(clock=loop.time)
        self._virtual = loop

    def try_now(self, work: Sliced[T]) -> None:
        """Leave all of it to turns."""

    async def _run_by_turns(self, share: Share, work: Sliced[T]) -> T:
        return await super()._run_by_turns(share, _slow(work, self._virtual, SLICE_S))


def _slow(steps: Sliced[T], loop: VirtualLoop, step_s: float) -> Sliced[T]:
    while True:
        loop.compute(step_s)
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        yield


@dataclass(kw_only=True, eq=False)
class World:
    """A service with the keys "a" and "b", and what it was sent. Its models are "fake"; "dear", whose `dear_engine` is
    slow; and "cascade", where that one reorders the best 100 of the other.
    """

    app: ASGIApp
    loop: VirtualLoop
    engine: _Engine
    dear_engine: _Engine
    batcher: Batcher[Encoding, FloatArray]
    rng: Random
    _numbers: Iterator[int] = field(default_factory=count)
    replies: dict[str, list[Reply]] = field(default_factory=lambda: {"a": [], "b": []})

    async def post(
        self,
        key: str,
        body: bytes,
        *,
        patience_s: float = inf,
        complete: bool = True,
        deadline_s: float | None = None,
    ) -> Reply:
        """Send a request, and wait for its answer; the client goes away after `patience_s`. Of a body that is not
        `complete` the rest never comes.
        """
        sent = self.loop.time()
        start: dict[str, Any] = {}
        written: list[bytes] = []
        messages = iter([{"type": "http.request", "body": body, "more_body": not complete}])

        async def receive() -> Message:
            for message in messages:
                return message
            await asyncio.sleep(min(patience_s, 1e6))
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            written.append(message.get("body", b""))

        try:
            await self.app(_scope(key, deadline_s), receive, send)
        except asyncio.CancelledError:
            latency_s = self.loop.time() - sent
            self.replies[key].append(Reply(sent=sent, latency_s=latency_s, status=UNANSWERED, headers={}))
            raise
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        reply = Reply(
            sent=sent,
            latency_s=self.loop.time() - sent,
            status=start["status"],
            headers=headers,
            body=b"".join(written),
        )
        self.replies[key].append(reply)
        return reply

    async def closed_loop(self, key: str, body: Callable[[], bytes], **options: Any) -> None:
        """A client that sends its next request when it has its answer, or has waited as long as it was told to."""
        while True:
            reply = await self.post(key, body(), **options)
            if reply.status == 429:
                await asyncio.sleep(float(reply.headers["retry-after-ms"]) / 1000)

    def texts(self, documents: int, *, characters: tuple[int, int] = (200, 900), letter: str = "x") -> list[str]:
        """Usual documents; no two are equal."""
        return [f"{letter * self.rng.randrange(*characters)}{next(self._numbers)}" for _ in range(documents)]

    def body(self, documents: Sequence[str], **fields: Any) -> bytes:
        return json.dumps({"query": "query", "documents": documents, **fields}).encode()


def _scope(key: str, deadline_s: float | None) -> dict[str, Any]:
    deadline = [] if deadline_s is None else [(b"x-request-deadline-ms", b"%f" % (1000 * deadline_s))]
    return {
        "type": "http",
        "method": "POST",
        "path": "/v2/rerank",
        "raw_path": b"/v2/rerank",
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer secret-{key}".encode()), *deadline],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("test", 80),
        "client": ("test", 1),
        "root_path": "",
    }


@asynccontextmanager
async def _world(*, seed: int, threads: int, cache: Cache | None) -> AsyncIterator[World]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    clock, observer = Clock(loop), RecordingObserver()
    engine, dear_engine = _Engine(clock), _Engine(clock, slowness=_DEAR)
    # One of the threads that tokenize is left to others, as where there are keys.
    tokenizing = SharedWorker(VirtualWorker(clock, threads=threads), per_caller=max(1, threads - 1))
    cheap = await _served("fake", engine, tokenizing, clock, observer, cache=cache)
    dear = await _served("dear", dear_engine, tokenizing, clock, observer, cache=None)
    cascade = ServedModel(name="cascade", aliases=(), observer=observer)
    members = [ServedMember("fake", cheap.model, None), ServedMember("dear", dear.model, _READ_BY_DEAR)]
    follow(cascade, members, tokenizing, fusion=FusionPlan(), diversity=DiversityPlan())
    serving = [asyncio.create_task(served.batcher.run()) for served in (cheap, dear)]
    service = RerankService(
        Catalog([cheap.model, dear.model, cascade], default="fake"),
        limits=Limits(
            max_documents=10_000, max_query_chars=32_768, images=IMAGES, request_timeout_s=300.0, loading_timeout_s=10.0
        ),
        observer=observer,
        background=SharedWorker(VirtualWorker(clock, threads=1, seconds_per_call=_RANK_S)),
        clock=clock,
    )
    app = FastAPI()
    keys = ApiKeys([ApiKey(name=name, sha256=hash_key(f"secret-{name}")) for name in ("a", "b")])
    bounds = BodyBounds(max_bytes=64 << 20, timeout_s=60.0)
    pacing = Pacing(cores=_CORES, clock=clock, cpu_clock=clock)
    gateway = Gateway(service, keys=keys, held=HeldBytes(256 << 20), pacing=pacing, observer=observer)
    app.add_middleware(BodyLimit, bounds=bounds, held=gateway.held)
    router, _ = rerank_routes(DIALECTS, gateway=gateway, bodies=_Bodies(loop), limits=_LIMITS)
    app.include_router(router)
    try:
        yield World(app=app, loop=loop, engine=engine, dear_engine=dear_engine, batcher=cheap.batcher, rng=Random(seed))
    finally:
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


class _Served(NamedTuple):
    model: ServedModel
    batcher: Batcher[Encoding, FloatArray]


async def _served(
    name: str,
    engine: _Engine,
    tokenizing: SharedWorker,
    clock: Clock,
    observer: RecordingObserver,
    *,
    cache: Cache | None,
) -> _Served:
    """A model that is in service once its batcher runs."""
    scorer = _Scorer(clock)
    planner = BatchPlanner(max_batch_tokens=512, max_batch_pairs=64, workers=engine.workers)
    inference = VirtualWorker(clock, threads=engine.workers)
    batcher = Batcher(
        planner,
        ThreadPasses(engine.run, inference),
        max_waiting_tokens=4_000_000,
        model=name,
        observer=observer,
        clock=clock,
    )
    pointwise = PointwiseStage(scorer, batcher, tokenizing)
    budgeted = BudgetStage(pointwise, batcher, longest=scorer.max_length)
    cached = budgeted if cache is None else CachedStage(budgeted, cache, fingerprint="", observer=observer)
    passages = PassageStage(cached, scorer, batcher, tokenizing, plan=PassagePlan())
    stage: Stage = SeveralQueriesStage(BlankStage(passages, tokenizing, drops=drops_nothing), clock=clock)

    async def fits(query: str, documents: Sequence[str], options: ScoreOptions) -> bool:
        characters = sum(len(query) + len(document) for document in documents)
        estimate = Estimate(characters=characters, items=len(documents), longest=scorer.max_length)
        return await batcher.fits(estimate, options.terms)

    model = ServedModel(name=name, aliases=(), observer=observer)
    canary = Canary(pairs=(), tolerance=None)
    loaded = LoadedModel(
        stage=stage,
        direct=pointwise,
        activation=sigmoid,
        canary=canary,
        details={"scorer": "virtual"},
        fits=fits,
    )
    await put_into_service(model, loaded)
    return _Served(model, batcher)


Client = Callable[[World], Awaitable[None]]


def simulated(
    clients: Sequence[Client], *, seconds: float, seed: int = 0, threads: int = 2, cache: Cache | None = None
) -> World:
    """Let clients meet for so long."""

    async def run() -> World:
        async with _world(seed=seed, threads=threads, cache=cache) as world:
            running = [asyncio.ensure_future(client(world)) for client in clients]
            done, _ = await asyncio.wait(running, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            return world

    with suppress(NotImplementedError), asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(run())
    raise AssertionError("the loop of virtual time lacks something that asyncio needs")
