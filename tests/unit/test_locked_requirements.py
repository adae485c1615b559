"""What an installation gets is fixed to the byte: every package of requirements/*.txt has a version and hashes, the
versions are those that the project is tested with, and nothing of what pyproject.toml asks for is missing.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_LOCKED = sorted((_ROOT / "requirements").glob("*.txt"))
_PROJECT: Mapping[str, Any] = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _names(requirements: list[str]) -> set[str]:
    return {_canonical(re.split(r"[<>=!~;\\[ ]", requirement, maxsplit=1)[0]) for requirement in requirements}


def _tested() -> dict[str, str]:
    lines = (_ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split(";")[0].strip().split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {_canonical(name): version for name, version in pairs}


def _locked(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Name, version and hashes of each package."""
    text = re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    for line in text.splitlines():
        name, version = re.match(r"([\w.-]+)==([\w.+-]+)", line).groups()  # type: ignore[union-attr]
        yield _canonical(name), version, re.findall(r"--hash=sha256:([0-9a-f]{64})\b", line)


def test_there_is_a_list_for_each_image_and_for_the_build() -> None:
    assert [path.stem for path in _LOCKED] == ["build", "cpu", "gpu", "torch"]


@pytest.mark.parametrize("path", _LOCKED, ids=lambda path: path.stem)
def test_every_package_has_hashes_and_the_version_that_is_tested(path: Path) -> None:
    tested = _tested()
    packages = list(_locked(path))
    assert len({name for name, _, _ in packages}) == len(packages)
    for name, version, hashes in packages:
        assert hashes, name
        assert version.partition("+")[0] == tested.get(name, version), f"{name}: run make lock"


def _wanted(*extras: str) -> set[str]:
    project = _PROJECT["project"]
    return _names(
        [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]
    )


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("cpu", _wanted("cpu")),
        ("gpu", _wanted("gpu")),
        ("torch", _wanted("cpu", "torch") - {"torch"}),
        ("build", _names(_PROJECT["build-system"]["requires"])),
    ],
)
def test_what_the_project_asks_for_is_locked(name: str, wanted: set[str]) -> None:
    locked = {package for package, _, _ in _locked(_ROOT / "requirements" / f"{name}.txt")}
    assert wanted <= locked, f"run make lock: {sorted(wanted - locked)} are missing"


def test_the_image_for_cpus_brings_no_cuda() -> None:
    names = {package for package, _, _ in _locked(_ROOT / "requirements" / "torch.txt")}
    assert not {name for name in names if name.startswith(("nvidia", "cuda", "triton", "torch"))}
