"""What a whole service takes for the shipped model under 32 clients, by every engine of a CPU."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.registry_files import write_registry
from tests.servers import rerankd_server, wait_until_ready

_SHIPPED = Path(__file__).parents[2] / "models" / "minilm-qa"
_CLIENTS = 32
_LARGEST_BYTES = 1e9


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("engine", "runtime"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_service_under_32_clients_takes_less_than_one_gigabyte(tmp_path: Path, engine: str, runtime: str) -> None:
    pytest.importorskip(runtime)
    registry = write_registry(tmp_path, [{"name": "minilm", "path": _SHIPPED, "engine": engine}])
    with rerankd_server(tmp_path, registry, RERANKD_CACHE_URL="none://") as server:
        wait_until_ready(server)
        with httpx.Client(timeout=200) as http, ThreadPoolExecutor(_CLIENTS) as clients:
            answers = clients.map(lambda seed: http.post(f"{server.url}/v2/rerank", json=_request(seed)), range(64))
            assert {answer.status_code for answer in answers} == {200}
        assert psutil.Process(server.process.pid).memory_info().rss < _LARGEST_BYTES


def _request(seed: int) -> dict[str, object]:
    """Documents from a few tokens to more than the model reads."""
    generator = random.Random(seed)
    documents = [
        " ".join(generator.choices(["rain", "snow", "wind", "sun"], k=generator.randint(1, 400))) for _ in range(5)
    ]
    return {"model": "minilm", "query": f"weather {seed}", "documents": documents}
