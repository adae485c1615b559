"""The GPU comparison, on the CPU and with tiny models; and its count of operations against torch's own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["minilm-l6", "xlmr-large"])
def test_operations_are_those_that_torch_counts(name: str, tmp_path: Path) -> None:
    import torch  # noqa: PLC0415 - only slow tests have torch
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 - as above
    from transformers import AutoModelForSequenceClassification  # noqa: PLC0415 - as above

    from loadtest.gpu.operations import Operations  # noqa: PLC0415 - as above
    from loadtest.random_models import build  # noqa: PLC0415 - as above

    folder = build(name, tmp_path, tiny=True)
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    length = 96
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(input_ids=torch.full((1, length), 5), attention_mask=torch.ones((1, length), dtype=torch.int64))
    width = model.config.hidden_size
    head = 2 * width * width + 2 * width  # the pooler or dense layer, and the output, of one vector
    assert Operations.of(model).needed([length]) == counter.get_total_flops() - head


def test_a_local_window_and_many_sequences_are_counted() -> None:
    from loadtest.gpu.operations import Operations  # noqa: PLC0415 - as above

    operations = Operations(weights=10, width=4, spans=[100, 8])
    one = 2 * 10 * 20 + 4 * 4 * (20 * 20 + 20 * 8)
    assert operations.needed([20]) == one
    assert operations.needed([20, 20]) == 2 * one


def test_the_models_have_the_sizes_of_their_originals() -> None:
    import torch  # noqa: PLC0415 - as above

    from loadtest.random_models import MODELS  # noqa: PLC0415 - as above

    millions = {}
    for name, make in MODELS.items():
        with torch.device("meta"):
            model, _ = make(tiny=False)
        millions[name] = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert millions["minilm-l6"] == pytest.approx(22.7, abs=0.1)
    assert millions["xlmr-large"] == pytest.approx(560, abs=2)
    assert millions["modernbert-base"] == pytest.approx(149.6, abs=1)


def test_a_tiny_run_on_the_cpu_measures_all_sides(tmp_path: Path) -> None:
    report_file = tmp_path / "r.json"
    tiny = ["--tiny", "--device", "cpu", "--minutes", "0.1", "--rounds", "1", "--models", "minilm-l6"]
    command = [sys.executable, "-m", "loadtest.gpu", *tiny, "--json", str(report_file)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert ran.returncode == 0, ran.stderr
    report = json.loads(report_file.read_text())
    ours = {"rerankd, padded", "rerankd, packed", "rerankd, packed, 2 workers"}
    assert {one["side"] for one in report["throughputs"]} == {*ours, "sentence-transformers"}
    assert all(one["pairs_per_s"] > 0 and one["share_of_peak"] > 0 for one in report["throughputs"])
    assert len(report["correlations"]) == 3
    assert min(report["correlations"].values()) > 0.9999
    assert "| minilm-l6 | rerankd, padded |" in ran.stdout


def test_the_gpu_comparison_needs_no_package_of_the_web_service() -> None:
    absent = ["fastapi", "starlette", "uvicorn", "uvloop", "httptools", "orjson", "redis", "prometheus_client"]
    absent += ["pydantic_settings", "typer"]
    block = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import loadtest.gpu.__main__"
    ran = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr
