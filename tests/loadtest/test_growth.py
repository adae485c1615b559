"""Memory does not grow with the number of requests: `make growth` in short, every kind of request."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.growth import KINDS, MOST_MIB, Growth

pytestmark = pytest.mark.slow
_REGISTRY = Path(__file__).parents[1] / "data" / "registry.toml"


@pytest.mark.timeout(300)
def test_no_kind_of_request_leaves_memory_behind(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "loadtest.growth", "--registry", str(_REGISTRY), "--requests", "60"]
    ran = subprocess.run([*command, "--output", str(report)], capture_output=True, text=True, timeout=280, check=False)
    assert report.is_file(), ran.stderr[-3000:]
    claims = json.loads(report.read_text())["claims"]
    assert len(claims) == 2 * len(KINDS)
    assert [claim for claim in claims if not claim["holds"]] == []
    assert ran.returncode == 0


def test_a_leak_of_two_kilobytes_a_request_does_not_hold() -> None:
    growth = Growth("leak", requests=20_000, mib=[100.0, 100.0 + 8_000 * 2 / 1024, 100.0 + 18_000 * 2 / 1024])
    assert [claim.holds for claim in growth.claims()] == [True, False]
    assert MOST_MIB > 18_000 * 2 / 1024
