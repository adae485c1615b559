"""No file of the repository uses words of our own where the field has one (docs/glossary.md)."""

import re
import subprocess
from pathlib import Path
from typing import Final

import pytest

from docs.readability import ROOT

# What separates words may be the end of a line, with the mark of a comment at the beginning of the next.
_GAP: Final = r"(?:[ \t]+|[ \t]*\n[ \t]*(?:#|//)?[ \t]*)"
_OLD: Final = {
    rf"\bso{_GAP}(?:many|much|few)\b": "say how many: 'at most this many'",
    rf"\b(?:let|lets|letting){_GAP}in\b": "admit",
    # tokenizers and transformers have processors of their own, and so have /proc/cpuinfo and `platform`
    r"(?<!post-)(?<!post_)(?<!platform\.)(?<!tokenizers\.)(?<!decoders, )(?<!models, )(?<!pre_tokenizers, )(?<!import )"
    r"\bprocessors?\b(?!\.\w+Processing|\\t|\\n| *\t?:)": "CPU",
    # a dot product is the field's word, a matrix product is a matmul
    r"(?<!dot )(?<!inner )(?<!tensor )(?<!itertools import )\bproducts\b": "matmuls",
    r"\bportions?\b": "chunk",
    r"\bfor some(?: in|,) ": "name what is taken",
    r"\b_?aside\(": "run_in_thread()",
    rf"\blet_go\b|\blet{_GAP}go{_GAP}of\b": "release",
    r"\bPlace\b|\b_Keeper\b|\bweigh_rows\b|\bRoom\b": "Ticket, ModelLoader, softmax_rows, Workspace",
    r"(?i)quantis": "quantize",
    r"(?i)tokenis": "tokenize",
    r"\banew\b": "again",
    rf"\bround(?:s|ed|ing)?{_GAP}(?:the{_GAP})?(?:weights|activations)\b": "quantize",
    r"(?:^|[.;:(] )Who(?:ever)?\b(?! wrote| is the)|\b[Ww]hoever\b|, who\b(?! wrote)": "name the client or the request",
}
_SUFFIXES: Final = {
    ".cfg",
    ".cpp",
    ".css",
    ".h",
    ".html",
    ".js",
    ".json",
    ".md",
    ".py",
    ".pyi",
    ".sh",
    ".toml",
    ".txt",
    ".yml",
}
# What says which words are old, and what others wrote: data, recorded answers, requirements of other servers.
_ALLOWED: Final = (
    "tests/unit/docs/test_words_of_the_field.py",
    "tests/unit/test_words.py",
    "models/minilm-qa/tokenizer.json",
    "tests/data/",
    "app/rerankd/tools/benchmark/workload.py",  # frequent words of English
    "requirements/",
    "LICENSE",
)


def _files() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [
        path
        for path in listed.split("\0")
        if (Path(path).suffix in _SUFFIXES or Path(path).name in ("Makefile", "Dockerfile"))
        and not path.startswith(_ALLOWED)
        and (ROOT / path).is_file()
    ]


@pytest.mark.parametrize(("pattern", "instead"), _OLD.items(), ids=_OLD.values())
def test_old_words_are_gone(pattern: str, instead: str) -> None:
    old = re.compile(pattern, re.MULTILINE)
    found = []
    for path in _files():
        text = (ROOT / path).read_text(encoding="utf-8")
        found += [f"{path}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}" for match in old.finditer(text)]
    assert not found, f"write {instead!r} instead of\n" + "\n".join(found)


def test_what_is_allowed_exists() -> None:
    assert [path for path in _ALLOWED if not (ROOT / path).exists()] == []
