"""Corpora, queries and runs, plain and gzipped."""

import gzip
from pathlib import Path

import pytest

from rerankd.errors import ConfigError
from rerankd.tools.trec import Candidates, read_run, read_texts


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
def test_a_title_goes_before_the_text(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    content = '{"id": 1, "text": "b", "title": "A"}\n\n{"id": "x", "text": "ü", "title": ""}\n'
    path.write_bytes(gzip.compress(content.encode()) if name.endswith("gz") else content.encode())
    assert read_texts(path) == {"1": "A. b", "x": "ü"}


@pytest.mark.parametrize(
    "lines",
    ["q2 Q0 b 2 0.5 t\nq2 Q0 a 1 0.9 t\nq1 Q0 c 1 3 t\n", "q2\tb\t2\t0.5\nq2\ta\t1\t0.9\n\nq1\tc\t1\t3\n"],
)
def test_a_run_is_read_by_rank_whatever_the_order_of_its_lines(tmp_path: Path, lines: str) -> None:
    path = tmp_path / "run"
    path.write_text(lines)
    assert read_run(path) == [Candidates("q2", ["a", "b"], [0.9, 0.5]), Candidates("q1", ["c"], [3.0])]
    assert read_run(path, depth=1) == [Candidates("q2", ["a"], [0.9]), Candidates("q1", ["c"], [3.0])]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("q1 Q0 d 1", "rank 'd'"),
        ("q d one 0.5", "rank 'one'"),
        ("q d 1 high", "score 'high'"),
        ("q Q0 d\n", "6 columns"),
        ("a b c d e", "got 5"),
    ],
)
def test_a_malformed_run_names_its_line(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "run"
    path.write_text(content)
    with pytest.raises(ConfigError, match=complaint) as raised:
        read_run(path)
    assert ":1: " in str(raised.value)


@pytest.mark.parametrize("content", ["[1]", '{"id": 1}', "{", '"id text"'])
def test_a_malformed_object_names_its_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"id": 0, "text": ""}\n' + content)
    with pytest.raises(ConfigError, match=":2: "):
        read_texts(path)


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"no gzip"])
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / ("corpus.jsonl.gz" if content == b"no gzip" else "corpus.jsonl")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=path.name):
        read_texts(path)
