"""What a connection may take: time, memory, places. Real sockets, and short times."""

import asyncio
import gc
import logging
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import pairwise
from time import thread_time
from typing import Any

import pytest

from rerankd.api.transport.connection_limiter import Allowed, ConnectionLimiter, ConnectionLimits
from tests.fakes import RecordingObserver
from tests.raw_sockets import BOUNDS, Echo, RawServer, raw_server, statuses, until

_SHORT_S = 0.2
_GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
_HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
_SLOW = b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n"
_LARGE = b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n"
_CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _trickle(send: Callable[[bytes], Awaitable[None]], piece: bytes) -> None:
    while True:
        await send(piece)
        await asyncio.sleep(0.02)


async def test_a_client_that_says_nothing_is_left() -> None:
    async with raw_server(Echo(), head_timeout_s=_SHORT_S) as server, server.connected() as client:
        start = _now()
        assert await client.rest() == b""
        assert _now() - start >= _SHORT_S * 0.9
        assert server.refused() == []


@pytest.mark.parametrize("before", [b"", _GET], ids=["first", "second"])
async def test_a_head_that_trickles_is_answered_408(before: bytes) -> None:
    async with raw_server(Echo(), head_timeout_s=_SHORT_S) as server, server.connected() as client:
        if before:
            await client.send(before)
            assert (await client.answer())[0] == 200
        await client.send(b"GET / HTTP/1.1\r\nX: ")
        trickling = asyncio.create_task(_trickle(client.send, b"y"))
        answer = await client.rest()
        trickling.cancel()
        assert statuses(answer) == [408]
        assert b'"error_type":"request_timeout"' in answer
        assert server.refused() == ["slow_head"]


async def test_blank_lines_do_not_keep_a_connection() -> None:
    async with raw_server(Echo(), head_timeout_s=_SHORT_S) as server, server.connected() as client:
        trickling = asyncio.create_task(_trickle(client.send, b"\r\n"))
        assert statuses(await client.rest()) == [408]
        trickling.cancel()


async def test_a_connection_lives_longer_than_one_heads_time() -> None:
    async with raw_server(Echo(), head_timeout_s=_SHORT_S) as server, server.connected() as client:
        for _ in range(3):
            await client.send(_GET)
            assert (await client.answer())[0] == 200
            await asyncio.sleep(1.2 * _SHORT_S)
        assert server.state.connections


async def test_a_connection_without_a_request_is_closed_after_its_idle_time() -> None:
    async with raw_server(Echo(), idle_timeout_s=_SHORT_S) as server, server.connected() as client:
        await client.send(_GET)
        assert (await client.answer())[0] == 200
        assert await client.rest() == b""
        assert server.refused() == []


async def test_a_body_that_is_read_is_not_hurried_by_the_heads_time() -> None:
    async with raw_server(Echo(), head_timeout_s=_SHORT_S) as server, server.connected() as client:
        await client.send(_CHUNKED)
        for _ in range(4):
            await asyncio.sleep(_SHORT_S / 2)
            await client.send(b"1\r\nx\r\n")
        await client.send(b"0\r\n\r\n")
        assert (await client.answer())[0] == 200


async def test_the_rest_of_a_body_that_was_answered_early_is_not_waited_for() -> None:
    async with raw_server(Echo(), body_timeout_s=_SHORT_S) as server, server.connected() as client:
        await client.send(_CHUNKED.replace(b" / ", b" /early ") + b"1\r\nx\r\n")
        assert (await client.answer())[0] == 200
        trickling = asyncio.create_task(_trickle(client.send, b"1\r\nx\r\n"))
        assert await client.rest() == b""
        trickling.cancel()


async def test_a_peer_that_does_not_read_is_cut_off_and_counts_as_running_until_then() -> None:
    echo = Echo()
    async with raw_server(echo, write_timeout_s=_SHORT_S) as server, server.connected(limit=1024) as client:
        await client.send(_LARGE + _LARGE)
        await until(lambda: echo.asked)
        assert echo.finished == []
        await until(lambda: server.refused() == ["slow_reader"])
        await until(lambda: not server.state.connections)
        assert echo.asked == ["/large"], "the next request is not begun before the answer is out"


async def test_a_peer_that_reads_slowly_gets_its_answer() -> None:
    echo = Echo(large_bytes=1 << 22)
    async with raw_server(echo, write_timeout_s=20) as server, server.connected(limit=1 << 16) as client:
        await client.send(_LARGE)
        read = 0
        while read < 1 << 22:
            piece = await client.reader.read(1 << 18)
            assert piece
            read += len(piece)
            await asyncio.sleep(0.005)
        await until(lambda: echo.finished)
        assert server.refused() == []


@pytest.mark.parametrize("asked", [b"", b"GET / HT", _LARGE], ids=["idle", "in a head", "not reading"])
async def test_shutting_down_waits_for_no_peer(asked: bytes) -> None:
    echo = Echo()
    async with raw_server(echo, write_timeout_s=_SHORT_S) as server, server.connected(limit=1024) as client:
        await client.send(asked)
        if asked == _LARGE:
            await until(lambda: echo.asked)
        await until(lambda: server.state.connections)
        for connection in list(server.state.connections):
            connection.shutdown()
        start = _now()
        await until(lambda: not server.state.connections)
        assert _now() - start < 20 * _SHORT_S


async def test_shutting_down_finishes_what_runs_and_closes() -> None:
    echo = Echo()
    async with raw_server(echo) as server, server.connected() as client:
        await client.send(_SLOW + _GET)
        await until(lambda: echo.asked)
        for connection in list(server.state.connections):
            connection.shutdown()
        echo.go.set()
        answers = await client.rest()
    assert statuses(answers) == [200]
    assert b"\r\nconnection: close\r\n" in answers


async def test_what_is_pipelined_behind_a_running_request_is_not_parsed_and_only_read_up_to_a_bound() -> None:
    """Ten thousand requests on each connection take the memory of one buffer, and delay no other connection."""
    echo = Echo()
    flood = _SLOW + _HEALTH * 10_000
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(raw_server(echo))
        clients = [await stack.enter_async_context(server.connected()) for _ in range(20)]
        gc.collect()
        tracemalloc.start()
        sending = [asyncio.create_task(client.send(flood)) for client in clients]
        await until(lambda: len(echo.asked) == len(clients))
        await asyncio.sleep(0.1)
        held = [connection._reader.waiting_bytes for connection in server.state.connections]  # type: ignore[union-attr]
        tracemalloc.stop()
        assert echo.asked == ["/slow"] * len(clients)
        assert max(held) < 2 * 65_536
        for task in sending:
            task.cancel()
        for client in clients:
            client.writer.transport.abort()
        echo.go.set()


async def test_a_pipelined_flood_is_answered_in_full_while_others_are_served() -> None:
    echo = Echo()
    async with raw_server(echo) as server, server.connected() as client, server.connected() as other:
        flood = asyncio.create_task(
            client.send(_HEALTH * 1000 + _GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        )
        answered = asyncio.create_task(client.rest())
        while not answered.done():
            await other.send(_GET)
            assert (await other.answer())[0] == 200
        assert len(statuses(answered.result())) == 1001
        await flood


async def _longest_share(requests: bytes) -> float:
    """The largest part of the CPU time for a connection's bytes that is spent before others have their turn."""
    turns: list[float] = []

    async def watch() -> None:
        while True:
            turns.append(thread_time())
            await asyncio.sleep(0)

    async with raw_server(Echo()) as server, server.connected() as client:
        watching = asyncio.create_task(watch())
        await client.send(requests)
        await client.rest()
        watching.cancel()
    took = [after - before for before, after in pairwise(turns)]
    return max(took) / sum(took)


@pytest.mark.parametrize(
    "piece", [b"1\r\nx\r\n", b"2\r\n\r\n\r\n", b"4\r\n\r\n\r\n\r\n"], ids=["bytes", "blank lines", "more blank lines"]
)
async def test_a_body_of_tiny_chunks_delays_no_other_connection(piece: bytes) -> None:
    body = _CHUNKED.replace(b"Host: x", b"Host: x\r\nConnection: close") + piece * 100_000 + b"0\r\n\r\n"
    assert await _longest_share(body) < 0.5


async def test_endless_blank_lines_delay_no_other_connection() -> None:
    assert await _longest_share(b"\r\n" * 500_000) < 0.5


async def _open(server: RawServer, stack: AsyncExitStack, count: int) -> list[Any]:
    clients = [await stack.enter_async_context(server.connected()) for _ in range(count)]
    await until(lambda: len(server.state.connections) == count)
    return clients


async def test_connections_beyond_the_limit_are_told_so_and_probes_are_answered() -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(raw_server(Echo(), max_connections=3))
        first, *_ = await _open(server, stack, 3)
        probe = await server.ask(_HEALTH)
        assert statuses(probe) == [200]
        assert b"\r\nconnection: close\r\n" in probe
        refused = await server.ask(
            b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000
        )
        assert statuses(refused) == [503]
        assert b"\r\nretry-after: 1\r\n" in refused.lower()
        assert server.refused() == ["too_many"]
        await first.send(_GET)
        assert (await first.answer())[0] == 200


async def test_when_probes_too_use_all_connections_others_are_closed_at_once() -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(raw_server(Echo(), max_connections=2))
        first, *_ = await _open(server, stack, 2 + server.limiter.limits.probe_connections)
        start = _now()
        assert await server.ask(_HEALTH) == b""
        assert _now() - start < 1
        await first.send(_GET)
        assert (await first.answer())[0] == 200


async def test_a_connection_that_closes_releases_its_slot() -> None:
    async with raw_server(Echo(), max_connections=1) as server:
        for _ in range(3):
            async with server.connected() as client:
                await client.send(_GET)
                assert (await client.answer())[0] == 200
            await until(lambda: not server.state.connections)
        changes = [fields["open_connections"] for fields in server.observer.named("connections_changed")]
        assert changes == [1, 0] * 3


@pytest.mark.parametrize("kind", ["idle", "in a head", "in a body", "pipelining", "not reading"])
async def test_a_connection_of_any_kind_takes_little_memory(kind: str) -> None:
    """What it may have in buffers (64 KiB of what follows, as much of a body, and one read) and 16 KiB for itself."""
    sent, bound = {
        "idle": (b"", 16 << 10),
        "in a head": (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"y" * 60_000, 208 << 10),
        "in a body": (b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n" + b"y" * 60_000, 208 << 10),
        "pipelining": (_SLOW + _HEALTH * 5_000, 208 << 10),
        "not reading": (_LARGE + _HEALTH * 5_000, 208 << 10),
    }[kind]
    echo = Echo(large_bytes=4 << 20)
    count = 20
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(raw_server(echo))
        clients = await _open(server, stack, count)
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.take_snapshot()
        for client in clients:
            client.writer.transport.write(sent) if sent else None
        if kind not in {"idle", "in a head"}:
            await until(lambda: len(echo.asked) == count)
        await asyncio.sleep(0.1)
        after = tracemalloc.take_snapshot()
        tracemalloc.stop()
        ours = tracemalloc.Filter(inclusive=True, filename_pattern="*/app/rerankd/api/*")
        grown = after.filter_traces([ours]).compare_to(before.filter_traces([ours]), "filename")
        assert sum(difference.size_diff for difference in grown) / count < bound
        for client in clients:
            client.writer.transport.abort()
        echo.go.set()


def _limiter(**bounds: Any) -> ConnectionLimiter:
    return ConnectionLimiter(ConnectionLimits(**{**vars_of(BOUNDS), **bounds}), RecordingObserver())


def vars_of(bounds: ConnectionLimits) -> dict[str, Any]:
    return {name: getattr(bounds, name) for name in ConnectionLimits.__slots__}


def test_an_address_has_its_own_limit() -> None:
    limiter = _limiter(max_connections=100, max_per_address=2)
    allowed = [limiter.acquire("192.0.2.1").allowed for _ in range(3)]
    assert allowed == [Allowed.ANYTHING, Allowed.ANYTHING, Allowed.PROBES]
    assert limiter.acquire("192.0.2.2").allowed is Allowed.ANYTHING


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        (None, None, True),
    ],
)
def test_what_is_one_address(one: str | None, other: str | None, same: bool) -> None:
    limiter = _limiter(max_per_address=1)
    limiter.acquire(one)
    assert (limiter.acquire(other).allowed is Allowed.PROBES) is same


def test_slots_are_released_and_nothing_is_kept_of_closed_connections() -> None:
    limiter = _limiter(max_connections=2, max_per_address=1)
    for _ in range(3):
        slots = [limiter.acquire(f"192.0.2.{number}") for number in range(2)]
        assert [slot.allowed for slot in slots] == [Allowed.ANYTHING] * 2
        for slot in slots:
            limiter.release(slot)
    assert not limiter._open_by_origin


def test_refusals_are_counted_each_and_logged_together(caplog: pytest.LogCaptureFixture) -> None:
    times = iter([0.0, 1.0, 2.0, 11.0, 11.5])
    observer = RecordingObserver()
    limiter = ConnectionLimiter(BOUNDS, observer, clock=lambda: next(times))
    slot = limiter.acquire("192.0.2.1")
    with caplog.at_level(logging.WARNING, logger="rerankd.api.transport.connection_limiter"):
        for reason in ("slow_head", "slow_head", "slow_head", "slow_head", "malformed"):
            limiter.count_refusal(slot, reason)
    assert len(observer.named("connection_refused")) == 5
    assert {vars(record)["latest_from"] for record in caplog.records} == {"192.0.2.1"}
    logged = [(vars(record)["reason"], vars(record)["connections"]) for record in caplog.records]
    assert logged == [("slow_head", 1), ("slow_head", 3), ("malformed", 1)]
