"""Checks whether the service's memory grows with the number of requests, for each kind.

    python -m loadtest.growth --registry REGISTRY [--requests 3000] [--only KIND ...]      (or: make growth)

Sends thousands of requests of each kind, no two alike, to a service whose caches are small: ordinary ones, refused and
abandoned ones, and connections that are misused. The first tenth of a kind warms up. What memory gains afterwards is
bounded, and so is what the last half gains: a leak of a kilobyte a request shows.
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx

from loadtest.claims import Claim, conclude, parser, run
from loadtest.hostile import hostile_bodies
from loadtest.servers import Server, rerankd_server, wait_until_ready
from rerankd.api.dialects import DIALECTS

MOST_MIB: Final = 64.0
_MOST_PER_REQUEST_KIB: Final = 1.0
# What the allocator of a process of many threads gains and gives back by itself.
_NOISE_MIB: Final = 8.0
_CLIENTS: Final = 8
_TIMEOUT_S: Final = 60.0
_KEY: Final = "growth"
_SETTINGS: Final = {
    "RERANKD_API_KEYS": _KEY,
    "RERANKD_CACHE_URL": "memory://?max_entries=1000",
    "RERANKD_LOG_LEVEL": "ERROR",
}
_MIB: Final = 2.0**20
_HOSTILE: Final = list(hostile_bodies())
_HOSTILE_BYTES: Final = 300
# Goes through all of them in an order that mixes dialects and fields.
_STRIDE: Final = 1009


@dataclass(frozen=True, slots=True)
class Sender:
    """Sends one request of some kind; `number` is its own."""

    http: httpx.AsyncClient
    port: int

    async def post(
        self, body: object, *, path: str = "/v2/rerank", status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Post a JSON body, or bytes as they are, and check the answer's status."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = await self.http.post(path, content=content, headers=headers)
        _check(answer, status)

    async def get(self, path: str, *, status: int = 200) -> None:
        _check(await self.http.get(path), status)

    async def leave(self, head: bytes, *, after_s: float = 0.0) -> None:
        """Open a connection, send something, and close it without waiting for an answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(head)
            await writer.drain()
            if after_s:
                with suppress(TimeoutError):
                    async with asyncio.timeout(after_s):
                        await reader.read(1)
        finally:
            writer.transport.abort()


Kind = Callable[[Sender, int], Awaitable[None]]
KINDS: dict[str, Kind] = {}


def _kind(send: Kind) -> Kind:
    """Register a function under its name in words."""
    KINDS[send.__name__.removeprefix("_").replace("_", " ")] = send
    return send


def _body(number: int, *, documents: int = 3, **more: object) -> dict[str, object]:
    return {
        "query": f"question {number}",
        "documents": [f"document {number} {index}: rain in spring" for index in range(documents)],
        **more,
    }


def _raw(body: Mapping[str, object], *headers: str, length: int | None = None) -> bytes:
    content = json.dumps(body).encode()
    lines = ["POST /v2/rerank HTTP/1.1", "Host: growth", f"Authorization: Bearer {_KEY}", *headers]
    lines.append(f"Content-Length: {len(content) if length is None else length}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


@_kind
async def _ordinary(sender: Sender, number: int) -> None:
    await sender.post(_body(number))


@_kind
async def _known_to_the_cache(sender: Sender, number: int) -> None:
    await sender.post(_body(number % 10))


@_kind
async def _blank_documents(sender: Sender, number: int) -> None:
    await sender.post({"query": f"question {number}", "documents": ["", "\u200b" * (number % 50 + 1), "rain"]})


@_kind
async def _documents_of_one_token(sender: Sender, number: int) -> None:
    await sender.post({"query": "rain", "documents": [f"{number}{letter}" for letter in "abcdefghijklmnop"]})


@_kind
async def _long_documents(sender: Sender, number: int) -> None:
    await sender.post({"query": "rain", "documents": [f"{number} " + "spring rain " * 2000] * 2})


@_kind
async def _long_documents_in_passages(sender: Sender, number: int) -> None:
    await sender.post({"query": "rain", "documents": [f"{number} " + "spring rain " * 500], "truncation": "chunk"})


@_kind
async def _other_alphabets(sender: Sender, number: int) -> None:
    await sender.post({"query": f"дождь {number}", "documents": [f"весна 雨 {number} \U0001f327 مطر"] * 3})


@_kind
async def _documents_with_fields(sender: Sender, number: int) -> None:
    documents = [{"title": f"{number}", "text": "rain", f"field {number}": number}] * 3
    body = {"query": "rain", "documents": documents, "rank_fields": ["title", "text"], "return_documents": True}
    await sender.post(body, path="/v1/rerank")


@_kind
async def _distinct_models(sender: Sender, number: int) -> None:
    await sender.post(_body(number, model=f"model-{number}"), status=404)


@_kind
async def _distinct_fields(sender: Sender, number: int) -> None:
    await sender.post(_body(number, **{f"field-{number}": 1}))


@_kind
async def _distinct_paths(sender: Sender, number: int) -> None:
    await sender.post(_body(number), path=f"/v2/{number}", status=404)


@_kind
async def _distinct_names_of_models_asked_for(sender: Sender, number: int) -> None:
    await sender.get(f"/v1/models/{number}", status=404)


@_kind
async def _distinct_request_ids(sender: Sender, number: int) -> None:
    await sender.post(_body(number), headers={"X-Request-ID": f"id-{number}"})


@_kind
async def _wrong_keys(sender: Sender, number: int) -> None:
    await sender.post(_body(number), status=401, headers={"Authorization": f"Bearer {number}"})


@_kind
async def _not_json(sender: Sender, number: int) -> None:
    await sender.post(b'{"query": "%d", "documents": [' % number, status=400)


@_kind
async def _nothing_to_rank(sender: Sender, number: int) -> None:
    await sender.post({"query": f"{number}", "documents": []}, status=400)


@_kind
async def _too_many_documents(sender: Sender, number: int) -> None:
    await sender.post({"query": f"{number}", "documents": ["a"] * 10_001}, status=413)


@_kind
async def _deadlines_that_are_missed(sender: Sender, number: int) -> None:
    await sender.post(_body(number, documents=50), status=504, headers={"X-Request-Deadline-Ms": "0.01"})


@_kind
async def _every_field_with_every_shape(sender: Sender, number: int) -> None:
    """Small bodies of `make amplification`, which reads the dialects' fields: a new field is covered by itself."""
    body = _HOSTILE[number * _STRIDE % len(_HOSTILE)]
    answer = await sender.http.post(body.path, content=body.content(_HOSTILE_BYTES), headers=body.headers)
    if answer.status_code >= 500:
        raise AssertionError(f"{body}: {answer.status_code}: {answer.text[:300]}")


@_kind
async def _metrics(sender: Sender, _number: int) -> None:
    await sender.get("/metrics")


@_kind
async def _models(sender: Sender, _number: int) -> None:
    await sender.get("/v1/models")


@_kind
async def _openapi(sender: Sender, _number: int) -> None:
    await sender.get("/openapi.json")


@_kind
async def _readiness(sender: Sender, _number: int) -> None:
    await sender.get("/ready")


@_kind
async def _connections_that_say_nothing(sender: Sender, _number: int) -> None:
    await sender.leave(b"")


@_kind
async def _heads_that_break_off(sender: Sender, number: int) -> None:
    await sender.leave(b"POST /v2/rerank HTTP/1.1\r\nX-Number: %d\r\n" % number)


@_kind
async def _bodies_that_break_off(sender: Sender, number: int) -> None:
    await sender.leave(_raw(_body(number), length=1_000_000))


@_kind
async def _clients_that_leave(sender: Sender, number: int) -> None:
    await sender.leave(_raw(_body(number, documents=30)), after_s=0.002)


@_kind
async def _offers_to_upgrade(sender: Sender, number: int) -> None:
    await sender.leave(_raw(_body(number), "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"), after_s=5)


@_kind
async def _requests_that_are_not_http(sender: Sender, number: int) -> None:
    await sender.leave(b"\x16\x03\x01 %d nonsense\r\n\r\n" % number, after_s=5)


def _add_dialects() -> None:
    """The example of each dialect on its first path, with a query of its own where that is a text."""

    async def send(path: str, example: Mapping[str, Any], sender: Sender, number: int) -> None:
        query = example.get("query")
        changed = {**example, "query": f"{query} {number}"} if isinstance(query, str) else example
        await sender.post({name: value for name, value in changed.items() if name != "model"}, path=path)

    for dialect in DIALECTS:
        path = next((path for path in dialect.paths if "{" not in path), "")
        if path:
            KINDS[f"dialect {dialect.name}"] = partial(send, path, dialect.example)


_add_dialects()


@dataclass(slots=True)
class Growth:
    """Resident MiB after the warm-up, half-way and at the end."""

    kind: str
    requests: int
    mib: list[float] = field(default_factory=list)

    def claims(self) -> list[Claim]:
        warm, middle, end = self.mib
        leak = _NOISE_MIB + _MOST_PER_REQUEST_KIB * self.requests / 2 / 1024
        return [
            Claim(f"{self.kind}: MiB gained", end - warm, "<=", MOST_MIB),
            Claim(f"{self.kind}: MiB gained in the last half", end - middle, "<=", leak),
        ]


async def measure(server: Server, kinds: Mapping[str, Kind], *, requests: int) -> list[Claim]:
    """What memory gains by each kind, one after another."""
    claims = []
    async with _sender(server) as sender:
        for name, kind in kinds.items():
            growth = Growth(name, requests)
            for first, end in ((0, requests // 10), (requests // 10, requests // 2), (requests // 2, requests)):
                await _send(kind, sender, range(first, end))
                await asyncio.sleep(0.2)
                growth.mib.append(server.resident_bytes() / _MIB)
            claims += growth.claims()
    return claims


@asynccontextmanager
async def _sender(server: Server) -> AsyncIterator[Sender]:
    headers = {"Authorization": f"Bearer {_KEY}", "Content-Type": "application/json"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=_TIMEOUT_S) as http:
        yield Sender(http, server.port)


async def _send(kind: Kind, sender: Sender, numbers: range) -> None:
    left = iter(numbers)

    async def client() -> None:
        for number in left:
            await kind(sender, number)

    async with asyncio.TaskGroup() as clients:
        for _ in range(_CLIENTS):
            clients.create_task(client())


def _check(answer: httpx.Response, status: int) -> None:
    if answer.status_code != status:
        raise AssertionError(
            f"{answer.request.url.path}: {answer.status_code} instead of {status}: {answer.text[:300]}"
        )


def main() -> int:
    options = parser(__doc__, seconds=0)
    options.add_argument("--requests", type=int, default=3000, help="of each kind; default: 3000")
    options.add_argument("--only", nargs="+", choices=sorted(KINDS), metavar="KIND", help="some kinds only")
    arguments = options.parse_args()
    kinds = {name: kind for name, kind in KINDS.items() if not arguments.only or name in arguments.only}
    requests = max(10, min(arguments.requests, 100_000))
    with (
        tempfile.TemporaryDirectory() as folder,
        rerankd_server(Path(folder), arguments.registry, **_SETTINGS) as server,
    ):
        wait_until_ready(server)
        claims = run(measure(server, kinds, requests=requests))
    return conclude(claims, arguments)


if __name__ == "__main__":
    sys.exit(main())
