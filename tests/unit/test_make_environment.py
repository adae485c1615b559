"""`make serve` on machines that are not as it wants them: nothing is written before it is known to be of use."""

import os
import pty
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_SCRIPT = _ROOT / "scripts" / "environment.sh"


def _make(folder: Path, python: str = sys.executable, *more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [_SCRIPT, ".venv", python, *more], cwd=folder, capture_output=True, text=True, check=False, timeout=100
    )


def _program(path: Path, text: str) -> str:
    path.unlink(missing_ok=True)  # it may be a link to a real interpreter
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def _old_python(folder: Path) -> str:
    """A real interpreter that says that it is 3.10: what an old one answers to the script's questions."""
    code = "import sys; sys.version_info = (3, 10, 13, 'final', 0)"
    return _program(folder / "python3.10", f'exec {sys.executable} -c "{code}; exec(sys.argv[1])" "$2"')


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    done = _make(folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_script_wants_what_the_project_declares() -> None:
    declared = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert f"\noldest={declared.removeprefix('>=')} " in _SCRIPT.read_text()


def test_an_old_python_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    done = _make(tmp_path, _old_python(tmp_path))
    assert done.returncode == 1
    assert "is Python 3.10.13, and rerankd needs 3.11 or newer" in done.stderr
    assert "PYTHON=python3" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_a_python_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = _make(tmp_path, "python3.99")
    assert done.returncode == 1
    assert "cannot run python3.99" in done.stderr


def test_a_python_without_venv_says_which_package_has_it(tmp_path: Path) -> None:
    python = _program(tmp_path / "python", f'case "$2" in *ensurepip*) exit 1;; esac\nexec {sys.executable} "$@"')
    done = _make(tmp_path, python)
    assert done.returncode == 1
    assert "apt install python3-venv" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_an_environment_that_works_is_left_as_it_is(made: Path) -> None:
    stamp = made / ".venv" / ".python"
    before = stamp.stat().st_mtime_ns
    for more in ([], ["explicit"]):
        done = _make(made, sys.executable, *more)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert stamp.stat().st_mtime_ns == before


def test_an_environment_that_works_needs_no_other_python(made: Path, tmp_path: Path) -> None:
    assert _make(made, _old_python(tmp_path)).returncode == 0


def test_an_environment_of_another_python_is_refused_or_made_anew_when_one_is_asked_for(
    made: Path, tmp_path: Path
) -> None:
    done = _make(made, _old_python(tmp_path), "explicit")
    assert done.returncode == 1
    assert (made / ".venv" / "bin" / "python").exists()


@pytest.mark.parametrize("damage", ["no pip", "unfinished", "copied"])
def test_an_environment_that_cannot_be_used_is_made_anew(tmp_path: Path, damage: str) -> None:
    _make(tmp_path)
    venv = tmp_path / ".venv"
    if damage == "no pip":
        _program(venv / "bin" / "python", "exit 1")
    elif damage == "unfinished":
        (venv / ".python").unlink()
    else:
        venv.parent.rename(tmp_path.with_name(f"{tmp_path.name}-copy"))
        tmp_path = tmp_path.with_name(f"{tmp_path.name}-copy")
    done = _make(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "making .venv again: it" in done.stdout
    assert (
        subprocess.run([tmp_path / ".venv" / "bin" / "python", "-m", "pip", "--version"], check=False).returncode == 0
    )


def test_a_file_in_its_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".venv").write_text("mine")
    assert _make(tmp_path).returncode == 1
    assert (tmp_path / ".venv").read_text() == "mine"


@pytest.mark.parametrize("on_a_terminal", [False, True])
def test_a_failed_installation_says_what_to_do_without_a_network(tmp_path: Path, *, on_a_terminal: bool) -> None:
    (tmp_path / "constraints.txt").touch()
    reading, writing = pty.openpty()
    environment = os.environ | {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(
        [_ROOT / "scripts" / "install.sh", sys.executable, "a-package-of-nobody"],
        cwd=tmp_path,
        env=environment,
        stdout=writing if on_a_terminal else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    os.close(reading)
    os.close(writing)
    assert done.returncode == 1
    assert "No matching distribution found for a-package-of-nobody" in done.stderr
    assert "HTTPS_PROXY" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("succeeds", [False, True])
def test_a_terminal_changes_nothing_about_whether_it_succeeds(tmp_path: Path, *, succeeds: bool) -> None:
    python = _program(tmp_path / "python", f"echo 'Collecting everything'\nexit {0 if succeeds else 1}")
    reading, writing = pty.openpty()
    done = subprocess.run([_ROOT / "scripts" / "install.sh", python, "x"], stdout=writing, check=False, timeout=60)
    shown = os.read(reading, 1000)
    os.close(reading)
    os.close(writing)
    assert (done.returncode == 0) == succeeds
    assert b"Collecting everything" in shown
