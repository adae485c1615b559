"""A server that will not settle after a load is started again; one that does is left alone."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from loadtest.contestants import Contestant, Weights
from loadtest.standing import Standing

# Answers /health at once; after anything else it computes for ever, as a server with a backlog does.
_PROGRAM = """
import sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer

def compute():
    while True:
        pass

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path != "/health":
            threading.Thread(target=compute, daemon=True).start()
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def standing(tmp_path: Path) -> Iterator[Standing]:
    def command(python: str, _: Weights, port: int) -> list[str]:
        return [python, "-c", _PROGRAM, str(port)]

    weights = Weights(tmp_path, tmp_path, tmp_path, tmp_path)
    server = Standing(Contestant(name="a server", precision="float32", command=command), weights, tmp_path)
    server.start()
    yield server
    server.stop()


def test_a_server_that_is_idle_goes_on(standing: Standing) -> None:
    before = standing.target
    standing.settle(within_s=30)
    assert standing.target == before
    assert standing.start_s > 0


def test_a_server_that_goes_on_computing_is_started_anew(standing: Standing) -> None:
    before = standing.target
    httpx.get(f"http://{before.host}:{before.port}/work")
    standing.settle(within_s=1)
    assert standing.target != before
    assert httpx.get(f"http://{before.host}:{standing.target.port}/health").status_code == 200
