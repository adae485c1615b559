"""No body costs many times its bytes: `make amplification` in short, against the real service."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.amplification import Cost, claims_of

pytestmark = pytest.mark.slow
_REGISTRY = Path(__file__).parents[1] / "data" / "registry.toml"


@pytest.mark.timeout(300)
def test_hostile_bodies_take_memory_in_proportion_to_their_bytes(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "loadtest.amplification", "--registry", str(_REGISTRY), "--output", str(report)]
    options = ["--megabytes", "4", "--one-in", "61"]
    ran = subprocess.run([*command, *options], capture_output=True, text=True, timeout=280, check=False)
    assert report.is_file(), ran.stderr[-3000:]
    claims = {claim["what"]: claim for claim in json.loads(report.read_text())["claims"]}
    assert claims["bodies sent"]["value"] >= 40
    assert claims["answered by an error of ours (5xx)"]["holds"]
    assert claims["most memory, as a part of ten times the bytes and 64 MiB"]["holds"]


def test_what_costs_too_much_does_not_hold() -> None:
    costs = [
        Cost(name="memory", status=400, body_mib=1.0, memory_mib=75.0, cpu_s=0.1, loop_ms=1.0, loop_cpu_ms=101.0),
        Cost(name="loop", status=500, body_mib=1.0, memory_mib=73.0, cpu_s=0.1, loop_ms=101.0, loop_cpu_ms=1.0),
    ]
    assert [claim.holds for claim in claims_of(costs)] == [True, False, False, False, False, True]
    assert all(claim.holds for claim in claims_of([Cost("fine", 200, 1.0, 73.0, 0.1, 99.0, 99.0)]))
