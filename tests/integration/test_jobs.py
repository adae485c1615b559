"""Jobs through a real service and OpenAI's own client, from the upload to the results, whatever dies meanwhile."""

import io
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types import Batch

from loadtest.servers import rerankd_at
from tests.registry_files import write_registry
from tests.servers import Server, free_port, redis_server, rerankd_server, wait_until_ready

# The client's types know OpenAI's paths alone.
_OURS: Any = {"endpoint": "/v1/rerank", "completion_window": "24h"}
_KEYS = """
[[key]]
name = "one"
key = "first-key"
[[key]]
name = "two"
key = "second-key"
"""


def _line(number: int, **body: Any) -> str:
    question = {"query": f"question {number}", "documents": [f"answer {number}", "water is wet", "the sea is deep"]}
    line = {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/rerank", "body": {**question, **body}}
    return json.dumps(line)


def _file(lines: Sequence[str]) -> io.BytesIO:
    file = io.BytesIO("\n".join(lines).encode())
    file.name = "requests.jsonl"
    return file


def _until(happened: Callable[[], bool], *, within_s: float = 150.0) -> None:
    ends = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < ends, f"did not happen within {within_s} s"
        time.sleep(0.05)


def _ended(client: OpenAI, batch: Batch) -> Batch:
    last = batch

    def has_ended() -> bool:
        nonlocal last
        last = client.batches.retrieve(batch.id)
        return last.status in {"completed", "failed", "expired", "cancelled"}

    _until(has_ended)
    return last


def _results(client: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def _client(server: Server, key: str = "first-key") -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def _begin(client: OpenAI, lines: Sequence[str]) -> Batch:
    file = client.files.create(file=_file(lines), purpose="batch")
    return client.batches.create(input_file_id=file.id, **_OURS)


def _completed(client: OpenAI, batch: Batch) -> int:
    counts = client.batches.retrieve(batch.id).request_counts
    return counts.completed if counts else 0


@pytest.fixture(scope="module")
def registry(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_registry(tmp_path_factory.mktemp("registry"), [{"name": "tiny", "path": tiny_model}])


@pytest.fixture(scope="module")
def server(registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("jobs")
    keys = folder / "keys.toml"
    keys.write_text(_KEYS, encoding="utf-8")
    keys.chmod(0o600)
    settings = {"RERANKD_API_KEYS_FILE": str(keys), "RERANKD_JOBS_FOLDER": str(folder / "kept")}
    with rerankd_server(folder, registry, **settings) as running:
        wait_until_ready(running)
        yield running


def test_a_batch_from_the_upload_to_its_results(server: Server) -> None:
    client = _client(server)
    lines = [_line(0), "", _line(1, top_n=1), _line(2, documents=[]), _line(3, model="nobody")]
    file = client.files.create(file=_file(lines), purpose="batch")
    assert (file.filename, file.purpose, file.bytes) == ("requests.jsonl", "batch", len("\n".join(lines)))
    batch = client.batches.create(input_file_id=file.id, metadata={"run": "7"}, **_OURS)
    done = _ended(client, batch)
    assert (done.status, done.metadata, done.endpoint) == ("completed", {"run": "7"}, "/v1/rerank")
    assert done.request_counts is not None
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (4, 2, 2)
    first, second = _results(client, done.output_file_id)
    assert (first["custom_id"], second["custom_id"]) == ("line-0", "line-1")
    asked = json.loads(lines[0])["body"]
    alone = httpx.post(f"{server.url}/v1/rerank", json=asked, headers={"Api-Key": "first-key"}, timeout=30).json()
    assert first["response"]["status_code"] == 200
    assert first["response"]["body"]["results"] == alone["results"]
    assert len(second["response"]["body"]["results"]) == 1
    failed = _results(client, done.error_file_id)
    assert [(one["custom_id"], one["response"]["status_code"]) for one in failed] == [("line-2", 400), ("line-3", 404)]
    assert failed[1]["response"]["body"]["error_type"] == "model_not_found"
    metrics = httpx.get(f"{server.url}/metrics", timeout=20).text
    assert 'rerank_jobs_total{status="completed"}' in metrics
    assert 'rerank_job_lines_total{model="tiny",status="200"}' in metrics


def test_files_and_batches_are_listed_in_pages_and_deleted(server: Server) -> None:
    client = _client(server)
    made = [_ended(client, _begin(client, [_line(number)])) for number in range(3)]
    listed = list(client.batches.list(limit=2))
    ids = [batch.id for batch in reversed(made)]
    assert [batch.id for batch in listed if batch.id in ids] == ids, "the newest first"
    outputs = {file.id for file in client.files.list(purpose="batch_output", limit=1)}
    assert {batch.output_file_id for batch in made} <= outputs
    output = made[0].output_file_id
    assert output is not None
    assert client.files.delete(output).deleted
    assert client.batches.retrieve(made[0].id).output_file_id is None
    with pytest.raises(openai.NotFoundError):
        client.files.content(output)
    assert client.files.delete(made[0].input_file_id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made[0].input_file_id)


def test_a_key_sees_nothing_of_anothers(server: Server) -> None:
    client, other = _client(server), _client(server, "second-key")
    batch = _ended(client, _begin(client, [_line(1)]))
    assert batch.output_file_id is not None
    assert other.batches.list().data == []
    assert other.files.list().data == []
    for ask in (
        lambda: other.batches.retrieve(batch.id),
        lambda: other.batches.cancel(batch.id),
        lambda: other.files.retrieve(batch.input_file_id),
        lambda: other.files.content(batch.output_file_id or ""),
        lambda: other.files.delete(batch.input_file_id),
        lambda: other.batches.create(input_file_id=batch.input_file_id, **_OURS),
    ):
        with pytest.raises(openai.NotFoundError):
            ask()
    with pytest.raises(openai.AuthenticationError):
        _client(server, "wrong").batches.list()


def test_a_file_with_mistakes_fails_with_all_of_them(server: Server) -> None:
    client = _client(server)
    other = json.dumps({"custom_id": "x", "method": "POST", "url": "/v2/rerank", "body": {}})
    done = _ended(client, _begin(client, [_line(1), "{", _line(1), other, "[]", '{"custom_id": 5}']))
    assert done.status == "failed"
    assert done.errors is not None
    assert [(one.line, one.code) for one in done.errors.data or []] == [
        (2, "invalid_json_line"),
        (3, "duplicate_custom_id"),
        (4, "mismatched_endpoint"),
        (5, "invalid_json_line"),
        (6, "invalid_custom_id"),
    ]
    assert (done.output_file_id, done.error_file_id) == (None, None)


def test_a_cancelled_batch_has_a_result_for_every_line(server: Server) -> None:
    client = _client(server)
    batch = _begin(client, [_line(number) for number in range(3000)])
    _until(lambda: _completed(client, batch) > 20)
    assert client.batches.cancel(batch.id).status == "cancelling"
    done = _ended(client, batch)
    assert done.status == "cancelled"
    answered, cancelled = _results(client, done.output_file_id), _results(client, done.error_file_id)
    assert {one["error"]["code"] for one in cancelled} == {"batch_cancelled"}
    assert 20 < len(answered) < 3000
    assert sorted(int(one["custom_id"][5:]) for one in [*answered, *cancelled]) == [*range(3000)]


def test_after_kill_9_a_batch_goes_on_and_every_line_is_there_once(registry: Path, tmp_path: Path) -> None:
    port, settings = free_port(), {"RERANKD_JOBS_FOLDER": str(tmp_path / "kept"), "RERANKD_CACHE_URL": "none://"}
    lines = 1500
    with ExitStack() as stack:
        server = stack.enter_context(rerankd_at(port, tmp_path, registry, settings))
        client = _client(server)
        wait_until_ready(server)
        batch = _begin(client, [_line(number) for number in range(lines)])
        _until(lambda: _completed(client, batch) > 20)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(timeout=30)
        client = _client(stack.enter_context(rerankd_at(port, tmp_path, registry, settings)))
        done = _ended(client, batch)
        answered = _results(client, done.output_file_id)
    assert done.status == "completed"
    assert [int(one["custom_id"][5:]) for one in answered] == [*range(lines)]


@pytest.mark.redis
def test_another_replica_goes_on_with_the_batch_of_one_that_died(registry: Path, tmp_path: Path) -> None:
    lines = 1500
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server(tmp_path))
        settings = {"RERANKD_JOBS_URL": f"redis://127.0.0.1:{redis.port}/3", "RERANKD_CACHE_URL": "none://"}
        replicas = [stack.enter_context(rerankd_server(tmp_path, registry, **settings)) for _ in range(2)]
        for replica in replicas:
            wait_until_ready(replica)
        clients = [_client(replica) for replica in replicas]
        batch = _begin(clients[0], [_line(number) for number in range(lines)])
        _until(lambda: _completed(clients[1], batch) > 20)
        working = [
            "rerank_jobs_running 1.0" in httpx.get(f"{replica.url}/metrics", timeout=20).text for replica in replicas
        ]
        assert sorted(working) == [False, True]
        dead = working.index(True)
        replicas[dead].process.send_signal(signal.SIGKILL)
        client = clients[1 - dead]
        done = _ended(client, batch)
        answered = _results(client, done.output_file_id)
    assert done.status == "completed"
    assert [int(one["custom_id"][5:]) for one in answered] == [*range(lines)]
