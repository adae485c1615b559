"""Texts that a user reads keep the rules that a machine can check (`python -m docs.words`)."""

import re

import pytest

from docs.words import Text, texts

_ALL = texts()
_ERRORS = [text for text in _ALL if text.kind == "error"]
# Words at most, values counted as one each.
_LONGEST = {"error": 60, "help": 100, "description": 45, "said": 45, "printed": 40}
_LONGEST_LOG_LINE = 40

_STUMBLES = {
    r"\b(?<!there )(is|are) no (?!longer|need|such)[a-z]": "write what it is not: 'is not a ...'",
    r"\bso (many|much|few)\b": "say how many: 'at most this many'",
    r"(^|[.;:] )Who\b|\bwho (is|has|asks|comes)\b": "name the client, the request or the user",
    r"\blet in\b": "'admitted'",
    r"(?<!post-)\bprocessors?\b": "'CPU'",
    r"\bquantis": "'quantize'",
    r"\banew\b": "'again'",
    r"\bround(s|ed)? (the )?weights|\brounded weights": "'quantize'",
    r"\bwants an?\b": "'needs'",
    r"\bgoes on\b|\bgo on (where|from)\b": "'continues'",
    r"\bgiven up for\b": "say what happens instead",
    r"\bhas no place for\b": "'does not take'",
    r"\bstands? (above|before|in|outside)\b": "'is'",
    r"!": "no exclamation marks",
    r"\b(please|sorry|oops)\b": "no courtesies",
}
# What only a programmer can have caused, or what a reader has no way out of but the log.
_NO_WAY_OUT = re.compile(
    r"^(unexpected|the application (began|sent)|header \{|the answer (is|has)|no answer within|Redis |the engine |"
    r"the connection was|the service is shutting|it |they |this kind|.*failed|.*is being stopped|API keys|"
    r"the model's score|can(not|'t) |must |.*was raised in a worker|killing|could not)"
)
_WAY_OUT = re.compile(
    r"[;:?(,]|\b(must|at most|not|before|only|without|unset|needs?|instead|either|both|is limited|may (have|send|be))\b"
)


def _shown(found: list[Text]) -> str:
    return "\n".join(f"{text.place} [{text.kind}] {text.text}" for text in found)


def test_the_list_holds_errors_log_lines_help_and_descriptions() -> None:
    kinds = {text.kind for text in _ALL}
    assert {"error", "help", "description", "log info", "log warning", "log exception", "printed", "said"} <= kinds
    assert len(_ALL) > 500
    assert any(text.text.startswith("port {port} is in use; choose another") for text in _ALL)


@pytest.mark.parametrize(("pattern", "instead"), _STUMBLES.items(), ids=_STUMBLES.values())
def test_no_text_makes_a_reader_stumble(pattern: str, instead: str) -> None:
    found = [text for text in _ALL if re.search(pattern, re.sub(r"\{[^{}]*\}", "{}", text.text))]
    assert not found, f"{instead}\n{_shown(found)}"


def test_no_text_is_too_long() -> None:
    found = [text for text in _ALL if len(text.text.split()) > _LONGEST.get(text.kind, _LONGEST_LOG_LINE)]
    assert not found, _shown(found)


def test_errors_say_more_than_what_went_wrong() -> None:
    found = [text for text in _ERRORS if not _WAY_OUT.search(text.text) and not _NO_WAY_OUT.search(text.text)]
    assert not found, _shown(found)


def test_errors_and_log_lines_end_without_a_full_stop_and_begin_alike() -> None:
    found = [
        text
        for text in _ALL
        if text.kind == "error" and re.search(r"[a-z]\.$", text.text) and text.text.count(". ") == 0
    ]
    assert not found, _shown(found)


def test_descriptions_and_help_are_sentences() -> None:
    found = [text for text in _ALL if text.kind == "description" and not text.text.rstrip().endswith((".", "`", "}"))]
    assert not found, _shown(found)
