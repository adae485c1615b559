"""Importing the package changes nothing in a process; the command `rerankd` turns telemetry off in its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rerankd import __version__
from tests.registry_files import write_registry

_SEAMS = (
    "rerankd",
    "rerankd.domain",
    "rerankd.errors",
    "rerankd.config.settings",
    "rerankd.cache",
    "rerankd.recognition",
    "rerankd.scorers",
    "rerankd.engines",
    "rerankd.batching.batcher",
    "rerankd.pipeline.stage",
    "rerankd.serving.assembly",
    "rerankd.serving.service",
    "rerankd.telemetry.metrics",
    "rerankd.api.dialects",
    "rerankd.api.server",
    "rerankd.cli",
    "rerankd.__main__",
)
_CHANGED = """
import gc, importlib, json, logging, os, signal, sys, threading
def state():
    return {
        "environment": dict(os.environ),
        "hidden modules": [name for name, module in sys.modules.items() if module is None],
        "path": list(sys.path),
        "collector": gc.get_threshold(),
        "switch interval": sys.getswitchinterval(),
        "signals": [str(signal.getsignal(number)) for number in signal.valid_signals()],
        "log": [logging.root.level, list(map(str, logging.root.handlers))],
        "threads": threading.active_count(),
    }
changed = {}
for name in sys.argv[1:]:
    before = state()
    importlib.import_module(name)
    after = state()
    changed[name] = [key for key in before if before[key] != after[key]]
print(json.dumps(changed))
"""
# Runs a command until it imports a library, and prints what that reads then.
_UNTIL_IMPORT = """
import os, sys
from importlib.abc import MetaPathFinder
from rerankd.__main__ import main
library = sys.argv.pop(1)
class Watch(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == library:
            read = [os.environ.get(f"{maker}_DISABLE_TELEMETRY") for maker in ("ORT", "HF_HUB")]
            print(*read, "hidden" if sys.modules.get("openvino_telemetry", "") is None else "there", flush=True)
            os._exit(0)
sys.meta_path.insert(0, Watch())
main()
"""


def _run(*words: object, **environment: str) -> str:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in {"ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"}
    }
    return subprocess.run(
        [sys.executable, *map(str, words)], env=inherited | environment, capture_output=True, text=True, check=True
    ).stdout


def test_importing_changes_nothing_in_the_process() -> None:
    assert json.loads(_run("-c", _CHANGED, *_SEAMS)) == {name: [] for name in _SEAMS}


@pytest.fixture
def commands(tmp_path: Path, tiny_model: Path) -> dict[str, list[object]]:
    """Commands that load a model, each with its arguments."""
    registry = write_registry(tmp_path, [{"name": "tiny", "path": tiny_model}])
    requests = tmp_path / "requests.jsonl"
    requests.write_text(json.dumps({"query": "q", "documents": ["d"]}), encoding="utf-8")
    data = tmp_path / "data"
    data.mkdir()
    (data / "corpus.jsonl").write_text(json.dumps({"id": "d", "text": "a text"}), encoding="utf-8")
    (data / "queries.jsonl").write_text(json.dumps({"id": "q", "text": "a query"}), encoding="utf-8")
    (data / "run.bm25.tsv").write_text("q\td\t1\t1\n", encoding="utf-8")
    (data / "qrels.tsv").write_text("q\td\t1\n", encoding="utf-8")
    chosen = ["--registry", registry]
    return {
        "serve": ["serve", "--port", 0, *chosen],
        "serve from the hub": ["serve", "--port", 0, "an-author/a-model"],
        "rank": ["rank", requests, tmp_path / "answers.jsonl", *chosen],
        "eval": ["eval", data, *chosen],
        "tune": ["tune", *chosen],
    }


@pytest.mark.parametrize(
    ("command", "library"),
    [
        ("serve", "onnxruntime"),
        ("serve from the hub", "huggingface_hub"),
        ("rank", "onnxruntime"),
        ("eval", "onnxruntime"),
        ("tune", "onnxruntime"),
    ],
)
def test_telemetry_is_off_when_a_command_imports_a_library(
    commands: dict[str, list[object]], command: str, library: str
) -> None:
    assert _run("-c", _UNTIL_IMPORT, library, *commands[command]) == "1 1 hidden\n"


def test_the_operators_environment_wins(commands: dict[str, list[object]]) -> None:
    allowed = _run("-c", _UNTIL_IMPORT, "onnxruntime", *commands["rank"], ORT_DISABLE_TELEMETRY="0")
    assert allowed == "0 1 hidden\n"


def test_the_package_is_a_command() -> None:
    assert _run("-m", "rerankd", "--version") == f"rerankd {__version__}\n"
