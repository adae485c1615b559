"""Every command that the documentation tells somebody to type exists, with its options; README's are run
(tests/integration/test_readme.py).
"""

import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from rerankd import engines
from rerankd.cli import cli

_ROOT = Path(__file__).resolve().parents[2]
_PAGES = [
    path
    for pattern in ("*.md", "docs/**/*.md", "models/**/*.md", "loadtest/*.md", "deploy/**/*.md")
    for path in sorted(_ROOT.glob(pattern))
    if path.name != "CHANGELOG.md"
]
_PROGRAMS = ("make", "rerankd", "pip", "python", ".venv/bin/pip", ".venv/bin/python", ".venv/bin/rerankd")


def _snippets(text: str) -> Iterator[str]:
    """Indented lines, continued ones joined, and what stands in backquotes."""
    yield from re.findall(r"^ {4,}(.+)$", text.replace("\\\n", " "), re.MULTILINE)
    yield from (" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text))
    yield from re.findall(r"# (make [^()\n]+)", text, re.MULTILINE)


def _commands(*programs: str) -> list[tuple[str, list[str]]]:
    found = []
    for page in _PAGES:
        for snippet in _snippets(page.read_text(encoding="utf-8")):
            first = snippet.split(" ", 1)[0]
            if first in programs and " " in snippet and "..." not in snippet:
                words = shlex.split(snippet, comments=True)
                found.append((f"{page.relative_to(_ROOT)}: {' '.join(words)}", words[1:]))
    return list(dict(found).items())


def _each(name: str, *programs: str) -> pytest.MarkDecorator:
    commands = _commands(*programs)
    return pytest.mark.parametrize(name, [words for _, words in commands], ids=[shown for shown, _ in commands])


def test_the_documentation_has_commands() -> None:
    for program, at_least in {"make": 10, "rerankd": 15, "pip": 1, "python": 3}.items():
        assert len(_commands(program, f".venv/bin/{program}")) >= at_least, program


@_each("words", "make")
def test_make_has_the_targets(words: list[str]) -> None:
    """`make -n` prints what it would do. An assignment that `make` did not read would be of no use."""
    makefile = (_ROOT / "Makefile").read_text(encoding="utf-8")
    words = [word for word in words if word != "sure"]
    for word in words:
        name, is_assignment, _ = word.partition("=")
        if is_assignment:
            assert f"$({name})" in makefile, word
    done = subprocess.run(["make", "-n", *words], cwd=_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@_each("words", "rerankd", ".venv/bin/rerankd")
def test_the_command_line_takes_the_words(words: list[str]) -> None:
    words = [word for word in takewhile(lambda word: not word.startswith(">"), words) if word != "&"]
    command = typer.main.get_command(cli)
    assert isinstance(command, TyperGroup)
    name, arguments = words[0], words[1:]
    if name.startswith("--"):
        assert any(name in parameter.opts for parameter in command.params) or name == "--help"
        return
    assert name in command.commands
    subcommand = command.commands[name]
    try:
        subcommand.make_context(name, list(arguments))
    except Exception as error:
        # Prose names options without the arguments that belong to them.
        if type(error).__name__ != "MissingParameter":
            raise


@_each("words", "pip", ".venv/bin/pip")
def test_pip_is_told_the_versions_and_the_extras_exist(words: list[str]) -> None:
    """An installed rerankd has no file of versions beside it."""
    known = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    of_a_checkout = words[0] == "install" and not any(re.match(r"locust|rerankd|dist/", word) for word in words)
    if of_a_checkout:
        assert words[words.index("-c") + 1] == "constraints.txt" if "-c" in words else "--verbose" in words
    for word in words:
        for extras in re.findall(r"\[([\w,]+)\]", word):
            assert set(extras.split(",")) <= set(known), word


@_each("words", "python", ".venv/bin/python")
def test_modules_that_are_run_exist(words: list[str]) -> None:
    if words[0] == "-m":
        assert find_spec(words[1]) is not None, words[1]


def test_pages_and_messages_name_only_extras_that_exist() -> None:
    known = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    files = [*_PAGES, _ROOT / "Makefile", *(_ROOT / "app" / "rerankd").rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    lists = [*re.findall(r"EXTRAS=([a-z,]+)", text), *re.findall(r"rerankd\[([a-z,]+)\]", text)]
    commands = re.findall(r"\bneeding_extra\(\"([a-z]+)\"\)", text)
    assert {"eval", "bench", "export"} <= set(commands)
    assert {*",".join(lists).split(","), *commands, *engines._EXTRAS.values()} <= set(known)
