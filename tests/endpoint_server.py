"""A real HTTP server that speaks OpenAI's chat completions as far as it is told to."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Script:
    """What the server answers, one after another (the last for ever), or what `reply` makes of a request's messages, or
    `respond` of its whole body; and what it was asked.
    """

    answers: list[tuple[int, Any]]
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    seconds_per_byte: float = 0.0
    reply: Callable[[list[dict[str, str]]], str] | None = None
    respond: Callable[[dict[str, Any]], Any] | None = None


def _answer(script: Script, body: dict[str, Any]) -> tuple[int, Any]:
    if script.respond is not None:
        return 200, script.respond(body)
    if script.reply is not None:
        return 200, completion(script.reply(body["messages"]))
    return script.answers[min(len(script.asked), len(script.answers)) - 1]


@contextmanager
def serving_endpoint(script: Script) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            script.asked.append((self.path, body, dict(self.headers)))
            status, content = _answer(script, body)
            sent = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"content-length": str(len(sent)), **script.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if not script.seconds_per_byte:
                self.wfile.write(sent)
                return
            with suppress(ConnectionError):
                for byte in sent:
                    time.sleep(script.seconds_per_byte)
                    self.wfile.write(bytes([byte]))

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def completion(text: str | None) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}
