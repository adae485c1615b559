"""The Locust users, by a short run of the real program where it is installed."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.registry_files import write_registry
from tests.servers import rerankd_server, wait_until_ready

_ROOT = Path(__file__).parents[2]


def test_locust_users_rank_documents_without_a_failure(tiny_model: Path, tmp_path: Path) -> None:
    program = shutil.which("locust")
    if program is None:
        pytest.skip("locust is not installed; it is no dependency of this project: pip install locust")
    registry = write_registry(
        tmp_path, [{"name": "t", "path": tiny_model, "engine": "onnx", "scorer": "cross-encoder"}]
    )
    with rerankd_server(tmp_path, registry, RERANKD_API_KEYS="k") as server:
        wait_until_ready(server)
        short = ["--headless", "--users", "2", "--spawn-rate", "2", "--run-time", "3s", "--json", "--only-summary"]
        command = [program, "-f", str(_ROOT / "loadtest" / "locustfile.py"), "--host", server.url, *short]
        ran = subprocess.run(
            [*command, "--documents", "2", "--api-key", "k"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT / "app"), str(_ROOT)])},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ran.returncode == 0, ran.stderr
    (measured,) = json.loads(ran.stdout)
    assert measured["name"] == "/v2/rerank (2 documents)"
    assert measured["num_requests"] >= 2
    assert measured["num_failures"] == 0
