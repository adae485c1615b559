"""`rerankd rank`: files through the service's own pipeline, resumable, nothing lost."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from rerankd.cli import cli
from rerankd.errors import ConfigError

Rank = Callable[..., Result]

_REQUESTS: list[dict[str, Any]] = [
    {"id": "a", "query": "reranking documents", "documents": ["a list of documents", "the weather", "reranking"]},
    {"query": "one", "documents": [{"text": "only this", "id": 7}], "top_n": 1},
    {"id": "c", "query": "blank", "documents": [" ", "text"], "model": "other"},
    {"id": "d", "query": "more", "documents": ["x y", "z"] * 20, "top_n": 3},
]


@pytest.fixture
def rank(tmp_path: Path, tiny_model: Path) -> Rank:
    """Runs the command on a registry of two names for the tiny model and one that cannot be loaded."""
    registry = tmp_path / "registry.toml"
    tables = [("tiny", tiny_model), ("other", tiny_model), ("broken", tmp_path / "nowhere")]
    registry.write_text("\n".join(f'[[model]]\nname = "{name}"\npath = "{path}"' for name, path in tables))

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(cli, ["rank", *map(str, arguments), "--registry", str(registry)])

    return run


def _write(path: Path, entries: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_request_gets_one_answer_in_order(tmp_path: Path, rank: Rank) -> None:
    output = tmp_path / "answers.jsonl"
    result = rank(_write(tmp_path / "requests.jsonl", _REQUESTS), output)
    answers = _read(output)
    assert result.exit_code == 0, result.output
    assert [answer.get("id") for answer in answers] == ["a", None, "c", "d"]
    assert [answer["model"] for answer in answers] == ["tiny", "tiny", "other", "tiny"]
    assert [len(answer["results"]) for answer in answers] == [3, 1, 2, 3]
    blank = answers[2]["results"]
    assert blank[-1] == {"index": 0, "relevance_score": 0.0}


@pytest.mark.parametrize("kept", [0, 1, 3, 4])
@pytest.mark.parametrize("torn", ["", '{"id": "half'])
def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, rank: Rank, kept: int, torn: str) -> None:
    requests, output = _write(tmp_path / "requests.jsonl", _REQUESTS), tmp_path / "answers.jsonl"
    rank(requests, output)
    whole = output.read_text()
    output.write_text("".join(whole.splitlines(keepends=True)[:kept]) + torn)
    assert rank(requests, output).exit_code == 0
    assert output.read_text() == whole


def test_a_request_that_cannot_be_answered_keeps_its_line_and_fails_the_command(tmp_path: Path, rank: Rank) -> None:
    output = tmp_path / "answers.jsonl"
    requests = [_REQUESTS[0], {"id": "b", "query": " ", "documents": ["x"]}, _REQUESTS[3]]
    result = rank(_write(tmp_path / "requests.jsonl", requests), output)
    answers = _read(output)
    assert result.exit_code == 1
    assert [answer.get("error_type") for answer in answers] == [None, "invalid_request", None]


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ({"query": "q"}, "documents"),
        ({"query": 1, "documents": ["d"]}, "query must be a string"),
        ({"query": "q", "documents": [{"body": "d"}]}, "objects with a text"),
        ({"query": "q", "documents": [1]}, "documents strings"),
    ],
)
def test_a_malformed_request_names_its_line(tmp_path: Path, rank: Rank, entry: dict[str, Any], complaint: str) -> None:
    result = rank(_write(tmp_path / "requests.jsonl", [_REQUESTS[0], entry]), tmp_path / "answers.jsonl")
    assert isinstance(result.exception, ConfigError)
    assert ":2: " in str(result.exception)
    assert complaint in str(result.exception)


def test_answers_of_another_file_are_not_continued(tmp_path: Path, rank: Rank) -> None:
    output = tmp_path / "answers.jsonl"
    rank(_write(tmp_path / "requests.jsonl", _REQUESTS), output)
    result = rank(_write(tmp_path / "fewer.jsonl", _REQUESTS[:2]), output)
    assert isinstance(result.exception, ConfigError)
    assert "delete it to start again" in str(result.exception)


def test_a_model_that_cannot_be_loaded_stops_the_command_with_its_name(tmp_path: Path, rank: Rank) -> None:
    requests = _write(tmp_path / "requests.jsonl", _REQUESTS[:1])
    result = rank(requests, tmp_path / "answers.jsonl", "--model", "broken")
    assert "broken" in str(result.exception)
    result = rank(requests, tmp_path / "answers.jsonl", "--model", "nix")
    assert "unknown model nix" in str(result.exception)


@pytest.fixture
def experiment(tmp_path: Path) -> list[object]:
    """A run of two queries over five documents, as the command's arguments."""
    corpus = [{"id": f"d{number}", "text": f"document number {number}", "title": "T"} for number in range(5)]
    queries = [{"id": "q1", "text": "number one"}, {"id": "q2", "text": "documents"}]
    run = tmp_path / "run.trec"
    run.write_text("".join(f"q{query} Q0 d{n} {n + 1} {5 - n} bm25\n" for query in (1, 2) for n in range(5)))
    return [
        run,
        tmp_path / "reranked.trec",
        "--corpus",
        _write(tmp_path / "corpus.jsonl", corpus),
        "--queries",
        _write(tmp_path / "queries.jsonl", queries),
    ]


def test_a_run_is_reranked_into_a_run(rank: Rank, experiment: list[object], tmp_path: Path) -> None:
    assert rank(*experiment).exit_code == 0
    rows = [line.split() for line in (tmp_path / "reranked.trec").read_text().splitlines()]
    assert [row[0] for row in rows] == ["q1"] * 5 + ["q2"] * 5
    assert {row[2] for row in rows[:5]} == {f"d{number}" for number in range(5)}
    assert [row[3] for row in rows[:5]] == ["1", "2", "3", "4", "5"]
    scores = [float(row[4]) for row in rows[:5]]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("kept_lines", [0, 3, 5, 7, 10])
def test_an_interrupted_run_of_a_run_goes_on_at_the_query(
    rank: Rank, experiment: list[object], tmp_path: Path, kept_lines: int
) -> None:
    output = tmp_path / "reranked.trec"
    rank(*experiment)
    whole = output.read_text()
    output.write_text("".join(whole.splitlines(keepends=True)[:kept_lines]))
    assert rank(*experiment).exit_code == 0
    assert output.read_text() == whole


def test_a_run_of_another_depth_is_not_continued(rank: Rank, experiment: list[object]) -> None:
    rank(*experiment)
    result = rank(*experiment, "--depth", 2)
    assert "delete it to start again" in str(result.exception)


def test_a_run_that_names_unknown_texts_is_refused(rank: Rank, experiment: list[object], tmp_path: Path) -> None:
    (tmp_path / "run.trec").write_text("q1 Q0 d9 1 1 t\n")
    assert "d9" in str(rank(*experiment).exception)
    (tmp_path / "run.trec").write_text("q9 Q0 d1 1 1 t\n")
    assert "q9" in str(rank(*experiment).exception)


def test_a_run_needs_both_corpus_and_queries(rank: Rank, experiment: list[object]) -> None:
    assert "both --corpus and --queries" in str(rank(*experiment[:4]).exception)


@pytest.mark.parametrize("content", ["", "\n", "\n \n\n"])
def test_a_file_without_requests_is_no_mistake(tmp_path: Path, rank: Rank, content: str) -> None:
    source, output = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    source.write_text(content)
    result = rank(source, output)
    assert (result.exit_code, output.read_text()) == (0, "")
    assert f"{source} has no requests" in result.output


def test_an_unknown_model_fails_its_own_request_only(tmp_path: Path, rank: Rank) -> None:
    output = tmp_path / "answers.jsonl"
    requests = [_REQUESTS[0], _REQUESTS[1] | {"id": "b", "model": "nope"}, _REQUESTS[2]]
    result = rank(_write(tmp_path / "requests.jsonl", requests), output)
    assert result.exit_code == 1
    answers = _read(output)
    assert [answer.get("error_type") for answer in answers] == [None, "model_not_found", None]
    assert answers[1]["error"] == "unknown model 'nope'; known: tiny, other, broken"
    result = rank(_write(tmp_path / "requests.jsonl", requests[1:2]), tmp_path / "others.jsonl")
    assert [answer["error_type"] for answer in _read(tmp_path / "others.jsonl")] == ["model_not_found"]


def test_an_unknown_model_of_the_command_is_refused_at_once(tmp_path: Path, rank: Rank) -> None:
    output = tmp_path / "answers.jsonl"
    result = rank(_write(tmp_path / "requests.jsonl", _REQUESTS), output, "--model", "nope")
    assert isinstance(result.exception, ConfigError)
    assert "unknown model nope; known: tiny, other, broken" in str(result.exception)
    assert not output.exists()
