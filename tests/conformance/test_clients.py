"""The real client libraries against a real server: every client goes through every case of `cases.py`."""

from collections.abc import Iterator

import pytest

from tests.conformance.install import ENVIRONMENTS, InstallFailed, installed
from tests.conformance.suite import PAGE, Servers, outcomes, rows, running_servers
from tests.requirements import missing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with running_servers(tmp_path_factory.mktemp("conformance")) as servers:
        yield servers


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_clients(environment: str, request: pytest.FixtureRequest) -> None:
    try:
        installed(environment)
    except InstallFailed as error:
        missing(f"the clients of {environment} cannot be installed: {error}")
    found = outcomes(environment, request.getfixturevalue("servers"))
    failed = [f"{outcome.client}, {outcome.case}: {outcome.detail}" for outcome in found if outcome.outcome == "failed"]
    assert not failed, "\n\n".join(failed)
    documented = PAGE.read_text(encoding="utf-8").splitlines()
    assert not set(rows(found)) - set(documented), "docs/clients.md is stale: make conformance"
