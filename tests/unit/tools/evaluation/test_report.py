"""From orders to rows, tables, Markdown and a picture, on sets small enough to check by hand."""

from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest
from PIL import Image
from rich.console import Console

from rerankd.errors import ConfigError
from rerankd.tools.evaluation.datasets import DataSet, Question
from rerankd.tools.evaluation.pictures import draw
from rerankd.tools.evaluation.report import Depths, Report, build_report
from rerankd.tools.evaluation.tables import markdown, notes, terminal_tables
from rerankd.tools.evaluation.targets import FIRST_STAGE, Answer

_DOCUMENTS = [f"d{number}" for number in range(6)]


def _data_set(name: str, relevant: Sequence[str | None], *, candidates: str | None = "run.bm25.tsv") -> DataSet:
    """One question for each relevant document (None: it has none); every question has all documents as candidates."""
    questions = [
        Question(f"q{number}", "text", _DOCUMENTS, {"d0": 0, "d1": 0} | ({document: 1} if document else {}))
        for number, document in enumerate(relevant)
    ]
    return DataSet(
        name=name, questions=questions, texts={}, candidates=candidates, judgements="qrels.tsv", unjudged=2, level=1
    )


def _answers(data_set: DataSet, order: Sequence[int], *, seconds: float) -> dict[str, Answer]:
    scores = [1 - rank / 10 for rank in range(len(order))] if seconds else []
    return {question.query_id: Answer(order, scores, seconds) for question in data_set.questions}


def _report(*data_sets: DataSet, baseline: str = FIRST_STAGE, curve: Sequence[int] = ()) -> Report:
    """The first stage, and a target that turns every order round."""
    rankings = {
        FIRST_STAGE: {data_set.name: _answers(data_set, range(6), seconds=0) for data_set in data_sets},
        "reverse": {data_set.name: _answers(data_set, range(6)[::-1], seconds=0.5) for data_set in data_sets},
    }
    depths = Depths(main=6, curve=curve)
    return build_report(data_sets, rankings, baseline=baseline, depths=depths, details={"date": "today"})


def test_a_row_says_quality_difference_and_speed() -> None:
    first, reverse = _report(_data_set("a", ["d5"] * 12)).sets[0].rows
    assert first.target == FIRST_STAGE
    assert first.measures["RR@10"].mean == pytest.approx(1 / 6)
    assert (first.against_baseline, first.speed, first.auc) == ({}, None, None)
    assert reverse.measures["P@1"].mean == 1
    assert reverse.against_baseline["RR@10"].mean == pytest.approx(5 / 6)
    assert reverse.against_baseline["RR@10"].p < 0.01
    assert reverse.speed is not None
    assert (reverse.speed.p50_ms, reverse.speed.queries_per_s, reverse.speed.pairs_per_s) == (500, 2, 12)
    assert reverse.auc == 1
    assert reverse.per_query["P@1"] == {f"q{number}": 1 for number in range(12)}


def test_the_baseline_can_be_another_target() -> None:
    report = _report(_data_set("a", ["d5"]), baseline="reverse")
    first, reverse = report.sets[0].rows
    assert first.against_baseline["P@1"].mean == -1
    assert reverse.against_baseline == {}
    with pytest.raises(ConfigError, match="'nix' is not evaluated; known: first-stage, reverse"):
        _report(_data_set("a", ["d5"]), baseline="nix")


def test_questions_without_a_relevant_document_are_left_out_and_counted() -> None:
    report = _report(_data_set("a", ["d5", None, "d0"]))
    assert (report.sets[0].queries, report.sets[0].without_relevant) == (2, 1)
    assert report.sets[0].rows[1].measures["P@1"].mean == 0.5
    assert notes(report) == [
        "a: 2 queries without a judgement left out; 1 queries without a relevant document left out"
    ]


def test_the_mean_counts_every_set_the_same() -> None:
    report = _report(_data_set("a", ["d5"] * 3), _data_set("b", ["d0"]))
    assert [row.target for row in report.means] == [FIRST_STAGE, "reverse"]
    assert report.means[1].measures["P@1"].mean == 0.5
    assert report.means[1].against_baseline["P@1"].mean == 0
    assert not _report(_data_set("a", ["d5"])).means


def test_judged_pairs_have_an_auc_and_stay_out_of_the_mean() -> None:
    pairs = _data_set("pairs", ["d0", None], candidates=None)
    report = _report(_data_set("a", ["d5"]), pairs)
    assert report.averaged == ["a"]
    assert not report.means
    row = report.sets[1].rows[1]
    assert row.measures == {}
    assert row.auc == pytest.approx(1 / 6)  # d0 is behind d1 in q0; its score ties with the d0 of q1


def test_the_depth_curve_reranks_only_the_first_candidates() -> None:
    report = _report(_data_set("a", ["d1"]), curve=[1, 2, 6])
    curve = {point.depth: point.measures["RR@10"] for point in report.sets[0].rows[1].curve}
    assert curve == {1: 0, 2: 1, 6: pytest.approx(1 / 5)}


def test_the_depth_of_the_measures_is_not_that_of_the_curve() -> None:
    data_set = _data_set("a", ["d1"])
    rankings = {FIRST_STAGE: {"a": _answers(data_set, range(6)[::-1], seconds=1)}}
    depths = Depths(main=2, curve=[6])
    report = build_report([data_set], rankings, baseline=FIRST_STAGE, depths=depths, details={})
    assert report.sets[0].rows[0].measures["RR@10"].mean == 1
    assert (report.depth, report.deepest) == (2, 6)


@pytest.fixture
def full_report() -> Report:
    sets = [_data_set("a", ["d5", "d4"]), _data_set("b", ["d0", None]), _data_set("c", ["d0", None], candidates=None)]
    return _report(*sets, curve=[1, 2, 6])


def test_markdown_has_whole_tables(full_report: Report) -> None:
    text = markdown(full_report)
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert [len(block) for block in blocks] == [2 + 2 + 2 + 1 + 2, 2 + 2, 2 + 3]
    for block in blocks:
        assert len({line.count("|") for line in block}) == 1
    assert "| mean of 2 sets | reverse |" in text
    assert "- date: today" in text


def test_the_terminal_shows_every_number_in_80_columns(full_report: Report) -> None:
    console = Console(width=80)
    with console.capture() as capture:
        for table in terminal_tables(full_report):
            console.print(table)
    text = capture.get()
    assert "…" not in text
    for shown in ("mean of 2 sets", "reverse", "0.5000", "500.0", "nDCG@10 by candidates reranked"):
        assert shown in text


def test_json_holds_the_whole_report(full_report: Report) -> None:
    report = orjson.loads(orjson.dumps(full_report))
    assert set(report) == {"baseline", "depth", "deepest", "sets", "means", "details", "fusions"}
    row = report["sets"][0]["rows"][1]
    assert set(row["measures"]["nDCG@10"]) == {"mean", "low", "high"}
    assert set(row["against_baseline"]["nDCG@10"]) == {"mean", "p"}
    assert [point["depth"] for point in row["curve"]] == [1, 2, 6]


@pytest.mark.parametrize("curve", [(), (1, 6)])
def test_the_picture_shows_something(tmp_path: Path, curve: Sequence[int]) -> None:
    path = tmp_path / "picture.png"
    draw(_report(_data_set("a", ["d5", "d4"]), curve=curve), path)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width == 900 * (2 if curve else 1)
        colours = picture.convert("RGB").getcolors(maxcolors=2**24)
    assert colours is not None
    assert len(colours) > 50
