"""A real server of two front-end processes: it answers as one process does, and outlives each of them."""

import asyncio
import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socket import socketpair
from typing import Any, Final

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from rerankd.api.front import FrontStart
from rerankd.api.fronts import FRONT_END
from rerankd.api.transport.listening import listen
from rerankd.config.settings import Settings
from rerankd.domain import RerankRequest
from rerankd.serving.assembly import running_service
from rerankd.telemetry.observer import Silent
from tests.registry_files import write_registry
from tests.servers import Server, rerankd_server, wait_until_ready
from tests.tiny_models import TINY_BERT

_FRONTS: Final = 2
_QUESTION: Final[dict[str, Any]] = {
    "query": "What is the capital of France?",
    "documents": ["Berlin is the capital of Germany.", "Paris is the capital of France.", "Water is wet."],
}
_KEYS: Final = """
[[key]]
name = "free"
key = "free-secret"
[[key]]
name = "counted"
key = "counted-secret"
tokens_per_min = 300
"""
_ADMINS: Final = """
[[key]]
name = "operator"
key = "operator-secret"
"""
_FREE: Final = {"Authorization": "Bearer free-secret"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("processes")
    registry = write_registry(folder, [{"name": "tiny", "path": TINY_BERT}])
    (folder / "keys.toml").write_text(_KEYS)
    (folder / "admins.toml").write_text(_ADMINS)
    with rerankd_server(
        folder,
        registry,
        RERANKD_PROCESSES=str(_FRONTS),
        RERANKD_API_KEYS_FILE=str(folder / "keys.toml"),
        RERANKD_ADMIN_KEYS_FILE=str(folder / "admins.toml"),
        RERANKD_CACHE_URL="none://",
    ) as server:
        wait_until_ready(server)
        yield server


def _fronts(server: Server) -> list[psutil.Process]:
    children = psutil.Process(server.process.pid).children()
    return [child for child in children if "rerankd.api.front" in " ".join(child.cmdline())]


def _ask(server: Server, headers: dict[str, str] | None = None, path: str = "/v2/rerank") -> httpx.Response:
    """Over a connection of its own, so that any front end may have it."""
    return httpx.post(f"{server.url}{path}", json=_QUESTION, headers=headers or _FREE, timeout=60)


def _until(true: Callable[[], bool], *, within_s: float = 60.0) -> None:
    ends = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.05)


def _samples(server: Server) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = httpx.get(f"{server.url}/metrics", timeout=30).text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _answered(server: Server) -> float:
    return sum(
        value
        for (name, labels), value in _samples(server).items()
        if name == "rerank_requests_total" and ("status", "200") in labels
    )


async def test_it_answers_as_one_process_does(server: Server, tmp_path: Path) -> None:
    settings = Settings(registry=write_registry(tmp_path, [{"name": "tiny", "path": TINY_BERT}]))
    async with running_service(settings, Silent()) as service:
        await service.model_named(None).settled()
        (alone,) = await service.rerank_all([RerankRequest(**_QUESTION)])
    answers = [await asyncio.to_thread(_ask, server) for _ in range(6)]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        results = answer.json()["results"]
        assert [(one["index"], one["relevance_score"]) for one in results] == [
            (one.index, pytest.approx(one.relevance_score, abs=1e-6)) for one in alone.results
        ]


def test_one_scrape_shows_all_processes(server: Server) -> None:
    before = _answered(server)
    assert all(_ask(server).status_code == 200 for _ in range(8))
    shown = [_answered(server) for _ in range(4)]
    assert shown == [before + 8] * 4, "whichever front end answers"
    samples = _samples(server)
    assert samples["rerank_model_ready", (("model", "tiny"),)] == 1
    assert samples["rerank_workers", (("model", "tiny"),)] >= 1
    resident = sum(process.memory_info().rss for process in (psutil.Process(server.process.pid), *_fronts(server)))
    assert samples["process_resident_memory_bytes", ()] == pytest.approx(resident, rel=0.2)


def test_a_quota_holds_across_front_ends(server: Server) -> None:
    """A request has about 60 tokens: if each front end counted by itself, twice as many would be answered."""
    counted = {"Authorization": "Bearer counted-secret"}
    answers = [_ask(server, counted) for _ in range(40)]
    cost = next(answer.json()["meta"]["billed_units"] for answer in answers if answer.status_code == 200)
    read = sum(answer.status_code == 200 for answer in answers)
    assert {answer.status_code for answer in answers} == {200, 429}
    assert cost
    assert 1 <= read <= 300 // 25 + 2
    assert answers[-1].status_code == 429


def test_a_command_changes_all_front_ends(server: Server) -> None:
    registry = server.log.parent / "registry.toml"
    write_registry(registry.parent, [{"name": "tiny", "path": TINY_BERT, "aliases": ["other-name"]}])
    operator = {"Authorization": "Bearer operator-secret"}
    answer = httpx.post(f"{server.url}/admin/reload", headers=operator, timeout=60)
    assert answer.status_code == 200, answer.text
    body = {**_QUESTION, "model": "other-name"}
    answers = [httpx.post(f"{server.url}/v2/rerank", json=body, headers=_FREE, timeout=60) for _ in range(8)]
    assert {answer.status_code for answer in answers} == {200}
    loaded = httpx.post(f"{server.url}/admin/models/tiny/load", headers=operator, timeout=60)
    assert loaded.status_code == 200, loaded.text
    assert _ask(server).status_code == 200


def test_a_hang_up_reaches_all_front_ends(server: Server) -> None:
    keys = server.log.parent / "keys.toml"
    keys.write_text(_KEYS.replace("free-secret", "new-secret"))
    server.process.send_signal(signal.SIGHUP)
    new = {"Authorization": "Bearer new-secret"}
    _until(lambda: all(_ask(server, new).status_code == 200 for _ in range(8)))
    assert all(_ask(server).status_code == 401 for _ in range(8))
    keys.write_text(_KEYS)
    server.process.send_signal(signal.SIGHUP)
    _until(lambda: all(_ask(server).status_code == 200 for _ in range(8)))


def test_a_front_end_that_is_killed_is_started_again(server: Server) -> None:
    before, (killed, other) = _answered(server), _fronts(server)
    keys = server.log.parent / "keys.toml"
    keys.write_text("no keys")
    killed.send_signal(signal.SIGKILL)
    # With what others still serve by, but nobody can start with any more.
    _until(lambda: '"status":2' in server.log.read_text())
    assert other.is_running()
    keys.write_text(_KEYS)
    # Connections that it would have had wait for the next one.
    assert all(_ask(server).status_code == 200 for _ in range(8))
    _until(lambda: len(_fronts(server)) == _FRONTS)
    assert other in _fronts(server)
    wait_until_ready(server)
    assert _answered(server) >= before + 8, "what it had counted is not lost"
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert any(line["message"].startswith("front-end process ended") for line in lines)


def test_without_the_process_of_the_engines_a_front_end_ends(tmp_path: Path) -> None:
    """The test is that process."""
    registry = write_registry(tmp_path, [{"name": "tiny", "path": TINY_BERT}])
    ours, theirs = socketpair()
    (listening,) = listen("127.0.0.1", 0)
    start = FrontStart(0, theirs.fileno(), (listening.fileno(),), {"registry": str(registry)}, speaks=False)
    with ours, listening, (tmp_path / "log").open("w") as log:
        with theirs:
            front = subprocess.Popen(
                [*FRONT_END, start.dumped()], pass_fds=(theirs.fileno(), listening.fileno()), stderr=log
            )
        told = b""
        while b'"up"' not in told:
            piece = ours.recv(1 << 16)
            assert piece, "it ended before"
            told += piece
        ours.close()
        assert front.wait(timeout=30) == 0
    assert "the process with the engines is gone" in (tmp_path / "log").read_text()


def test_no_request_is_lost_when_the_service_drains(server: Server) -> None:
    """The last test of this server."""
    before = server.log.read_text()
    statuses: list[int | str] = []
    stopping = threading.Event()

    def ask_on() -> None:
        """Each request over a connection of its own: one that is kept may be closed between two requests."""
        while True:
            try:
                statuses.append(_ask(server).status_code)
            except httpx.TransportError as error:
                # The port is closed.
                if stopping.is_set():
                    return
                statuses.append(repr(error))

    with ThreadPoolExecutor(4) as clients:
        running = [clients.submit(ask_on) for _ in range(4)]
        _until(lambda: len(statuses) > 20)
        stopping.set()
        server.process.send_signal(signal.SIGTERM)
        for one in running:
            one.result(timeout=60)
    assert server.process.wait(timeout=30) == 0
    assert set(statuses) == {200}
    lines = [json.loads(line) for line in server.log.read_text().removeprefix(before).splitlines()]
    assert {line["status"] for line in lines if line.get("path") == "/v2/rerank"} == {200}, "none was cut off"
