"""What the log says of requests, through a real server: who asked what of which model, and nothing that a caller can
forge or blow up.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtest.servers import Server, free_port, wait
from tests.registry_files import write_registry
from tests.servers import rerankd_server, wait_until_ready

_KEYS = """
[[key]]
name = "frontend"
key = "first-secret"
[[key]]
name = "à la carte"
key = "voilà"
"""
_BODY = {"query": "q", "documents": ["a", "b", "c"]}
_ASKING = {"Authorization": "Bearer first-secret"}
# What nothing in a line may be: terminals obey these.
_OBEYED = {chr(code) for code in (*range(32), *range(127, 160))}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    keys = folder / "keys.toml"
    keys.write_text(_KEYS, encoding="utf-8")
    registry = write_registry(folder, [{"name": "tiny", "path": tiny_model, "aliases": ["small"]}])
    with rerankd_server(
        folder, registry, RERANKD_API_KEYS_FILE=str(keys), RERANKD_TRUSTED_PROXIES="127.0.0.0/8"
    ) as server:
        wait_until_ready(server)
        yield server


def _line(server: Server, request_id: str) -> dict[str, Any]:
    """The line of a request; it is written by a thread, so maybe not yet."""
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        lines = (json.loads(line) for line in server.log.read_text(encoding="utf-8").splitlines())
        found[:] = [line for line in lines if line.get("request_id") == request_id]
        return bool(found)

    wait(server, is_there, timeout_s=10)
    (line,) = found
    return line


def _ask(server: Server, name: str, body: object = _BODY, path: str = "/v2/rerank", **headers: str) -> dict[str, Any]:
    given = {"X-Request-ID": name, **_ASKING, **headers}
    httpx.post(f"{server.url}{path}", json=body, headers=given, timeout=30)
    return _line(server, name)


def test_a_line_names_the_key_the_path_and_the_model(server: Server) -> None:
    line = _ask(server, "whole", {**_BODY, "model": "small"})
    assert line.pop("duration_ms") > 0
    assert line.pop("bytes_out") > 100
    del line["time"]
    assert line == {
        "level": "INFO",
        "name": "rerankd.access",
        "message": "request",
        "method": "POST",
        "path": "/v2/rerank",
        "status": 200,
        "bytes_in": len(json.dumps({**_BODY, "model": "small"}, separators=(",", ":"))),
        "client": "127.0.0.1",
        "key": "frontend",
        "dialect": "cohere-v2",
        "model": "tiny",
        "documents": 3,
        "request_id": "whole",
    }


def test_what_is_not_known_of_a_refused_request_is_left_out(server: Server) -> None:
    assert not {"key", "model", "documents"} & set(_ask(server, "stranger", Authorization="Bearer first-secre"))
    line = _ask(server, "no-model", {**_BODY, "model": "zanzibar"})
    assert (line["status"], line["key"], line["documents"]) == (404, "frontend", 3)
    assert "zanzibar" not in json.dumps(line)
    assert _ask(server, "no-json", "x")["status"] == 400


def test_keyed_pages_name_the_key_too(server: Server) -> None:
    httpx.get(f"{server.url}/v1/models", headers={"X-Request-ID": "list", **_ASKING})
    line = _line(server, "list")
    assert (line["method"], line["path"], line["key"], line["status"]) == ("GET", "/v1/models", "frontend", 200)


def test_a_trusted_proxy_names_the_client(server: Server) -> None:
    line = _ask(server, "proxied", **{"X-Forwarded-For": "10.9.9.9, 203.0.113.7"})
    assert line["client"] == "203.0.113.7"


@pytest.mark.parametrize(
    ("hops", "client"),
    [
        ("junk", "127.0.0.1"),
        ("203.0.113.7, junk", "127.0.0.1"),
        ("junk, 127.0.0.9", "127.0.0.9"),
        ("127.0.0.8, 127.0.0.9", "127.0.0.8"),
        ("203.0.113.7:4711", "203.0.113.7"),
        ("[2001:DB8::1]:80, 127.0.0.9", "2001:db8::1"),
        ("", "127.0.0.1"),
        ("203.0.113.7, unknown, 127.0.0.9", "127.0.0.9"),
    ],
)
def test_only_addresses_are_believed(server: Server, hops: str, client: str) -> None:
    assert _ask(server, str(abs(hash(hops))), **{"X-Forwarded-For": hops})["client"] == client


@pytest.mark.parametrize(
    ("name", "path", "forwarded"),
    [
        ("long", "/" + "x" * 5_000, "y" * 5_000),
        ("escapes", "/%1b%5b2J%9b%0d%0a%7f%c2%9b", "1.2.3.4 \tx"),
        ("json", '/"},{"level":"ERROR"', '"}{"'),
        ("lines", "/%0a%7b%7d%e2%80%a8", "a"),
    ],
)
def test_nothing_that_a_caller_chooses_breaks_or_fills_the_log(
    server: Server, name: str, path: str, forwarded: str
) -> None:
    line = _ask(server, name, path=path, **{"X-Forwarded-For": forwarded})
    assert line["status"] == 404
    assert len(line["path"]) <= 900
    assert len(line["client"]) <= 300
    assert not _OBEYED & set(line["path"] + line["client"])


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_key_that_ends_in_a_letter_beyond_ascii_is_known(server: Server, encoding: str) -> None:
    body = json.dumps(_BODY).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(
            b"POST /v2/rerank HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-request-id: accent-%b\r\n"
            b"authorization: Bearer %b\r\ncontent-length: %d\r\n\r\n%b"
            % (encoding.encode(), "voilà".encode(encoding), len(body), body)
        )
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 200")
    assert _line(server, f"accent-{encoding}")["key"] == "à la carte"


def test_the_first_lines_say_where_what_is_served(server: Server) -> None:
    lines = [json.loads(line) for line in server.log.read_text(encoding="utf-8").splitlines()]
    (summary,) = [line["message"] for line in lines if " listens on " in line["message"]]
    assert f"playground at {server.url}/, API reference at {server.url}/docs, an API key is needed" in summary
    assert (
        "tiny (cross-encoder, onnx/cpu/model.onnx, without our own kernels: the graph has no int8 encoder layer"
        in summary
    )
    assert not [line for line in lines if line.get("status") == 503], "probes of a service that starts are no news"
    assert not [line for line in lines if line["name"] == "rerankd.api.announcing" and line["level"] == "WARNING"]


def test_a_proxy_that_is_not_trusted_cannot_name_the_client(tmp_path: Path, tiny_model: Path) -> None:
    registry = write_registry(tmp_path, [{"name": "tiny", "path": tiny_model}])
    environment = {"FORWARDED_ALLOW_IPS": "*", "RERANKD_HOST": "0.0.0.0"}
    with rerankd_server(tmp_path, registry, **environment) as server:
        assert _ask(server, "forged", **{"X-Forwarded-For": "203.0.113.7"})["client"] == "127.0.0.1"
        lines = [json.loads(line) for line in server.log.read_text(encoding="utf-8").splitlines()]
    (warning,) = [line for line in lines if line["name"] == "rerankd.api.announcing" and line["level"] == "WARNING"]
    assert warning["message"].startswith(
        f"no API keys are set, and other machines can reach 0.0.0.0 port {server.port}"
    )


def test_a_log_that_is_not_read_delays_neither_requests_nor_the_shutdown(tmp_path: Path, tiny_model: Path) -> None:
    registry = write_registry(tmp_path, [{"name": "tiny", "path": tiny_model}])
    port = free_port()
    command = [sys.executable, "-m", "rerankd", "serve", "--port", str(port), "--registry", str(registry)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "RERANKD_LOG_LEVEL": "DEBUG"}) as process:
        try:
            server = Server(port, process, tmp_path / "nothing")
            server.log.touch()
            wait(server, lambda: httpx.get(f"{server.url}/health", timeout=5).status_code == 200)
            with httpx.Client(base_url=server.url, timeout=10) as client:
                # a pipe holds 64 KiB: a third of these lines
                statuses = {client.get(f"/{number:0200}").status_code for number in range(500)}
            assert statuses == {404}
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()
