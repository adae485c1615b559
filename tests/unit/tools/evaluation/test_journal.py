"""What an interrupted evaluation leaves is found again, and nothing else is."""

from pathlib import Path

import pytest

from rerankd.domain import RerankRequest, ScoreOptions
from rerankd.errors import ConfigError
from rerankd.tools.evaluation.journal import Journal, answer_key
from rerankd.tools.evaluation.targets import Answer

_ANSWER = Answer([1, 0], [0.1 + 0.2, 1e-9], 0.25, [-1.5, 1e-9])
_REQUEST = RerankRequest(query="q", documents=["a", "b"])


def test_answers_are_found_again_exactly(tmp_path: Path) -> None:
    path = tmp_path / "state.jsonl"
    with Journal(path, fresh=False) as journal:
        journal.add("k", _ANSWER)
    with Journal(path, fresh=False) as journal:
        assert "k" in journal
        assert "other" not in journal
        assert journal["k"] == _ANSWER


def test_a_torn_line_is_cut_off_and_the_file_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "state.jsonl"
    with Journal(path, fresh=False) as journal:
        journal.add("k", _ANSWER)
    with path.open("ab") as file:
        file.write(b'{"key": "half')
    with Journal(path, fresh=False) as journal:
        journal.add("l", _ANSWER)
    with Journal(path, fresh=False) as journal:
        assert journal["k"] == journal["l"] == _ANSWER


def test_fresh_forgets(tmp_path: Path) -> None:
    path = tmp_path / "state.jsonl"
    with Journal(path, fresh=False) as journal:
        journal.add("k", _ANSWER)
    with Journal(path, fresh=True) as journal:
        assert "k" not in journal


def test_without_a_file_answers_are_remembered() -> None:
    with Journal(None, fresh=False) as journal:
        journal.add("k", _ANSWER)
        assert journal["k"] == _ANSWER


def test_another_file_is_not_taken_for_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "state.jsonl"
    path.write_text("hello\n")
    with pytest.raises(ConfigError, match=r"state.jsonl:1 .*--fresh"):
        Journal(path, fresh=False)


@pytest.mark.parametrize(
    ("identity", "request_"),
    [
        ({"model": "b"}, _REQUEST),
        ({"model": "a"}, RerankRequest(query="other", documents=["a", "b"])),
        ({"model": "a"}, RerankRequest(query="q", documents=["a"])),
        ({"model": "a"}, RerankRequest(query="q", documents=["b", "a"])),
        ({"model": "a"}, RerankRequest(query="q", documents=["a", "b"], options=ScoreOptions(max_tokens_per_doc=9))),
    ],
    ids=["target", "query", "depth", "order", "truncation"],
)
def test_whatever_changes_an_answer_changes_its_key(identity: dict[str, str], request_: RerankRequest) -> None:
    assert answer_key(identity, request_) != answer_key({"model": "a"}, _REQUEST)
    assert answer_key({"model": "a"}, _REQUEST) == answer_key({"model": "a"}, _REQUEST)
