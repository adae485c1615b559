"""Lists every text of the code that a user reads, to be read once in a row: `python -m docs.words [FILTER]`.

Errors, log lines, help texts, descriptions of settings and fields, and what commands print, found in the syntax tree of
`app/`. A test holds the rules that a machine can check.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
_LOG_METHODS: Final = {"debug", "info", "warning", "error", "exception"}
_HELP_KEYWORDS: Final = {"help", "epilog", "short_help"}
_DESCRIPTIONS: Final = {"description"}
_ERROR: Final = re.compile(
    r"(Error|Invalid\w*|Unauthorized|NotFound|NotReady|Overloaded|Limited|Exceeded|Failed|TooLarge|TooSlow|Unavailable|Unreachable|Lost|Exit)$"
)
_FUNCTIONS_OF_ERRORS: Final = {"_complain", "missing", "_refuse", "refuse", "plain_error"}
_LONGEST_VALUE: Final = 30
_WORDS: Final = re.compile(r"[A-Za-z]{2,}.* .*[A-Za-z]{2,}")


@dataclass(frozen=True, slots=True)
class Text:
    """What a user may read, with `{...}` where values are filled in."""

    place: str
    kind: str
    text: str


def texts(folder: Path = ROOT / "app" / "rerankd") -> list[Text]:
    """Every text below a folder, in the order of its files."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        place = path.relative_to(folder.parent).as_posix()
        found += [Text(f"{place}:{line}", kind, text) for line, kind, text in sorted(set(_of_module(tree)))]
    return found


def _of_module(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from _of_call(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _is_command(node):
            yield node.lineno, "help", " ".join((ast.get_docstring(node) or "").split())
        elif isinstance(node, ast.Return) and node.value is not None and _rendered(node.value).count(" ") > 3:
            yield node.lineno, "said", _rendered(node.value)


def _of_call(call: ast.Call) -> Iterator[tuple[int, str, str]]:
    name = _name(call.func)
    for argument in call.args[:1]:
        text = _rendered(argument)
        if isinstance(call.func, ast.Attribute) and name in _LOG_METHODS and _name(call.func.value) == "logger":
            yield call.lineno, f"log {name}", text
        elif (_ERROR.search(name) or name in _FUNCTIONS_OF_ERRORS) and _WORDS.search(text):
            yield call.lineno, "error", text
        elif name in ("print", "echo") and _WORDS.search(text):
            yield call.lineno, "printed", text
    for keyword in call.keywords:
        kind = "help" if keyword.arg in _HELP_KEYWORDS else "description" if keyword.arg in _DESCRIPTIONS else None
        kind = kind or ("error" if keyword.arg in ("message", "reason") and name != "filterwarnings" else None)
        text = _rendered(keyword.value)
        if kind and _WORDS.search(text):
            yield call.lineno, kind, " ".join(text.split())


def _is_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(
        "command" in ast.dump(decorator) and "cli" in ast.dump(decorator) for decorator in function.decorator_list
    )


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _rendered(node: ast.expr) -> str:
    """A text as it is written, with a name in braces for each value; empty for anything else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(
            _rendered(part) if isinstance(part, ast.Constant) else f"{{{_shortest(part)}}}" for part in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _rendered(node.left) + _rendered(node.right)
    if isinstance(node, ast.IfExp):
        return f"{_rendered(node.body)} | {_rendered(node.orelse)}".strip(" |")
    return ""


def _shortest(part: ast.expr) -> str:
    value = part.value if isinstance(part, ast.FormattedValue) else part
    written = ast.unparse(value)
    return written if len(written) < _LONGEST_VALUE else _name(value) or "..."


def main() -> None:
    """Print the texts, those that hold the word of the command line alone."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    for text in texts():
        if wanted in f"{text.place} {text.kind} {text.text}":
            print(f"{text.place}  [{text.kind}]\n    {text.text}")  # noqa: T201 - its purpose


if __name__ == "__main__":
    main()
