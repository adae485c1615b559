"""Every experiment runs to its verdict against the real service, with a tiny model and in seconds. What a busy machine
measures then says nothing, so the verdict itself is not tested, but for claims that are about being right.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rerankd.concurrency.worker import available_cores
from tests.registry_files import write_registry
from tests.requirements import require_program

pytestmark = pytest.mark.slow


@pytest.fixture
def registry(tiny_model: Path, tmp_path: Path) -> Path:
    return write_registry(tmp_path, [{"name": "t", "path": tiny_model, "engine": "onnx", "scorer": "cross-encoder"}])


def _run(experiment: str, registry: Path, *options: str) -> dict[str, dict[str, Any]]:
    """Claims by what they are about."""
    output = registry.parent / "report.json"
    command = [sys.executable, "-m", f"loadtest.{experiment}", "--registry", str(registry), "--output", str(output)]
    ran = subprocess.run([*command, *options], capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode in (0, 1), ran.stderr
    claims = json.loads(output.read_text())["claims"]
    assert (ran.returncode == 0) is all(claim["holds"] for claim in claims)
    return {claim["what"]: claim for claim in claims}


def _is_measured(claim: dict[str, Any]) -> bool:
    return bool(claim["value"] == claim["value"])


def test_fairness_compares_sizes_and_keys(registry: Path) -> None:
    claims = _run("fairness", registry, "--seconds", "0.6", "--rounds", "1", "--large", "100")
    assert claims["requests that failed"]["holds"]
    ratios = [claim for what, claim in claims.items() if "/ alone" in what]
    assert len(ratios) == 3
    assert all(_is_measured(ratio) and ratio["value"] > 0 for ratio in ratios)


def test_isolation_compares_a_key_alone_and_beside_anothers_worst(registry: Path) -> None:
    claims = _run("isolation", registry, "--seconds", "0.6", "--parts", "engine", "hanging up", "body bytes")
    ratios = [claim for what, claim in claims.items() if "/ alone" in what]
    assert len(ratios) == 3
    assert all(_is_measured(ratio) and ratio["value"] > 0 for ratio in ratios)
    assert claims["requests of the quiet key that failed or were refused"]["holds"]
    assert claims["engine: event loop, cores"]["value"] > 0
    assert claims["hanging up: busy clients, cores"]["value"] > 0


def test_overload_is_admitted_or_refused_and_over_afterwards(registry: Path) -> None:
    few = ["--seconds", "1", "--times", "6", "--documents", "5", "--max-waiting-tokens", "1500"]
    claims = _run("overload", registry, *few)
    assert claims["overload: requests neither answered nor refused"]["holds"]
    assert claims["half of the clients leave: requests neither answered nor refused"]["holds"]
    assert claims["tokens that still wait afterwards"]["holds"]
    assert claims["Retry-After: refusals followed"]["value"] >= 1
    assert _is_measured(claims["Retry-After / the truth, worst"])
    assert _is_measured(claims["overload: admitted requests that met their deadline, %"])


@pytest.mark.redis
def test_cached_answers_come_from_memory_and_from_redis(registry: Path) -> None:
    require_program("redis-server")
    claims = _run("cached", registry, "--documents", "20", "--requests", "10")
    assert {what.split(":")[0] for what in claims} == {"memory", "Redis"}
    assert all(_is_measured(claim) for claim in claims.values())


def test_a_large_request_is_watched_from_beside(registry: Path) -> None:
    claims = _run("loop_stall", registry, "--seconds", "1", "--documents", "300")
    assert claims["requests of 300 documents answered"]["holds"]
    assert claims["requests that failed"]["holds"]
    assert _is_measured(claims["slowest /health beside them, ms"])


def test_the_event_loops_steps_are_timed(registry: Path) -> None:
    claims = _run("loop_steps", registry, "--documents", "1500", "--requests", "2")
    assert claims["requests answered"]["holds"]
    longest, every = claims["longest step of the event loop, ms"], claims["all steps, s for each request"]
    assert 0 < longest["value"] < 1000 * 2 * every["value"]


@pytest.mark.redis
def test_a_soak_finds_no_wrong_and_no_lost_answer_while_redis_dies(registry: Path) -> None:
    require_program("redis-server")
    claims = _run("soak", registry, "--seconds", "5", "--break-every", "1")
    assert claims["answers compared"]["value"] > 10
    assert claims["times that Redis was killed"]["value"] >= 1
    assert claims["wrong answers"]["holds"]
    assert claims["lost answers"]["holds"]


def test_the_shipped_model_is_benched_by_a_server_of_its_own(tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    loads = ["--clients", "1", "--documents", "2", "--seconds", "0.5", "--warmup", "0", "--repetitions", "1"]
    command = [sys.executable, "-m", "loadtest", *loads, "--output", str(output)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr
    report = json.loads(output.read_text())
    assert report["details"]["server"]["models"][0]["id"] == "minilm-qa"


def test_efficiency_compares_the_service_with_its_engine(registry: Path) -> None:
    claims = _run("efficiency", registry, "--seconds", "0.6", "--rounds", "1")
    assert all(_is_measured(claim) and claim["value"] > 0 for claim in claims.values())
    assert claims["8 clients / the engine alone"]["value"] < 1.5, "nothing is much faster than the engine"


def test_matmuls_bound_what_can_be_ranked() -> None:
    """The last layer's matmuls for all tokens but the first are left out: 1.35 GMAC a pair with them (127 tokens)."""
    command = [sys.executable, "-m", "loadtest.gemm", "--rounds", "1"]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=False, env={**os.environ, "COLUMNS": "200"}
    )
    assert ran.returncode == 0, ran.stderr
    rows = [line.split("│") for line in ran.stdout.splitlines() if line.startswith("│")]
    assert len(rows) == 3
    cost = float(ran.stdout.split("a pair's matmuls:")[1].split()[0])
    assert 1.0 < cost < 1.25
    for _, _, rate, bound, _ in rows:
        assert float(bound) == pytest.approx(available_cores() * float(rate) / cost, rel=0.02)
