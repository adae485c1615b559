"""A real service whose inference threads are killed, one after another, while it answers."""

import signal
import time
from pathlib import Path

import httpx
import pytest

from rerankd.config.settings import SHIPPED_REGISTRY
from tests.servers import rerankd_server, wait_until_ready

pytestmark = pytest.mark.slow


def _body(number: int) -> dict[str, object]:
    return {"query": f"what is {number}", "documents": [f"{number} is a number", "it rains"]}


def test_killed_inference_threads_cost_no_answer_and_change_none(tmp_path: Path) -> None:
    settings = {"RERANKD_CACHE_URL": "none://", "RERANKD_DEBUG_FAULTS": "true", "RERANKD_STUCK_AFTER_S": "1"}
    with rerankd_server(tmp_path, SHIPPED_REGISTRY, **settings) as server, httpx.Client(timeout=60) as client:
        wait_until_ready(server)
        right = [client.post(f"{server.url}/v2/rerank", json=_body(number)).json()["results"] for number in range(20)]
        for number, results in enumerate(right):
            if number % 4 == 0:
                server.process.send_signal(signal.SIGUSR1)
                time.sleep(0.05)
            answer = client.post(f"{server.url}/v2/rerank", json=_body(number))
            assert answer.status_code == 200, answer.text
            scores = [(one["index"], pytest.approx(one["relevance_score"], abs=1e-3)) for one in results]
            assert [(one["index"], one["relevance_score"]) for one in answer.json()["results"]] == scores
        metrics = client.get(f"{server.url}/metrics").text
    failed = [float(line.split()[-1]) for line in metrics.splitlines() if line.startswith("rerank_failed_batches_tot")]
    assert sum(failed) >= 1, "no thread took a pass along: nothing was tested"
