"""What README tells a new user to type is run as it stands there, but for the port."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rerankd.config.settings import SHIPPED_REGISTRY
from tests.requirements import require_program
from tests.servers import Server, rerankd_server, wait_until_ready

_ROOT = Path(__file__).resolve().parents[2]
_README = (_ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with rerankd_server(tmp_path_factory.mktemp("readme"), SHIPPED_REGISTRY) as running:
        wait_until_ready(running)
        yield running


def _block(after: str) -> str:
    """The indented lines that follow a text."""
    match = re.search(re.escape(after) + r"\n\n((?: {4}.*\n|\n)+)", _README)
    assert match is not None, after
    return match[1]


def test_the_first_request_answers_as_printed(server: Server) -> None:
    require_program("curl")
    command = _block("## One request").replace("localhost:8000", f"127.0.0.1:{server.port}")
    assert f":{server.port}/" in command
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=True, timeout=30)
    answer, printed = json.loads(done.stdout), json.loads(_block("answers, best first:"))
    assert answer.keys() == printed.keys()
    assert answer["meta"] == printed["meta"]
    shown = [(result["index"], result["relevance_score"]) for result in printed["results"]]
    assert [
        (result["index"], pytest.approx(score, abs=0.01))
        for result, (_, score) in zip(answer["results"], shown, strict=True)
    ] == shown


def test_the_page_that_it_names_is_there(server: Server) -> None:
    done = subprocess.run(
        ["curl", "-sf", f"http://127.0.0.1:{server.port}/"], capture_output=True, check=True, timeout=30
    )
    assert b"<html" in done.stdout
