"""Servers that are not ours: they speak Cohere's rerank API and nothing else, or not even that."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rerankd.domain import RerankRequest, ScoreOptions
from rerankd.errors import ConfigError
from rerankd.tools.evaluation.served import Served
from rerankd.tools.evaluation.targets import Answer

_REQUEST = RerankRequest(query="q", documents=["a", "b"], options=ScoreOptions(max_tokens_per_doc=7))
_RESULTS = {"results": [{"index": 1, "relevance_score": 0.75}, {"index": 0, "relevance_score": 0.5}]}

Reply = tuple[int, Any]
Start = Callable[[Sequence[Reply]], "ForeignServer"]


class ForeignServer(ThreadingHTTPServer):
    """Answers POST /v2/rerank with one reply after another, the last one for ever, and 404 to everything else."""

    daemon_threads = True

    def __init__(self, replies: Sequence[Reply]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies = list(replies)
        self.bodies: list[Any] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: ForeignServer

    def do_GET(self) -> None:
        self._send(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        replies = self.server.replies
        self._send(*(replies.pop(0) if len(replies) > 1 else replies[0]))

    def log_message(self, *_: object) -> None:
        pass

    def _send(self, status: int, content: Any) -> None:
        body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def start() -> Iterator[Start]:
    running: list[ForeignServer] = []

    def start_one(replies: Sequence[Reply]) -> ForeignServer:
        server = ForeignServer(replies)
        running.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    yield start_one
    for server in running:
        server.shutdown()
        server.server_close()


async def _ask(url: str) -> Answer:
    async with Served(url, api_key=None).opened() as ask:
        return await ask(_REQUEST)


async def test_a_foreign_server_is_asked_in_cohere_s_words(start: Start) -> None:
    server = start([(200, _RESULTS)])
    answer = await _ask(f"{server.url}/#some/model")
    assert (answer.order, answer.relevance_scores) == ([1, 0], [0.75, 0.5])
    assert answer.seconds > 0
    assert server.bodies == [{"query": "q", "documents": ["a", "b"], "model": "some/model", "max_tokens_per_doc": 7}]


async def test_a_server_that_says_nothing_about_itself_is_known_by_its_url(start: Start) -> None:
    server = start([(200, _RESULTS)])
    assert await Served(f"{server.url}#m", api_key=None).identity() == {"url": f"{server.url}#m", "model": {}}


async def test_a_busy_server_is_asked_again(start: Start) -> None:
    server = start([(429, {"message": "busy"}), (503, {"message": "loading"}), (200, _RESULTS)])
    assert (await _ask(server.url)).order == [1, 0]
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        ((429, {"message": "busy"}), "answered 429: busy"),
        ((500, "oh no"), "answered 500: oh no"),
        ((200, "hello"), "does not speak Cohere's rerank API: 'hello'"),
        ((200, [1]), "does not speak Cohere's rerank API"),
        ((200, {"results": _RESULTS["results"][:1]}), "ranked 1 of 2 documents"),
    ],
)
async def test_what_cannot_be_used_is_said(start: Start, reply: Reply, complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        await _ask(start([reply]).url)
    assert complaint in str(error.value)


@pytest.mark.parametrize("url", ["host:8000", "ftp://host", "http://", ""])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="not the URL of a server"):
        Served(url, api_key=None)
