"""What was measured before is kept as data: which machine, which command, when, and what came out."""

import json
import re
from pathlib import Path

import pytest

from docs.readability import ROOT

_FILES = sorted((ROOT / "loadtest" / "results").glob("*.json"))


def test_there_are_results() -> None:
    assert _FILES


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.stem)
def test_a_result_says_where_when_and_how(path: Path) -> None:
    results = json.loads(path.read_text(encoding="utf-8"))
    assert results["machine"]
    assert results["versions"]
    for run in results["runs"]:
        assert re.fullmatch(r"\d{4}-\d\d(-\d\d)?", run["date"])
        assert run["command"]
        assert run["model"]
        assert run["figures"]
