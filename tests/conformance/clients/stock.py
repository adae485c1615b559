"""HTTP clients that come with a language or a system, with their default settings, and no library above them.

A program of each reads lines of URL, key and body from standard input and prints status and answer; JSON is Python's.
"""

import atexit
import json
import subprocess
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from tests.conformance.protocol import Client, Ranked, Target

_FOLDER: Final = Path(__file__).resolve().parents[3] / ".clients" / "stock"
# (URL, key, body) -> status and answer
_Post = Callable[[str, str, bytes], tuple[int, bytes]]


class HttpError(Exception):
    """An answer that is not 200."""


class _Program:
    """A program that is started once and posts again and again, over connections that it keeps as it likes."""

    def __init__(self, *command: str) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, url: str, key: str, body: bytes) -> tuple[int, bytes]:
        if self._process is None:
            self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_FOLDER)
            atexit.register(self._process.kill)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{url}\t{key}\t".encode() + b64encode(body) + b"\n")
        self._process.stdin.flush()
        status, _, content = self._process.stdout.readline().partition(b"\t")
        return int(status), b64decode(content)


def _curl(*options: str) -> _Post:
    def post(url: str, key: str, body: bytes) -> tuple[int, bytes]:
        headers = ["--header", f"Authorization: Bearer {key}", "--header", "Content-Type: application/json"]
        command = ["curl", "--silent", "--show-error", *options, *headers, "--data-binary", "@-"]
        told = subprocess.run(
            [*command, "--write-out", "\n%{http_code}", url], input=body, capture_output=True, check=True
        )
        content, _, status = told.stdout.rpartition(b"\n")
        return int(status), content

    return post


def _client(name: str, post: _Post) -> Client:
    def rank(target: Target, query: str, documents: Sequence[Any], top_n: int | None, with_: bool) -> list[Ranked]:
        body = {"model": target.model, "query": query, "documents": documents, "return_documents": with_}
        if top_n is not None:
            body["top_n"] = top_n
        status, content = post(f"{target.url}/v2/rerank", target.key, json.dumps(body).encode())
        if status != 200:
            raise HttpError(f"{status}: {json.loads(content)['message']}")
        return [
            Ranked(result["index"], result["relevance_score"], result.get("document", {}).get("text"))
            for result in json.loads(content)["results"]
        ]

    return Client(name, rank, (HttpError,), "the system's")


CLIENTS = [
    _client("JDK HttpClient", _Program("java", "-XX:+UseSerialGC", "StockClient")),
    _client("Go net/http", _Program("./client")),
    _client("curl", _curl()),
    _client("curl --http2", _curl("--http2")),
]
