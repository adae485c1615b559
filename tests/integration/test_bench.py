"""`rerankd bench` from the command line against the real service."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rerankd.cli import cli
from rerankd.errors import ConfigError
from tests.registry_files import write_registry
from tests.servers import Server, rerankd_server, wait_until_ready

_QUICK = ["--seconds", "0.8", "--warmup", "0.2", "--repetitions", "2", "--seed", "1"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from tests.tiny_models import TINY_BERT  # noqa: PLC0415 - the fixture tiny_model, in a module's scope

    folder = tmp_path_factory.mktemp("bench")
    registry = write_registry(
        folder, [{"name": "tiny", "path": TINY_BERT, "engine": "onnx", "scorer": "cross-encoder"}]
    )
    limits = {"RERANKD_MAX_DOCUMENTS": "20", "RERANKD_MAX_WAITING_TOKENS": "2000"}
    with rerankd_server(folder, registry, RERANKD_API_KEYS="k", **limits) as server:
        wait_until_ready(server)
        yield server


def test_every_load_is_measured_and_reported_in_all_three_files(server: Server, tmp_path: Path) -> None:
    json_file, markdown, plot = tmp_path / "r.json", tmp_path / "r.md", tmp_path / "r.png"
    loads = ["--documents", "2,1+3", "--clients", "1,2", "--rate", "20", "--utilization", "0.2"]
    files = ["--output", str(json_file), "--markdown", str(markdown), "--plot", str(plot)]
    ran = CliRunner().invoke(cli, ["bench", server.url, "--api-key", "k", *loads, *_QUICK, *files])
    assert ran.exit_code == 0, ran.output
    report = json.loads(json_file.read_text())
    loads_run = [(point["documents"], point["mode"], point["utilization"]) for point in report["points"]]
    assert loads_run == [
        ("2", "closed", None),
        ("2", "closed", None),
        ("1+3", "closed", None),
        ("1+3", "closed", None),
        ("2", "open", None),
        ("1+3", "open", None),
        ("2", "open", 0.2),
        ("1+3", "open", 0.2),
    ]
    for point in report["points"]:
        assert len(point["repetitions"]) == 2
        assert all(not one["errors"] for one in point["repetitions"])
    first = report["points"][0]["repetitions"][0]
    assert set(first["server_ms"]) >= {"queue", "inference", "total"}
    assert 0 < first["server_ms"]["total"] < first["latency_ms"]["max"]
    assert first["pairs_per_s"] == pytest.approx(2 * first["requests_per_s"])
    assert report["details"]["server"]["models"][0]["id"] == "tiny"
    assert "| docs | clients | req/s | pairs/s | p50 (ms) |" in markdown.read_text()
    assert "p50" in ran.stdout.split("ms")[0]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_utilization_offers_its_share_of_the_measured_throughput(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    command = ["bench", server.url, "--api-key", "k", "--documents", "2", "--clients", "2", "--utilization", "0.25"]
    assert CliRunner().invoke(cli, [*command, *_QUICK, "--output", str(file)]).exit_code == 0
    closed, opened = json.loads(file.read_text())["points"]
    assert opened["load"] == pytest.approx(closed["repetitions"][0]["requests_per_s"] / 4)


def test_failed_requests_end_with_status_1_and_their_kinds(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    too_much = ["--documents", "20", "--clients", "6", "--output", str(file)]
    ran = CliRunner().invoke(cli, ["bench", server.url, "--api-key", "k", *too_much, *_QUICK])
    assert not isinstance(ran.exception, ConfigError), ran.exception
    assert ran.exit_code == 1
    assert json.loads(file.read_text())["points"][0]["repetitions"][0]["errors"].keys() == {"429"}
    assert "x 429" in ran.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["http://127.0.0.1:1"], "does not answer"),
        (["URL", "--api-key", "wrong"], "answered 401"),
        (["URL", "--api-key", "k", "--documents", "21"], "answered 413"),
        (["URL", "--api-key", "k", "--documents", "x"], "not a number of documents"),
        (["URL", "--api-key", "k", "--clients", "1,x"], "numbers above zero"),
        (["URL", "--api-key", "k", "--clients", "0"], "numbers above zero"),
        (["URL", "--api-key", "k", "--clients", ""], "nothing to run"),
        (["URL", "--api-key", "k", "--header", "x"], "NAME:VALUE"),
        (["URL", "--api-key", "k", "--model", "nix", "--documents", "5"], "answered 404"),
    ],
)
def test_what_cannot_be_measured_is_said_before_any_load(server: Server, arguments: list[str], message: str) -> None:
    arguments = [server.url if argument == "URL" else argument for argument in arguments]
    ran = CliRunner().invoke(cli, ["bench", *arguments, *_QUICK])
    assert isinstance(ran.exception, ConfigError)
    assert message in str(ran.exception)
