"""Generated requests for the whole OpenAPI document; `make fuzz` sends more of them."""

from pathlib import Path

import pytest

from tests.fuzz import fuzz
from tests.registry_files import write_registry
from tests.servers import rerankd_server, wait_until_ready


@pytest.mark.slow
@pytest.mark.parametrize("key", ["", "secret"])
def test_every_answer_to_generated_requests_is_one_that_the_document_describes(
    tmp_path: Path, tiny_model: Path, key: str
) -> None:
    registry = write_registry(tmp_path, [{"name": "tiny", "path": tiny_model}])
    authorized = ["--header", f"Authorization: Bearer {key}"] if key else []
    settings = {"RERANKD_JOBS_FOLDER": str(tmp_path / "jobs")} | ({"RERANKD_API_KEYS": key} if key else {})
    with rerankd_server(tmp_path, registry, **settings) as server:
        wait_until_ready(server)
        # a key changes the answers, not what is read: the bodies of every field are sent once
        phases = "examples,fuzzing" if key else "examples,coverage,fuzzing"
        done = fuzz(server, ["--max-examples", "10", "--seed", "1", "--phases", phases, *authorized])
        assert done.returncode == 0, done.stdout + done.stderr
        assert " passed" in done.stdout
        assert "ERROR" not in server.log.read_text()
