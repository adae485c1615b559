"""The shipped model's recipe from data to a folder that serves, on next to nothing."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.registry_files import write_registry
from tests.requirements import require_data
from tests.servers import rerankd_server, wait_until_ready

_ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(900)
def test_a_smoke_run_of_the_recipe_gives_a_folder_that_serves(tmp_path: Path) -> None:
    data = require_data("train").parent
    out = tmp_path / "out"
    command = [sys.executable, "-m", "models.recipes.minilm_qa", "--data", str(data), "--out", str(out), "--smoke"]
    subprocess.run(command, cwd=_ROOT, check=True, timeout=800)
    shipped = out / "minilm-qa"
    files = {path.name for path in shipped.iterdir()}
    assert {"config.json", "golden.json", "model.int8.onnx", "reliability.png", "tokenizer.json"} <= files
    card = (shipped / "README.md").read_text(encoding="utf-8")
    assert "$" not in card
    quality = json.loads((out / "quality.json").read_text(encoding="utf-8"))
    assert {"dl19", "scifact", "squad_dev", "squad2_dev"} <= quality.keys()

    registry = write_registry(tmp_path, [{"name": "smoke", "path": shipped}])
    with rerankd_server(tmp_path, registry) as server:
        wait_until_ready(server)
        body = {"query": "what causes tides", "documents": ["The Moon's gravity.", "Stocks rose."]}
        answer = httpx.post(f"{server.url}/v2/rerank", json=body, timeout=60)
    assert answer.status_code == 200, "the golden pairs passed at the start"
    assert sorted(result["index"] for result in answer.json()["results"]) == [0, 1]
