"""What else a machine did while something was measured."""

import subprocess
import sys
from time import process_time

import pytest

from rerankd.tools.quietness import CpuTimes, Interference, disturbances, spread


def _burn(seconds: float) -> None:
    started = process_time()
    while process_time() - started < seconds:
        sum(range(1000))


@pytest.mark.parametrize(
    ("speeds", "expected"), [([], 1), ([100], 1), ([100, 140], 1.4), ([50, 100, 110, 105, 900], 1.1), ([0, 100], 1)]
)
def test_the_outermost_of_several_do_not_count(speeds: list[float], expected: float) -> None:
    assert spread(speeds) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("others", "stolen", "noise", "words"),
    [
        (0.0, 0.0, 1.0, []),
        (0.1, 0.02, 1.15, []),
        (0.45, 0.0, 1.0, ["other programs used 45% of the CPUs"]),
        (0.0, 0.2, 1.0, ["other virtual machines took 20% of the CPUs"]),
        (0.0, 0.0, 1.4, ["repeated measurements differed by up to a factor of 1.40"]),
    ],
)
def test_only_a_busy_machine_is_complained_about(others: float, stolen: float, noise: float, words: list[str]) -> None:
    assert disturbances(Interference(others=others, stolen=stolen), noise) == words


def test_shares_are_of_the_time_that_passed() -> None:
    before = CpuTimes(total=100, idle=40, stolen=5, own=20)
    after = CpuTimes(total=120, idle=44, stolen=7, own=30)
    found = Interference.between(before, after)
    # of 20 that passed 4 were idle, 2 stolen and 10 our own
    assert [found.others, found.stolen] == pytest.approx([0.2, 0.1])


def test_what_another_process_uses_is_seen_and_what_this_one_uses_is_not() -> None:
    before = CpuTimes.now()
    _burn(0.5)
    alone = CpuTimes.now()
    code = "from time import process_time\nwhile process_time() < 1: pass"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    beside = CpuTimes.now()
    assert alone.own - before.own >= 0.4
    used_by_others = Interference.between(alone, beside).others * (beside.total - alone.total)
    assert used_by_others > 0.8
