"""What an experiment says about itself."""

import json
from argparse import Namespace
from pathlib import Path

import pytest

from loadtest.claims import Claim, conclude


@pytest.mark.parametrize(
    ("claim", "holds"),
    [
        (Claim("told", 5.0), True),
        (Claim("at most", 3.0, "<=", 3.0), True),
        (Claim("at most", 3.1, "<=", 3.0), False),
        (Claim("at least", 99.0, ">=", 99.0), True),
        (Claim("at least", 98.9, ">=", 99.0), False),
        (Claim("nothing measured", float("nan"), "<=", 3.0), False),
        (Claim("nothing measured", float("nan"), ">=", 3.0), False),
    ],
)
def test_a_claim_holds_within_its_limit_and_never_without_a_measurement(claim: Claim, *, holds: bool) -> None:
    assert claim.holds is holds


@pytest.mark.parametrize(("value", "status"), [(1.0, 0), (9.0, 1)])
def test_the_exit_status_and_the_report_say_whether_all_claims_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float, status: int
) -> None:
    output = tmp_path / "r.json"
    claims = [Claim("a fact", 7.0), Claim("a limit", value, "<=", 2.0)]
    assert conclude(claims, Namespace(output=output, seconds=3), {"note": "why"}) == status
    report = json.loads(output.read_text())
    assert [claim["holds"] for claim in report["claims"]] == [True, status == 0]
    assert report["options"]["seconds"] == "3"
    assert report["note"] == "why"
    assert ("DOES NOT HOLD" in capsys.readouterr().out) is bool(status)
