"""What the suite itself must get right: a failed installation is a reason, a failed case is seen and shown."""

import sys

import pytest

from tests.conformance.cases import CASES, DOCUMENTS, NotRefused
from tests.conformance.install import InstallFailed, _run
from tests.conformance.protocol import Client, Rank, Ranked, Target
from tests.conformance.suite import Outcome, notes, rows

_TARGET = Target("http://127.0.0.1:1", "key", "model")


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("/no/such/program",), "No such file"),
        ((sys.executable, "-c", "raise SystemExit('the index cannot be reached')"), "the index cannot be reached"),
    ],
)
def test_an_installation_that_fails_says_why(command: tuple[str, ...], reason: str) -> None:
    with pytest.raises(InstallFailed, match=reason):
        _run(*command)


def _client(rank: Rank, **differences: object) -> Client:
    return Client("fake", rank, (ConnectionError,), "1", **differences)  # type: ignore[arg-type]


def _answers(indexes: list[int]) -> Rank:
    return lambda *_: [Ranked(index, -index) for index in indexes]


def _fails(error: Exception) -> Rank:
    def rank(*_: object) -> list[Ranked]:
        raise error

    return rank


@pytest.mark.parametrize(
    ("case", "rank"),
    [
        ("right document first", _answers([0, 1, 2, 3])),
        ("right document first", _answers([1])),
        ("right document first", _answers([])),
        ("top_n", _answers([1, 0])),
        ("blank document", _answers([2, 1, 0])),
        ("documents returned", _answers([1, 0, 2, 3])),
        ("wrong key", _fails(ConnectionError("something went wrong"))),
        ("overload", _fails(ConnectionError(""))),
        ("no documents", _answers([0])),
    ],
)
def test_a_client_that_is_wrong_fails(case: str, rank: Rank) -> None:
    with pytest.raises(AssertionError):
        CASES[case](_client(rank), _TARGET)


@pytest.mark.parametrize("case", ["wrong key", "unknown model", "overload"])
def test_an_answer_where_there_should_be_none_fails(case: str) -> None:
    with pytest.raises(NotRefused):
        CASES[case](_client(_answers(list(range(len(DOCUMENTS))))), _TARGET)


def test_an_exception_that_is_not_the_clients_own_fails() -> None:
    with pytest.raises(KeyError):
        CASES["wrong key"](_client(_fails(KeyError("API key is not valid"))), _TARGET)


def test_a_message_that_a_client_throws_away_is_excused_where_that_is_known() -> None:
    CASES["wrong key"](_client(_fails(ConnectionError("?")), hides={"wrong key": "it does"}), _TARGET)


def test_the_table_has_a_line_for_each_client_and_a_note_for_each_gap() -> None:
    found = [Outcome("c", "1.2", case, "ok", "", 0.1) for case in CASES if case not in ("objects", "overload", "top_n")]
    found += [
        Outcome("c", "1.2", "objects", "n/a", "it has texts only", 0.0),
        Outcome("c", "1.2", "overload", "silent", "it reads no body", 0.0),
        Outcome("c", "1.2", "top_n", "failed", "trace", 0.0),
    ]
    (row,) = rows(found)
    assert row == "| c | 1.2 | ✓ | ✗ | ✓ | ✓ | - | ✓ | ✓ | ✓ | ✓ | (✓) |"
    assert notes(found) == ["- *objects*, c: it has texts only.", "- *overload*, c: it reads no body."]
