"""What a run leaves behind in its log and its metrics, at the most talkative level: never a text, never a key."""

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from rerankd.api.dialects import DIALECTS
from tests.api.conftest import address_of
from tests.registry_files import write_registry
from tests.servers import Server, rerankd_server, wait_until_ready

# Every text and every key that the test sends contains it.
_MARK = "zanzibar"
_KEY = f"{_MARK}-environment"
_FILE_KEY = f"{_MARK}-file"
_CACHE_PASSWORD = f"{_MARK}-password"
_AUTHORIZED = {"Authorization": f"Bearer {_KEY}"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "keys.toml").write_text(f'[[key]]\nname = "file"\nkey = "{_FILE_KEY}"\n', encoding="utf-8")
    with rerankd_server(
        folder,
        write_registry(folder, [{"name": "tiny", "path": tiny_model}]),
        RERANKD_API_KEYS=_KEY,
        RERANKD_API_KEYS_FILE=str(folder / "keys.toml"),
        # nothing listens there: every look-up fails and is logged
        RERANKD_CACHE_URL=f"redis://user:{_CACHE_PASSWORD}@127.0.0.1:1/0",
        RERANKD_LOG_LEVEL="DEBUG",
    ) as server:
        wait_until_ready(server)
        yield server


def _marked(part: Any) -> Any:
    """JSON with the mark in every text; a single word is an option or a name."""
    if isinstance(part, dict):
        return {name: _marked(value) for name, value in part.items()}
    if isinstance(part, list):
        return [_marked(item) for item in part]
    return f"{part} {_MARK}" if isinstance(part, str) and " " in part else part


def _requests() -> Iterator[tuple[str, bytes, dict[str, str]]]:
    """Path, body, headers: what every dialect takes, what it refuses, and what is no request at all."""
    for dialect in DIALECTS:
        for path in dialect.paths:
            address = address_of(path)
            yield address, json.dumps(_marked(dialect.example) | {"model": "tiny"}).encode(), _AUTHORIZED
            yield address, json.dumps(_marked(dialect.example) | {"model": _MARK}).encode(), _AUTHORIZED
            yield address, json.dumps({name: {_MARK: _MARK} for name in dialect.example}).encode(), _AUTHORIZED
    yield "/rerank", f'{{"query": "{_MARK}'.encode() + b"\xff", _AUTHORIZED
    yield "/rerank", f'["{_MARK}"]'.encode(), _AUTHORIZED
    yield f"/rerank?query={_MARK}", f'{{"query": "{_MARK}", "documents": []}}'.encode(), _AUTHORIZED
    yield "/rerank", json.dumps({"query": _MARK * 10_000, "documents": [_MARK]}).encode(), _AUTHORIZED
    for headers in (
        {"Authorization": f"Bearer {_MARK}-wrong"},
        {"Authorization": f"Basic {_MARK}"},
        {"Api-Key": f"{_MARK}-wrong"},
        {"Api-Key": _FILE_KEY},
        {"Cookie": f"key={_MARK}"},
        {**_AUTHORIZED, "X-Request-Deadline-Ms": _MARK},
        {**_AUTHORIZED, "Content-Encoding": _MARK},
        {**_AUTHORIZED, "X-Request-ID": f"<{_MARK}>"},
    ):
        yield "/v2/rerank", json.dumps({"query": _MARK, "documents": [_MARK]}).encode(), headers


def test_no_text_and_no_key_is_left_behind(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        statuses = [client.post(path, content=body, headers=headers).status_code for path, body, headers in _requests()]
        metrics = client.get("/metrics").text
    assert set(statuses) == {200, 400, 401, 404, 413}
    assert statuses.count(200) > len(DIALECTS)
    log = server.log.read_text()
    assert log.count('"message":"request"') >= len(statuses)
    assert "cache" in log.lower(), "its failures were logged, without the password in its address"
    for left in (log, metrics):
        assert _MARK not in left.lower()
        assert sha256(_KEY.encode()).hexdigest() not in left
