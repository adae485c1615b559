"""A real service and the signals that an operating system, a supervisor or an operator sends it."""

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.registry_files import write_registry
from tests.servers import Server, rerankd_server, wait_until_ready

_QUESTION = {"query": "capital of France", "documents": ["Paris is the capital of France.", "Water is wet."]}


def _write_keys(path: Path, *keys: str) -> None:
    path.write_text("".join(f'[[key]]\nname = "{key}-client"\nkey = "{key}"\n' for key in keys), encoding="utf-8")


def _status(server: Server, key: str, question: object = None) -> int:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{server.url}/rerank", json=question or _QUESTION, headers=headers, timeout=60).status_code


def _waiting_tokens(server: Server) -> float:
    lines = httpx.get(f"{server.url}/metrics", timeout=20).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("rerank_queue_tokens{"))


def _until(happened: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < ends, "did not happen within 20 s"
        time.sleep(0.02)


def test_a_hangup_reads_the_keys_again_and_touches_no_request(tmp_path: Path, tiny_model: Path) -> None:
    keys = tmp_path / "keys.toml"
    _write_keys(keys, "first")
    registry = write_registry(tmp_path, [{"name": "tiny", "path": tiny_model}])
    with (
        rerankd_server(tmp_path, registry, RERANKD_API_KEYS_FILE=str(keys), RERANKD_CACHE_URL="none://") as server,
        ThreadPoolExecutor(1) as pool,
    ):
        wait_until_ready(server)
        assert [_status(server, key) for key in ("first", "second")] == [200, 401]
        long = {"query": "capital", "documents": [f"{number} words about Paris" * 20 for number in range(2000)]}
        under_way = pool.submit(_status, server, "first", long)
        _until(lambda: _waiting_tokens(server) > 5_000)
        _write_keys(keys, "second")
        server.process.send_signal(signal.SIGHUP)
        _until(lambda: _status(server, "second") == 200)
        assert _status(server, "first") == 401
        assert under_way.result(timeout=60) == 200, "it was admitted with its key"

        keys.write_text("[[key]\n", encoding="utf-8")
        server.process.send_signal(signal.SIGHUP)
        _until(lambda: "reload of keys changed nothing" in server.log.read_text())
        assert [_status(server, key) for key in ("first", "second")] == [401, 200]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_that_means_no_stop_stops_nothing(tmp_path: Path, tiny_model: Path, number: signal.Signals) -> None:
    registry = write_registry(tmp_path, [{"name": "tiny", "path": tiny_model}])
    with rerankd_server(tmp_path, registry) as server:
        server.process.send_signal(number)
        wait_until_ready(server)
        server.process.send_signal(number)
        assert _status(server, "any") == 200
        assert server.process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_to_stop_ends_the_process_with_0(tmp_path: Path, tiny_model: Path, number: signal.Signals) -> None:
    registry = write_registry(tmp_path, [{"name": "tiny", "path": tiny_model}])
    with rerankd_server(tmp_path, registry) as server:
        server.process.send_signal(number)
        assert server.process.wait(timeout=30) == 0
