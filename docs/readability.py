"""Measures the sentences of pages: `python -m docs.readability [PAGE ...]` prints a table, and every long sentence.

Paragraphs and list items are prose. Table cells may not hold long sentences either, but do not count for the mean: most
of them are fragments. Blocks of code, comments and the targets of links are left out.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
MOST_WORDS: Final = 40
# The first sentence of a page says what its reader can do then.
OPENING: Final = re.compile(r"After reading this page you (can|know) ")

_FENCE: Final = re.compile(r"^( *)(```|~~~).*?^\1\2[ \t]*$", re.MULTILINE | re.DOTALL)
_COMMENT: Final = re.compile(r"<!--.*?-->", re.DOTALL)
_DIRECTIVE: Final = re.compile(r"^::: .*(?:\n +.*)*", re.MULTILINE)
_FRONT_MATTER: Final = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_CODE: Final = re.compile(r"`+[^`]+`+")
_LINK: Final = re.compile(r"!?\[([^\]]*)\]\([^)]*\)|<https?:[^>]*>")
_ITEM: Final = re.compile(r"^\s*(?:[-*+]|\d+\.) +")
_TABLE_RULE: Final = re.compile(r"^\|[-:| ]+\|$")
_SENTENCE_ENDS: Final = re.compile(r"(?<=[.!?])[)\"*_]*\s+(?=[\"(*_]*[A-Z0-9`])")
_WORD: Final = re.compile(r"[^\W_][\w'.,/%-]*")
_INDENTED: Final = "    "


@dataclass(slots=True)
class Page:
    """The sentences of a page, of its prose and of its tables' cells."""

    prose: list[str] = field(default_factory=list)
    cells: list[str] = field(default_factory=list)

    @property
    def mean_words(self) -> float:
        """Words of a sentence of prose, on average."""
        return sum(map(words, self.prose)) / max(1, len(self.prose))

    @property
    def too_long(self) -> list[str]:
        return [sentence for sentence in self.prose + self.cells if words(sentence) > MOST_WORDS]


def words(sentence: str) -> int:
    """How many words a sentence has; a piece of code is one."""
    return len(_WORD.findall(sentence))


def read(markdown: str) -> Page:
    """The sentences of a page of Markdown."""
    page = Page()
    for block in _blocks(_without_code(markdown)):
        if block.startswith("|"):
            page.cells += [sentence for cell in block.strip("|").split("|") for sentence in _sentences(cell)]
        else:
            page.prose += _sentences(block)
    return page


def opening(markdown: str) -> str:
    """The first paragraph behind the page's title."""
    paragraphs = (block for block in _blocks(_without_code(markdown)) if not block.startswith("|"))
    return next(paragraphs, "")


def _without_code(markdown: str) -> str:
    for pattern in (_FRONT_MATTER, _FENCE, _COMMENT, _DIRECTIVE):
        markdown = pattern.sub("", markdown)
    return _CODE.sub("Code", _LINK.sub(lambda link: link[1] or "link", markdown))


def _blocks(markdown: str) -> Iterator[str]:
    """Each paragraph, item of a list and row of a table as one line, without headings and indented code."""
    block: list[str] = []
    in_list = False
    for line in [*markdown.splitlines(), ""]:
        is_item = _ITEM.match(line) is not None
        starts = is_item or line.startswith(("|", "#")) or not line.strip()
        if starts and block:
            yield " ".join(block)
            block = []
        in_list = is_item or (in_list and (not line.strip() or line.startswith(" ")))
        is_code = line.startswith(_INDENTED) and not in_list and not block
        if line.strip() and not line.startswith("#") and not is_code and not _TABLE_RULE.match(line):
            block.append(_ITEM.sub("", line).strip())


def _sentences(text: str) -> list[str]:
    return [sentence.strip() for sentence in _SENTENCE_ENDS.split(text) if words(sentence)]


def pages() -> list[Path]:
    """README, every page of docs/, and the pages that docs/ sends its readers to."""
    others = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "loadtest/README.md"]
    return [*(ROOT / name for name in others), *sorted((ROOT / "docs").rglob("*.md"))]


def main() -> None:
    """Print a row for each page, then the sentences that are too long."""
    found = {path: read(path.read_text(encoding="utf-8")) for path in map(Path, sys.argv[1:])}
    found = found or {path: read(path.read_text(encoding="utf-8")) for path in pages()}
    lines = ["| page | sentences | words a sentence | over 40 words |", "|---|---|---|---|"]
    for path, page in found.items():
        shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        lines.append(f"| {shown} | {len(page.prose)} | {page.mean_words:.1f} | {len(page.too_long)} |")
    lines += [f"\n{path.name}: {sentence}" for path, page in found.items() for sentence in page.too_long]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
