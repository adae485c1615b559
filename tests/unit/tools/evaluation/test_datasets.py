"""What a data folder may look like, and what is said about one that cannot be used."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rerankd.errors import ConfigError
from rerankd.tools.evaluation.datasets import DataSet, files_of_folder, read_data_set, read_grades

Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Writes a data folder: three documents (one titled), three queries, and the files given by name."""

    def write(**files: str) -> Path:
        corpus = [{"id": "d1", "text": "one", "title": "T"}, {"id": "d2", "text": "two"}, {"id": "d3", "text": "three"}]
        queries = [{"id": f"q{number}", "text": f"query {number}"} for number in (1, 2, 3)]
        (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in corpus))
        (tmp_path / "queries.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in queries))
        for name, text in files.items():
            (tmp_path / f"{name.replace('_', '.')}.tsv").write_text(text)
        return tmp_path

    return write


def _read(folder: Path, *, run: str | None = None, qrels: str | None = None, depth: int = 100) -> DataSet:
    return read_data_set(files_of_folder(folder, run=run, qrels=qrels), depth=depth)


_RUN = "q2\td2\t1\t9\nq2\td1\t2\t8\nq1\td3\t2\t1\nq1\td1\t1\t2\nq3\td1\t1\t5\n"


def test_questions_are_the_judged_queries_in_order_of_the_queries_file(folder: Folder) -> None:
    data_set = _read(folder(run_bm25=_RUN, qrels="q2\td1\t2\nq1\td3\t0\n"))
    assert [(question.query_id, list(question.document_ids)) for question in data_set.questions] == [
        ("q1", ["d1", "d3"]),
        ("q2", ["d2", "d1"]),
    ]
    assert [question.query_id for question in data_set.ranked] == ["q2"]
    assert data_set.unjudged == 1
    assert data_set.texts["d1"] == "T. one"


def test_depth_keeps_the_best_ranked(folder: Folder) -> None:
    data_set = _read(folder(run_bm25=_RUN, qrels="q1\td3\t1\n"), depth=1)
    assert list(data_set.questions[0].document_ids) == ["d1"]


def test_full_judgements_are_preferred_and_the_plain_ones_can_be_named(folder: Folder) -> None:
    data = folder(run_bm25=_RUN, qrels="q1\td1\t1\n", qrels_full="q1\td1\t3\n", qrels_val="q2\td1\t1\n")
    assert _read(data).questions[0].grades == {"d1": 3}
    assert _read(data, qrels="qrels").questions[0].grades == {"d1": 1}
    assert _read(data, qrels="val").questions[0].query_id == "q2"


def test_a_pool_is_taken_in_its_ranks_or_in_the_order_of_its_lines(folder: Folder) -> None:
    data = folder(candidates="q1\td2\t2\nq1\td1\t1\nq2\td3\nq2\td1\n", qrels="q1\td1\t1\nq2\td1\t1\n")
    data_set = _read(data)
    assert data_set.candidates == "candidates.tsv"
    assert [list(question.document_ids) for question in data_set.questions] == [["d1", "d2"], ["d3", "d1"]]


def test_bm25_is_preferred_to_other_runs_and_a_run_can_be_named(folder: Folder) -> None:
    data = folder(run_bm25=_RUN, run_other="q1\td2\t1\t1\n", candidates="q1\td3\n", qrels="q1\td1\t1\n")
    assert _read(data).candidates == "run.bm25.tsv"
    assert _read(data, run="other").candidates == "run.other.tsv"
    assert _read(data, run="candidates").candidates == "candidates.tsv"


def test_without_candidates_the_judged_pairs_are_the_set(folder: Folder) -> None:
    data_set = _read(folder(qrels="q1\td1\t1\nq1\td2\t0\n"), depth=1)
    assert data_set.candidates is None
    assert list(data_set.questions[0].document_ids) == ["d1", "d2"]
    assert list(data_set.ranked) == []


def test_gzipped_files_are_read(folder: Folder) -> None:
    data = folder(run_bm25=_RUN, qrels="q1\td1\t1\n")
    for path in list(data.iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert _read(data).candidates == "run.bm25.tsv.gz"


@pytest.mark.parametrize(
    ("files", "options", "complaint"),
    [
        ({"run_bm25": _RUN}, {}, "has no qrels.tsv"),
        ({"run_bm25": _RUN, "qrels": ""}, {}, "holds no judgements"),
        ({"run_bm25": _RUN, "qrels": "q9\td1\t1\n"}, {}, "judges none of the queries"),
        ({"run_bm25": _RUN, "qrels": "q1\td1\n"}, {}, "qrels have 4 columns"),
        ({"run_bm25": _RUN, "qrels": "q1\td1\t1\nq1\td2\tx\n"}, {}, ":2: the grade 'x'"),
        ({"run_bm25": "q1\td9\t1\t1\n", "qrels": "q1\td1\t1\n"}, {}, "documents d9"),
        ({"run_a": _RUN, "run_b": _RUN, "qrels": "q1\td1\t1\n"}, {}, "choose one with --run: a, b"),
        (
            {"run_a": _RUN, "qrels": "q1\td1\t1\n"},
            {"run": "c"},
            "has no run.c.tsv (or run.c.tsv.gz); there is run.a.tsv",
        ),
        ({"run_a": _RUN, "qrels": "q1\td1\t1\n"}, {"qrels": "dev"}, "has no qrels.dev.tsv"),
        ({"candidates": "q1\n", "qrels": "q1\td1\t1\n"}, {}, "candidates.tsv:1"),
    ],
)
def test_an_unusable_folder_is_refused_with_the_way_out(
    folder: Folder, files: dict[str, str], options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError) as error:
        _read(folder(**files), **options)
    assert complaint in str(error.value)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no data folder .*nowhere"):
        files_of_folder(tmp_path / "nowhere", run=None, qrels=None)


@pytest.mark.parametrize(
    "text",
    ["q1 0 d1 2\n", "q1\td1\t2\n", "query-id\tcorpus-id\tscore\nq1\td1\t2\n"],
    ids=["trec", "three columns", "beir"],
)
def test_judgements_come_in_trec_or_three_columns_or_with_a_header(tmp_path: Path, text: str) -> None:
    path = tmp_path / "qrels.txt"
    path.write_text(text)
    assert read_grades(path) == {"q1": {"d1": 2}}
