"""The real server on a real socket: clients that go away, signals, limits while bytes arrive, logs, large requests."""

import json
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from tests.registry_files import write_registry
from tests.servers import Server, rerankd_server, wait_until_ready

_WORDS = ("capital", "France", "Paris", "vaccine", "market", "symptoms", "Hamlet", "sorted", "Wien", "planes", "list")
# Canaries wait in the same queue; their pairs are short.
_CANARYS_TOKENS = 5000
_NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _text(rng: Random, words: int) -> str:
    return " ".join(rng.choices(_WORDS, k=words))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return write_registry(tmp_path_factory.mktemp("registry"), [{"name": "tiny", "path": tiny_model}])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, registry: Path) -> Iterator[Server]:
    """A server without a cache, so that every request is work."""
    with rerankd_server(
        tmp_path_factory.mktemp("server"),
        registry,
        RERANKD_CACHE_URL="none://",
        RERANKD_MAX_BODY_BYTES="16000000",
        RERANKD_LOG_LEVEL="DEBUG",
    ) as server:
        wait_until_ready(server)
        yield server


def _client(server: Server, **headers: str) -> httpx.Client:
    """Without reading the system's certificates, which takes longer than most requests."""
    return httpx.Client(base_url=server.url, timeout=120, verify=_NO_CERTIFICATES, headers=headers)


def _get(server: Server, path: str) -> httpx.Response:
    with _client(server) as client:
        return client.get(path)


def _metric(server: Server, name: str) -> float:
    text = _get(server, "/metrics").text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"{name}{{"))


def _until(true: Callable[[], bool], *, seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not true within {seconds} s"
        time.sleep(0.02)


def _rerank(server: Server, documents: list[str], **body: Any) -> httpx.Response:
    with _client(server) as client:
        return client.post("/rerank", json={"query": "capital", "documents": documents, **body})


def _scores(answer: httpx.Response) -> dict[int, float]:
    assert answer.status_code == 200, answer.text
    return {result["index"]: result["relevance_score"] for result in answer.json()["results"]}


def _long_request() -> bytes:
    """Some seconds of work for the slow model."""
    documents = [_text(Random(number), 100) for number in range(9000)]
    body = json.dumps({"query": "capital", "documents": documents}).encode()
    return b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def test_a_client_that_goes_away_in_the_middle_of_its_body_is_no_error_of_ours(server: Server) -> None:
    logged = server.log.stat().st_size
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n{")
        time.sleep(0.1)
    time.sleep(0.2)
    assert _scores(_rerank(server, ["Paris"]))
    assert b"ERROR" not in server.log.read_bytes()[logged:]


def _status_of(server: Server, request: bytes) -> int:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(request)
        return int(connection.recv(65536).split(b" ", 2)[1])


def test_a_body_is_limited_by_its_declared_length_before_it_is_sent(server: Server) -> None:
    head = b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Length: 16000001\r\n\r\n"
    assert _status_of(server, head) == 413


def test_a_body_of_unknown_length_is_limited_while_it_arrives(server: Server) -> None:
    chunk = b"186a0\r\n" + b"x" * 100_000 + b"\r\n"
    head = b"POST /rerank HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert _status_of(server, head + chunk * 161) == 413


@pytest.mark.parametrize(
    "request_",
    [
        b"nonsense\r\n\r\n",
        b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /rerank HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_what_is_not_http_is_rejected_and_harms_no_other_client(server: Server, request_: bytes) -> None:
    assert _status_of(server, request_) in {400, 404}
    assert _scores(_rerank(server, ["Paris"]))


def test_a_connection_is_kept_after_an_error(server: Server) -> None:
    with _client(server) as client:
        for content, status in ((b"{", 400), (b'{"query": "q", "documents": ["a"]}', 200)) * 3:
            assert client.post("/rerank", content=content).status_code == status


def test_many_clients_of_all_sizes_get_the_scores_that_each_would_get_alone(server: Server) -> None:
    rng = Random(7)
    pool = [_text(rng, rng.randrange(1, 120)) for _ in range(60)]
    alone = {text: _scores(_rerank(server, [text]))[0] for text in pool}

    def client(seed: int) -> int:
        own = Random(seed)
        checked = 0
        for _ in range(2):
            texts = own.choices(pool, k=own.choice([1, 2, 5, 20, 60]))
            for index, score in _scores(_rerank(server, texts)).items():
                assert score == pytest.approx(alone[texts[index]], abs=1e-5)
                checked += 1
        return checked

    with ThreadPoolExecutor(64) as clients:
        assert sum(clients.map(client, range(64))) > 64


@pytest.mark.slow
def test_ten_thousand_documents_are_answered_while_others_are_served(server: Server) -> None:
    rng = Random(1)
    documents = [_text(rng, 60) for _ in range(10_000)]
    stalls: list[float] = []
    stop = threading.Event()

    def ask_health() -> None:
        with _client(server) as client:
            while not stop.wait(0.005):
                started = time.perf_counter()
                assert client.get("/health").status_code == 200
                stalls.append(time.perf_counter() - started)

    asking = threading.Thread(target=ask_health)
    asking.start()
    answer = _rerank(server, documents, top_n=10)
    stop.set()
    asking.join()
    assert len(_scores(answer)) == 10
    # Some hundredths of a second on an idle machine (docs/benchmarks.md); the one that runs this may be busy.
    assert max(stalls) < 2.0, "the event loop was blocked"


def test_one_document_too_many_is_refused(server: Server) -> None:
    assert _rerank(server, ["a"] * 10_001).status_code == 413


@pytest.fixture
def slow_registry(tmp_path: Path, tiny_model: Path) -> Path:
    """One pair a pass and one pass at a time, so that thousands of documents take seconds on any machine."""
    return write_registry(tmp_path, [{"name": "slow", "path": tiny_model, "workers": 1, "batch_pairs": 1}])


def test_a_client_that_goes_away_takes_its_work_along(tmp_path: Path, slow_registry: Path) -> None:
    with rerankd_server(tmp_path, slow_registry) as server:
        wait_until_ready(server)
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(_long_request())
            _until(lambda: _metric(server, "rerank_queue_tokens") > _CANARYS_TOKENS)
        _until(lambda: _metric(server, "rerank_cancelled_tokens_total") > 0)
        assert _metric(server, "rerank_queue_tokens") == 0
        assert 'status="499"' in _get(server, "/metrics").text
        assert _scores(_rerank(server, ["Paris"]))


@pytest.mark.timed
def test_sigterm_finishes_what_runs_and_turns_readiness_false(tmp_path: Path, slow_registry: Path) -> None:
    key = "hunter2-key"
    with (
        rerankd_server(tmp_path, slow_registry, RERANKD_API_KEYS=key, RERANKD_SHUTDOWN_DELAY_S="1.0") as server,
        _client(server, Authorization=f"Bearer {key}") as client,
        ThreadPoolExecutor(1) as pool,
    ):
        wait_until_ready(server)
        body = {"query": "capital", "documents": [_text(Random(number), 100) for number in range(3000)]}
        running = pool.submit(client.post, "/rerank", json=body)
        _until(lambda: _metric(server, "rerank_queue_tokens") > _CANARYS_TOKENS)
        server.process.send_signal(signal.SIGTERM)
        _until(lambda: _get(server, "/ready").status_code == 503, seconds=0.9)
        draining = _get(server, "/ready")
        assert (draining.json()["status"], draining.headers["Connection"]) == ("draining", "close")
        assert len(_scores(running.result(timeout=60))) == 3000
        assert server.process.wait(timeout=20) == 0
    assert key not in server.log.read_text()


def test_a_request_that_outlasts_the_drain_is_told_to_go_elsewhere(tmp_path: Path, slow_registry: Path) -> None:
    with (
        rerankd_server(tmp_path, slow_registry, RERANKD_SHUTDOWN_TIMEOUT_S="0") as server,
        _client(server) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        wait_until_ready(server)
        body = {"query": "capital", "documents": [_text(Random(number), 100) for number in range(9000)]}
        running = pool.submit(client.post, "/rerank", json=body)
        _until(lambda: _metric(server, "rerank_queue_tokens") > _CANARYS_TOKENS)
        server.process.send_signal(signal.SIGTERM)
        answer = running.result(timeout=60)
        assert answer.status_code == 503
        assert answer.json()["error_type"] == "unavailable"
        assert int(answer.headers["Retry-After"]) >= 1
        assert server.process.wait(timeout=20) == 0
    assert "Traceback" not in server.log.read_text()


def test_the_log_is_json_with_request_ids_and_without_any_text(server: Server) -> None:
    secrets = ["zanzibar", "quicksilver", "xylophone"]
    query, document, other = secrets
    bodies: list[dict[str, Any]] = [
        {"query": f"query {query}", "documents": [f"document {document}"]},
        {"query": query, "documents": [document, 5]},
        {"query": query, "documents": [{"title": document}], "rank_fields": [other]},
        {"query": query * 20_000, "documents": [document]},
        {"query": query, "documents": [document], "top_n": other},
    ]
    with _client(server, **{"X-Request-ID": "find-me"}) as client:
        statuses = [client.post("/v2/rerank", json=body).status_code for body in bodies]
        statuses.append(client.post("/rerank", content=query.encode() + b"\xff").status_code)
    assert statuses == [200, 400, 400, 413, 400, 400]
    _until(lambda: server.log.read_text().count('"request_id":"find-me"') >= len(statuses))
    log = server.log.read_text()
    for secret in secrets:
        assert secret not in log
    lines = [json.loads(line) for line in log.splitlines()]
    found = [line for line in lines if line.get("request_id") == "find-me" and line["message"] == "request"]
    assert [line["status"] for line in found] == statuses
    assert all(line["path"] in {"/v2/rerank", "/rerank"} and line["duration_ms"] >= 0 for line in found)
