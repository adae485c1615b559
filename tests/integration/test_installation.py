"""The wheel and the sdist, each installed from its file into an environment without anything else, serve the shipped
model from an empty folder. With a compiler they have the kernels; without one they say so, once.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from email.parser import HeaderParser
from pathlib import Path
from types import MappingProxyType
from zipfile import ZipFile

import pytest

from rerankd import __version__
from tests.readme import ROOT, check_first_request
from tests.servers import Server, free_port, running, wait_until_ready

pytestmark = [pytest.mark.slow, pytest.mark.uncovered, pytest.mark.timeout(600)]

_OTHER_PYTHONS = ("3.12", "3.13", "3.14")
_NO_COMPILER = {"CC": "/bin/false", "CXX": "/bin/false"}
_NO_KERNELS = "the compiled kernels are missing"
_BUILT = {".so", ".pyc"}


def _run(command: Sequence[object], folder: Path, environment: Mapping[str, str] = MappingProxyType({})) -> str:
    """A command in an environment that shows nothing of this one's packages; with its output if it fails."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a package is built from, since building writes beside it."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("app", "models"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info", "recipes")
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    (folder / "models" / "recipes").mkdir()
    (folder / "models" / "recipes" / "__init__.py").touch()
    return folder


@pytest.fixture(scope="module")
def sdist(source: Path) -> Path:
    _run([sys.executable, "-m", "build", "--sdist", "--no-isolation"], source)
    (path,) = (source / "dist").glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist as pip does, with what pyproject.toml says and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    _run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, sdist], folder)
    (path,) = folder.glob("*.whl")
    return path


def _environment(folder: Path, package: str, python: str = sys.executable, **environment: str) -> Path:
    """A new environment's interpreter, into which only this package was installed."""
    _run([python, "-m", "venv", folder], folder.parent)
    interpreter = folder / "bin" / "python"
    versions = ROOT / "constraints.txt"
    install = [interpreter, "-m", "pip", "install", "--no-compile", "--disable-pip-version-check", "-c", versions]
    _run([*install, package], folder, environment)
    return interpreter


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _environment(tmp_path_factory.mktemp("environments") / "wheel", f"{wheel}[cpu]")


@contextmanager
def _serving(command: Sequence[object], folder: Path, **environment: str) -> Iterator[Server]:
    """`rerankd serve` from an empty folder, ready."""
    empty = folder / "empty"
    empty.mkdir()
    port = free_port()
    words = [*map(str, command), "serve", "--port", str(port)]
    alone = {"PYTHONPATH": "", "HOME": str(folder), **environment}
    with running(words, port, folder / "serve.log", alone, folder=empty) as server:
        wait_until_ready(server, timeout_s=300)  # it compiles all that it imports first
        yield server
    assert list(empty.iterdir()) == []


def _warnings(server: Server) -> list[str]:
    return re.findall(f'.*"level":"WARNING".*{_NO_KERNELS}.*', server.log.read_text(encoding="utf-8"))


def test_the_packages_hold_the_package_and_the_shipped_model_once(sdist: Path, wheel: Path) -> None:
    data = ROOT / "models"
    shipped = [data / "registry.toml", *(data / "templates").iterdir(), *(data / "minilm-qa").iterdir()]
    modules = [path for path in (ROOT / "app").rglob("*.*") if path.is_file() and path.suffix not in _BUILT]
    expected = {str(path.relative_to(ROOT / "app")) for path in modules if "egg-info" not in str(path)}
    expected |= {f"rerankd/{path.relative_to(ROOT)}" for path in shipped}
    with ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert sorted(name for name in names if Path(name).suffix not in _BUILT) == sorted(expected)
    assert [name for name in names if "_compiled" in name and name.endswith(".so")] != []
    with tarfile.open(sdist) as archive:
        members = [one for one in archive.getmembers() if not one.isdir()]
    assert all(one.isfile() for one in members), "no links"
    inside = [one.name.partition("/app/")[2] for one in members if "/app/rerankd/" in one.name]
    assert sorted(inside) == sorted(expected)


def test_the_metadata_says_version_and_extras(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    assert metadata["Version"] == __version__
    assert {"cpu", "gpu", "torch"} <= set(metadata.get_all("Provides-Extra", []))
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])


def test_the_wheel_serves_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    with _serving([installed.with_name("rerankd")], tmp_path) as server:
        check_first_request(server.port)
        assert _warnings(server) == []


def test_an_extra_is_installed_by_the_command_of_the_messages(installed: Path, tmp_path: Path) -> None:
    said = _run([installed, "-m", "pip", "install", "--dry-run", "rerankd[bench]"], tmp_path)
    assert re.search(r"Would install .*matplotlib-", said)


def test_the_sdist_serves_without_a_compiler_and_says_so_once(installed: Path, sdist: Path, tmp_path: Path) -> None:
    """Beside the wheel's dependencies, which are the same, and before the wheel's own package."""
    target = tmp_path / "from-sdist"
    options = ["--no-deps", "--no-compile", "--disable-pip-version-check", "--target", target]
    _run([installed, "-m", "pip", "install", *options, sdist], tmp_path, _NO_COMPILER)
    path = {"PYTHONPATH": str(target)}
    where = _run([installed, "-c", "import rerankd; print(rerankd.__file__)"], tmp_path, path)
    assert where.startswith(str(target))
    with _serving([installed, "-m", "rerankd"], tmp_path, **path) as server:
        check_first_request(server.port)
        (warning,) = _warnings(server)
        assert "half the speed" in warning


@pytest.mark.parametrize("version", _OTHER_PYTHONS)
def test_other_pythons_serve_too(version: str, sdist: Path, tmp_path: Path) -> None:
    """Without the kernels, which take longest; the workflow of .github compiles them for every version."""
    python = _interpreter(version)
    if python is None:
        pytest.skip(f"there is no python{version} in PATH")
    installed = _environment(tmp_path / "environment", f"{sdist}[cpu]", python, **_NO_COMPILER)
    with _serving([installed.with_name("rerankd")], tmp_path) as server:
        check_first_request(server.port)


def _interpreter(version: str) -> str | None:
    """The first one in PATH that works: some are there only to say that another is chosen."""
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        program = Path(folder) / f"python{version}"
        if (
            program.is_file()
            and subprocess.run([program, "-c", "import venv"], capture_output=True, check=False).returncode == 0
        ):
            return str(program)
    return None
