"""Pages that are written from the code, and links between pages."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from docs.generate import LIMIT_SETTINGS, PAGES
from rerankd.config.settings import Settings
from rerankd.engines import ENGINES
from rerankd.scorers import BLOCK_SCORERS, COMPARISON_SCORERS, GROUP_SCORERS, LIST_SCORERS, SCORERS, VECTOR_SCORERS

_ROOT = Path(__file__).parents[2]
_SCORERS = [*SCORERS, *LIST_SCORERS, *GROUP_SCORERS, *VECTOR_SCORERS, *BLOCK_SCORERS, *COMPARISON_SCORERS]
_PAGES = [*_ROOT.glob("*.md"), *(_ROOT / "docs").rglob("*.md"), *(_ROOT / "models").rglob("*.md")]
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_generated_pages_are_up_to_date(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == PAGES[page](), "run: python -m docs.generate"


def test_every_setting_that_limits_a_request_is_on_the_page_of_limits() -> None:
    limiting = {name for name in Settings.model_fields if name.startswith("max_")}
    assert limiting <= set(LIMIT_SETTINGS) <= set(Settings.model_fields)


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = _LINK.findall(page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    """Files of the code; CHANGELOG names those of its day."""
    named = re.findall(
        r"`((?:app|tests|docs|loadtest|models|deploy|scripts)/[\w/.-]+)`", page.read_text(encoding="utf-8")
    )
    named = [] if page.name == "CHANGELOG.md" else named
    assert [path for path in named if not (_ROOT / path).exists()] == []


def test_the_map_of_the_code_names_every_room() -> None:
    rooms = {path.parent.name for path in (_ROOT / "app" / "rerankd").glob("*/__init__.py")}
    described = re.findall(r"^      (\w+)/ ", (_ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(described) == sorted(rooms)


def test_modules_of_the_reference_exist() -> None:
    page = (_ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    named = re.findall(r"^::: (\S+)$", page, re.MULTILINE)
    assert len(named) > 8
    assert [name for name in named if find_spec(name) is None] == []


def test_the_tests_that_hold_the_threat_models_promises_exist() -> None:
    page = (_ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/.]+)`", page)
    assert len(named) > 8
    assert [path for path in named if not (_ROOT / path).exists()] == []


@pytest.mark.parametrize(("page", "names"), [("configuration.md", [*_SCORERS, *ENGINES]), ("glossary.md", _SCORERS)])
def test_every_scorer_and_engine_is_on_the_pages_that_list_them(page: str, names: list[str]) -> None:
    text = (_ROOT / "docs" / page).read_text(encoding="utf-8")
    assert [name for name in names if f"`{name}`" not in text] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "others"),
    [("a dialect", ["tests/api/test_openapi.py", "tests/api/test_ops.py"]), ("a scorer with a new task", [])],
)
def test_the_example_of_an_extension_applies_and_its_tests_pass(
    tmp_path: Path, example: str, others: list[str]
) -> None:
    page = (_ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (diff,) = re.findall(rf"^## Example: {example}.*?```diff\n(.*?)```", page, re.DOTALL | re.MULTILINE)
    for folder in ("app", "tests", "models"):
        ignored = shutil.ignore_patterns("__pycache__", "recipes")
        shutil.copytree(_ROOT / folder, tmp_path / folder, symlinks=True, ignore=ignored)
    shutil.copy(_ROOT / "pyproject.toml", tmp_path)
    subprocess.run(["git", "apply", "--verbose", "-"], input=diff, text=True, cwd=tmp_path, check=True)
    written = [path for path in re.findall(r"^\+\+\+ b/(\S+)", diff, re.MULTILINE) if path.startswith("tests/")]
    tests = [*written, *others]
    environment = {
        "PATH": str(Path(sys.executable).parent),
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "app"), str(tmp_path)]),
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
