"""What the service itself costs is measured over an engine that costs nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.host_path import _part_of


@pytest.mark.parametrize(
    ("stack", "part"),
    [
        ("main (/x/app/rerankd/cli/serving.py:9);run (/usr/lib/asyncio/runners.py:3)", "event loop and libraries"),
        ("a (/x/app/rerankd/api/server.py:9);b (/x/app/rerankd/cache/keys.py:3)", "keys"),
        ("a (/x/app/rerankd/batching/passes.py:9);b (/x/app/rerankd/engines/base.py:3);c (/y/numpy.py:1)", "padding"),
        ("a (/x/loadtest/free_engine.py:9)", "the free engine"),
    ],
)
def test_a_stack_belongs_to_the_innermost_part_of_the_package(stack: str, part: str) -> None:
    assert _part_of(stack) == part


@pytest.mark.slow
def test_threads_and_parts_are_told(tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    options = ["--seconds", "0.3", "--rounds", "1", "--batch-tokens", "512", "--clients", "2", "--output", str(output)]
    ran = subprocess.run(
        [sys.executable, "-m", "loadtest.host_path", *options], capture_output=True, text=True, timeout=100, check=False
    )
    assert ran.returncode == 0, ran.stderr
    report = json.loads(output.read_text())
    speed, bound = report["claims"]
    assert bound["value"] >= speed["value"] > 0
    told = report["this tree, batches of 512 tokens, microseconds a pair"]
    assert all(kind in told for kind in ("event loop", "passes")), "texts this short are tokenized on the event loop"
