"""How the comparison of servers judges scores and forms ratios; and that it runs, where peers are installed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from app.benchmark.load import Run, Sample
from app.benchmark.measurement import Measurement, measure
from loadtest.cross_server import Agreement, Contest, agreement, lines


def _measured(pairs_per_s: float) -> Measurement:
    sample = Sample(intended=0, sent=0, finished=0.5, documents=1, outcome="200")
    run = Run(mode="closed", samples=[sample], opened=0, closed=1, cpu_s=0)
    return replace(measure(run), pairs_per_s=pairs_per_s)


@pytest.mark.parametrize(
    ("answer", "difference", "correlation"),
    [
        ({0: 0.9, 1: 0.5, 2: 0.1}, 0.0, 1.0),
        ({0: 0.8, 1: 0.5, 2: 0.1}, 0.1, 1.0),
        ({0: 0.1, 1: 0.5, 2: 0.9}, 0.8, -1.0),
    ],
)
def test_agreement_is_the_largest_difference_and_the_correlation_of_orders(
    answer: dict[int, float], difference: float, correlation: float
) -> None:
    agrees = agreement([answer], [{0: 0.9, 1: 0.5, 2: 0.1}])
    assert agrees.largest_difference == pytest.approx(difference)
    assert agrees.rank_correlation == pytest.approx(correlation)


def test_an_answer_that_lacks_a_document_is_no_agreement() -> None:
    with pytest.raises(KeyError):
        agreement([{0: 0.9}], [{0: 0.9, 1: 0.5}])


def test_ratios_are_to_ours_of_the_same_precision_round_by_round() -> None:
    contest = Contest(
        measurements={
            "rerankd onnx int8": {8: [_measured(400), _measured(400)]},
            "rerankd onnx float32": {8: [_measured(100), _measured(200)]},
            "infinity torch": {8: [_measured(50), _measured(50)]},
            "infinity onnx int8": {8: [_measured(200), _measured(100)]},
        }
    )
    torch, int8 = contest.ratios("infinity torch", 8), contest.ratios("infinity onnx int8", 8)
    assert torch is not None
    assert int8 is not None
    assert (torch.low, torch.high) == (0.25, 0.5)
    assert (int8.low, int8.high) == (0.25, 0.5)


def test_a_server_with_other_scores_is_shown_as_such() -> None:
    contest = Contest(
        measurements={"infinity torch": {8: [_measured(50)]}},
        agreements={"infinity torch": Agreement(0.3, 0.7)},
    )
    head, line = lines(contest)
    assert len(head) == len(line)
    assert "OTHER SCORES" in line[head.index("rank corr.")]
    assert line[head.index("of rerankd's")] == "-"


@pytest.mark.slow
def test_our_two_precisions_are_compared_over_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from loadtest import cross_server  # noqa: PLC0415
    from loadtest.random_models import build  # noqa: PLC0415 - imports transformers

    model = build("minilm-l6", tmp_path / "model", tiny=True)
    quick = ["--rounds", "1", "--seconds", "0.5", "--clients", "2", "--documents", "3"]
    ours = ["--only", "rerankd onnx int8", "rerankd onnx float32"]
    report = tmp_path / "r.json"
    command = ["cross_server", "--model", str(model), *quick, *ours, "--json", str(report)]
    monkeypatch.setattr("sys.argv", command)
    assert cross_server.main() == 0
    contest = json.loads(report.read_text())
    assert set(contest["measurements"]) == {"rerankd onnx int8", "rerankd onnx float32"}
    assert contest["agreements"]["rerankd onnx float32"]["largest_difference"] < 1e-6
    assert 0 < contest["agreements"]["rerankd onnx int8"]["largest_difference"] < 0.1
    assert contest["absent"] == {}
    assert "| rerankd onnx int8 | int8 | 2 |" in capsys.readouterr().out
