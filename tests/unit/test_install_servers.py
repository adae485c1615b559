"""`make test` as root on Debian leaves the machine's policy about starting services as it was."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).resolve().parents[1] / "install_servers.sh"
_OWN = "#!/bin/sh\n# the administrator's own\nexit 0\n"

Install = Callable[..., "subprocess.CompletedProcess[str]"]


def _program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return tmp_path / "policy-rc.d"


@pytest.fixture
def install(tmp_path: Path, policy: Path) -> Install:
    """Runs the script as root of a machine whose `apt-get install` does what is given; it says what the policy was."""
    programs = tmp_path / "programs"
    programs.mkdir()
    _program(programs / "id", "echo 0")

    def run(when_installing: str = "true") -> "subprocess.CompletedProcess[str]":
        _program(
            programs / "apt-get",
            f'[ "$1" = update ] && exit 0\ncat {policy} >&2\n{when_installing}',
        )
        environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "POLICY_RC_D": str(policy)}
        return subprocess.run(
            ["bash", _SCRIPT, "no-such-server"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )

    return run


@pytest.mark.parametrize("outcome", ["true", "exit 100", "kill -INT $PPID", "kill -TERM $PPID", "kill -HUP $PPID"])
def test_the_policy_is_as_before(install: Install, policy: Path, tmp_path: Path, outcome: str) -> None:
    policy.write_text(_OWN)
    policy.chmod(0o750)
    done = install(outcome)
    assert "exit 101" in done.stderr
    assert (done.returncode == 0) == (outcome == "true")
    assert policy.read_text() == _OWN
    assert policy.stat().st_mode & 0o777 == 0o750
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy-rc.d", "programs"]


@pytest.mark.parametrize("outcome", ["true", "exit 100", "kill -TERM $PPID"])
def test_where_there_was_none_there_is_none(install: Install, policy: Path, tmp_path: Path, outcome: str) -> None:
    install(outcome)
    assert [path.name for path in tmp_path.iterdir()] == ["programs"]


@pytest.mark.parametrize("own", [_OWN, None])
def test_a_run_that_was_killed_is_put_right_by_the_next(install: Install, policy: Path, own: str | None) -> None:
    if own:
        policy.write_text(own)
    assert install("kill -KILL $PPID").returncode == -signal.SIGKILL
    assert "exit 101" in policy.read_text()
    assert install().returncode == 0
    assert (policy.read_text() if policy.exists() else None) == own


def test_a_policy_that_is_a_link_stays_one(install: Install, policy: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text(_OWN)
    policy.symlink_to(tmp_path / "elsewhere")
    install()
    assert policy.is_symlink()
    assert (tmp_path / "elsewhere").read_text() == _OWN
