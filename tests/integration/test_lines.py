"""Answers in lines from a real server whose model is an endpoint that waits until a test lets it go on."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from threading import Semaphore
from time import sleep
from typing import Any

import httpx
import pytest

from tests.endpoint_server import Script, completion, serving_endpoint
from tests.registry_files import write_registry
from tests.servers import Server, rerankd_server, wait_until_ready

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

LINES = {"Accept": "application/x-ndjson"}
# In windows of 4, from the back: three passes.
DOCUMENTS = [f"number {number}" for number in (3, 7, 1, 5, 0, 6, 2, 4)]
FIRST_LINE = {"settled": [{"index": 6, "rank": 7}, {"index": 4, "rank": 8}]}


class Endpoint:
    """Knows which number is larger. Of each query it answers as many passes as are released, or nonsense."""

    def __init__(self) -> None:
        self.script = Script([], respond=self._respond)
        self.passes = defaultdict[str, Semaphore](lambda: Semaphore(0))
        self.broken = False

    @property
    def asked(self) -> int:
        return len(self.script.asked)

    def _respond(self, body: dict[str, Any]) -> Any:
        prompt = "\n".join(message["content"] for message in body["messages"])
        query = next(query for query in self.passes if f"Search Query: {query}." in prompt)
        assert self.passes[query].acquire(timeout=60)
        if self.broken:
            return b"nonsense"
        shown = re.findall(r"\[(\d+)\] number (\d+)", prompt)
        ranked = sorted(shown, key=lambda one: -int(one[1]))
        return completion(" > ".join(f"[{label}]" for label, _ in ranked))


@pytest.fixture(scope="module")
def endpoint() -> Endpoint:
    return Endpoint()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, endpoint: Endpoint) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("lines")
    with serving_endpoint(endpoint.script) as url:
        model = {
            "name": "chat",
            "path": ".",
            "scorer": "generative",
            "engine": "endpoint",
            "options": {"template": "rankgpt", "window": 4, "stride": 2},
            "engine_options": {"url": url, "model": "m", "retries": 0},
        }
        with rerankd_server(folder, write_registry(folder, [model])) as server:
            wait_until_ready(server)
            yield server


def body(query: str, **fields: Any) -> dict[str, Any]:
    return {"query": query, "documents": DOCUMENTS, "windows": {"schedule": "sliding"}, **fields}


def counted(server: Server, status: int) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    found = re.findall(rf'rerank_requests_total{{.*status="{status}".*}} (\S+)', text)
    return sum(map(float, found))


@pytest.mark.parametrize("path", ["/v2/rerank", "/rerank"])
def test_the_first_line_comes_before_the_last_pass(server: Server, endpoint: Endpoint, path: str) -> None:
    asked = endpoint.asked
    headers = LINES | {"X-Request-ID": "lines"}
    endpoint.passes[path].release()
    with httpx.stream("POST", f"{server.url}{path}", json=body(path), headers=headers, timeout=60) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/x-ndjson"
        assert answer.headers["x-request-id"] == "lines"
        lines = answer.iter_lines()
        assert json.loads(next(lines)) == FIRST_LINE
        assert endpoint.asked - asked <= 2, "the third pass has not begun"
        endpoint.passes[path].release(2)
        *settled, last = lines
    plain = httpx.post(f"{server.url}{path}", json=body(path), headers={"X-Request-ID": "lines"}, timeout=60)
    assert plain.headers["content-type"] == "application/json"
    assert last == plain.text
    order = [result["index"] for result in plain.json()["results"]]
    assert order[:2] == [1, 5]
    places = [place for line in settled for place in json.loads(line)["settled"]]
    assert [order[place["rank"] - 1] for place in places] == [place["index"] for place in places]
    assert endpoint.asked - asked == 3, "the answer is cached as always"
    again = httpx.post(f"{server.url}{path}", json=body(path), headers=headers, timeout=60)
    assert again.text == plain.text + "\n", "an answer that is known is one line"
    assert again.headers["content-type"] == "application/x-ndjson"


def test_the_work_of_a_client_that_left_after_a_line_is_cancelled(server: Server, endpoint: Endpoint) -> None:
    asked = endpoint.asked
    endpoint.passes["gone"].release()
    with httpx.stream("POST", f"{server.url}/v2/rerank", json=body("gone"), headers=LINES, timeout=60) as answer:
        assert json.loads(next(answer.iter_lines())) == FIRST_LINE
    while not counted(server, 499):
        sleep(0.02)
    assert endpoint.asked - asked <= 2
    endpoint.passes["gone"].release()  # for the second pass, of which nobody reads the answer


def test_what_fails_after_a_line_is_the_last_line(server: Server, endpoint: Endpoint) -> None:
    endpoint.passes["broken"].release()
    with httpx.stream("POST", f"{server.url}/v2/rerank", json=body("broken"), headers=LINES, timeout=60) as answer:
        lines = answer.iter_lines()
        assert json.loads(next(lines)) == FIRST_LINE
        endpoint.broken = True
        endpoint.passes["broken"].release()
        (last,) = lines
    assert answer.status_code == 200, "it was sent with the first line"
    assert json.loads(last)["error_type"] == "remote_failed"
    assert counted(server, 502) == 1
    logged = [json.loads(line) for line in server.log.read_text().splitlines() if '"status":502' in line]
    assert [line["path"] for line in logged] == ["/v2/rerank"]
    endpoint.passes["early"].release()
    early = httpx.post(f"{server.url}/v2/rerank", json=body("early"), headers=LINES, timeout=60)
    assert early.status_code == 502, "nothing was sent before"
    assert early.json()["error_type"] == "remote_failed"
