"""What README tells a new user to type is run as it stands there, but for the port."""

import subprocess
from collections.abc import Iterator

import pytest

from rerankd.config.settings import SHIPPED_REGISTRY
from tests.readme import check_first_request
from tests.servers import Server, rerankd_server, wait_until_ready


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with rerankd_server(tmp_path_factory.mktemp("readme"), SHIPPED_REGISTRY) as running:
        wait_until_ready(running)
        yield running


def test_the_first_request_answers_as_printed(server: Server) -> None:
    check_first_request(server.port)


def test_the_page_that_it_names_is_there(server: Server) -> None:
    done = subprocess.run(
        ["curl", "-sf", f"http://127.0.0.1:{server.port}/"], capture_output=True, check=True, timeout=30
    )
    assert b"<html" in done.stdout
