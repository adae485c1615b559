"""A small hub: the part of the Hugging Face hub's protocol that downloading a model speaks, on a loopback port."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """`commits` maps a revision (a branch, a tag) to the commit that it means; every commit has the same files. With a
    `signature`, files come from a storage whose URLs carry it, as large ones do on the hub.
    """

    files: Mapping[str, bytes]
    commits: Mapping[str, str] = field(default_factory=lambda: {"main": "a" * 40})
    needs_token: str | None = None
    gated: bool = False
    signature: str | None = None
    storage_status: int = 200


@dataclass
class TinyHub:
    """`requests` remembers what was asked: method, path and the Authorization header."""

    url: str
    repositories: dict[str, Repository]
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    @property
    def storage(self) -> str:
        """Under another host's name: a client follows redirects to its own host in another way."""
        return f"{self.url.replace('127.0.0.1', 'localhost')}/storage"

    def fetched(self) -> set[str]:
        """The files whose content was sent."""
        paths = [path for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]
        return {path.split("/resolve/")[1].split("/", 1)[1] for path in paths}


@contextmanager
def tiny_hub(repositories: Mapping[str, Repository]) -> Iterator[TinyHub]:
    hub = TinyHub("", dict(repositories))

    class Handler(_Handler):
        state = hub

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: TinyHub

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that the base class gives it
        """Tests read `TinyHub.requests` instead."""

    def _answer(self, *, with_body: bool) -> None:
        # a revision may hold slashes, which are quoted
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        self.state.requests.append((self.command, "/".join(parts), self.headers.get("Authorization")))
        status, headers, body = self._stored(parts[1:]) if parts[0] == "storage" else self._route(parts)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _stored(self, parts: list[str]) -> tuple[int, dict[str, str], bytes]:
        repository = self.state.repositories["/".join(parts[:2])]
        return repository.storage_status, {}, repository.files["/".join(parts[2:])]

    def _route(self, parts: list[str]) -> tuple[int, dict[str, str], bytes]:
        api = parts[:2] == ["api", "models"]
        if api:
            parts = parts[2:]
        name, verb, revision, rest = "/".join(parts[:2]), parts[2], parts[3], "/".join(parts[4:])
        repository = self.state.repositories.get(name)
        if repository is None:
            return _refusal(401, "RepoNotFound")
        if repository.needs_token and self.headers.get("Authorization") != f"Bearer {repository.needs_token}":
            return _refusal(401, "GatedRepo" if repository.gated else "RepoNotFound")
        commit = revision if revision in repository.commits.values() else repository.commits.get(revision)
        if commit is None:
            return _refusal(404, "RevisionNotFound")
        if repository.gated and not repository.needs_token:
            return _refusal(403, "GatedRepo")
        if api:
            return _json(_info(name, commit, repository) if verb == "revision" else _tree(repository))
        signed = f"{self.state.storage}/{name}/{rest}?X-Amz-Signature={repository.signature}"
        return _file(repository.files[rest], commit, signed if repository.signature else None)


def _info(name: str, commit: str, repository: Repository) -> object:
    siblings = [{"rfilename": path} for path in repository.files]
    return {"id": name, "modelId": name, "sha": commit, "private": False, "tags": [], "siblings": siblings}


def _tree(repository: Repository) -> object:
    folders = {path.rsplit("/", 1)[0] for path in repository.files if "/" in path}
    return [
        *({"type": "directory", "oid": "0" * 40, "size": 0, "path": folder} for folder in folders),
        *(
            {"type": "file", "oid": _digest(content), "size": len(content), "path": path}
            for path, content in repository.files.items()
        ),
    ]


def _file(content: bytes, commit: str, signed: str | None) -> tuple[int, dict[str, str], bytes]:
    """The content, or where it lies."""
    if signed is None:
        return 200, {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}, content
    linked = {"X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": str(len(content))}
    return 302, {"Location": signed, "X-Repo-Commit": commit, **linked}, b""


def _digest(content: bytes) -> str:
    """As git names a file's content, which is the ETag of small files on the hub."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _json(content: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _refusal(status: int, code: str) -> tuple[int, dict[str, str], bytes]:
    return status, {"X-Error-Code": code, "X-Error-Message": code, "Content-Type": "application/json"}, b"{}"
