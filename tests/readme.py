"""README's first request, sent as it stands there, but for the port."""

import json
import re
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.requirements import require_program

ROOT: Final = Path(__file__).resolve().parents[1]
_README: Final = (ROOT / "README.md").read_text(encoding="utf-8")


def check_first_request(port: int) -> None:
    """Send README's first request to a server of the shipped model, and compare the answer with the printed one."""
    require_program("curl")
    command = _block("## One request").replace("localhost:8000", f"127.0.0.1:{port}")
    assert f":{port}/" in command
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=True, timeout=30)
    answer, printed = json.loads(done.stdout), json.loads(_block("answers, best first:"))
    assert answer.keys() == printed.keys()
    assert answer["meta"] == printed["meta"]
    shown = [(result["index"], result["relevance_score"]) for result in printed["results"]]
    assert [
        (result["index"], pytest.approx(score, abs=0.01))
        for result, (_, score) in zip(answer["results"], shown, strict=True)
    ] == shown


def _block(after: str) -> str:
    """The indented lines that follow a text."""
    match = re.search(re.escape(after) + r"\n\n((?: {4}.*\n|\n)+)", _README)
    assert match is not None, after
    return match[1]
