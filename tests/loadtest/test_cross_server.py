"""How the comparison of servers judges scores and forms ratios; and that it runs, where peers are installed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.contest import Agreement, Contest, agreement, lines
from loadtest.cross_server import longest_s, steps
from rerankd.tools.benchmark.load import Run, Sample, Window
from rerankd.tools.benchmark.measurement import Measurement, measure


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


def test_a_rate_of_fewer_answers_than_clients_is_marked() -> None:
    contest = Contest(measurements={"infinity torch": {1: [_measured(50)], 8: [_measured(50)]}})
    head, alone, crowd = lines(contest)
    assert "SHORT WINDOW" not in alone[head.index("pairs/s")]
    assert "SHORT WINDOW" in crowd[head.index("pairs/s")]


def test_a_server_that_answered_nothing_has_no_latency() -> None:
    nothing = measure(Run(mode="closed", samples=[], opened=0, closed=1, cpu_s=0))
    head, line = lines(Contest(measurements={"infinity torch": {8: [nothing]}, "mosec + CrossEncoder": {8: []}}))
    assert line[head.index("p50 ms")] == "-"


def test_every_round_measures_everybody_once_and_begins_with_another() -> None:
    made = steps(["a", "b", "c"], [8, 32], rounds=4)
    assert len(set(made)) == len(made) == 4 * 3 * 2
    assert [step.name for step in made if step.clients == 8] == [*"abc", *"bca", *"cab", *"abc"]


def test_the_announced_time_covers_load_drain_and_a_new_start_of_each() -> None:
    window = Window(warmup_s=1, seconds=3, longest_warmup_s=5)
    assert longest_s(steps(["a", "b"], [8], rounds=2), {"a": 2, "b": 4}, window) == 2 * (8 + 10 + 3) + 2 * (8 + 10 + 6)


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    contest = Contest(
        options={"seconds": 3.0},
        measurements={"infinity torch": {8: [_measured(50), _measured(60)]}},
        agreements={"infinity torch": Agreement(0.3, 0.7)},
    )
    contest.write(tmp_path / "r.json", {"machine": "this one"})
    assert Contest.read(tmp_path / "r.json") == contest
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_our_two_precisions_are_compared_over_the_same_weights_and_a_run_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from loadtest import cross_server  # noqa: PLC0415
    from loadtest.random_models import build  # noqa: PLC0415 - imports transformers
    from loadtest.weights import prepare_weights  # noqa: PLC0415 - as above

    model = build("minilm-l6", tmp_path / "model", tiny=True)
    weights = prepare_weights(model, tmp_path / "weights")  # once for both runs: it exports
    monkeypatch.setattr("loadtest.weights.prepare_weights", lambda *_: weights)
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

    command[command.index("--rounds") + 1] = "2"
    monkeypatch.setattr("sys.argv", [*command, "--resume"])
    assert cross_server.main() == 0
    resumed = json.loads(report.read_text())
    for name, loads in contest["measurements"].items():
        assert resumed["measurements"][name]["2"][0] == loads["2"][0]
        assert len(resumed["measurements"][name]["2"]) == 2
    assert "2 measurements: 0:00:01 of load" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", [*command, "--resume", "--documents", "4"])
    with pytest.raises(SystemExit, match="cannot be gone on with"):
        cross_server.main()
