"""How much of the event loop's time callers get, at moments that the tests choose."""

import pytest

from rerankd.concurrency.loop_share import LoopShare

_PART = 0.125


def _shared_by(*callers: str, part: float = _PART) -> LoopShare:
    share = LoopShare(part)
    for caller in callers:
        _enter(share, caller)
    return share


def _enter(share: LoopShare, caller: str, *, now: float = 0.0) -> None:
    """Begin a request that is here as a whole."""
    share.enter(caller, now=now)
    share.arrive(caller)


def _flood(share: LoopShare, caller: str, *, until: float, others: float = 0.0) -> float:
    """Take slices of 2 ms when allowed, and return the time taken. Other work takes `others` after each."""
    now = taken = 0.0
    while now < until:
        if wait_s := share.wait_s(caller, now=now):
            now += wait_s
            continue
        now, taken = now + 0.002, taken + 0.002
        share.spend(caller, 0.002, now=now)
        now += others
    return taken


@pytest.mark.parametrize("heavy", ["a", ""])
def test_a_heavy_caller_beside_a_light_one_takes_its_part_and_a_burst(heavy: str) -> None:
    taken = _flood(_shared_by(heavy, "light"), heavy, until=10.0)
    assert 0.99 * _PART * 10 <= taken <= _PART * 10 + 0.025


@pytest.mark.parametrize("others", [(), ("left",), ("idle", "left")])
def test_a_caller_without_another_one_never_waits(others: tuple[str, ...]) -> None:
    share = _shared_by("a", *others)
    for other in others:
        share.leave(other, arrived=True)
    assert _flood(share, "a", until=1.0) == pytest.approx(1.0)


def test_heavy_callers_do_not_wait_for_each_other() -> None:
    share = _shared_by("a", "b")
    for step in range(100):
        for caller in "ab":
            share.spend(caller, 0.002, now=0.002 * step)
    assert share.wait_s("a", now=0.2) == share.wait_s("b", now=0.2) == 0.0


def test_heavy_callers_divide_their_part() -> None:
    share = _shared_by("a", "b", "light")
    for caller in "ab":
        share.spend(caller, 0.03, now=0.0)
    assert share.wait_s("a", now=0.0) == pytest.approx(2 * 0.01 / _PART)
    share.leave("b", arrived=True)
    assert share.wait_s("a", now=0.0) == pytest.approx(0.01 / _PART)


def test_what_was_taken_while_nobody_waited_is_soon_forgiven() -> None:
    share = _shared_by("a")
    share.spend("a", 60.0, now=60.0)
    _enter(share, "late", now=60.0)
    assert share.wait_s("a", now=60.0) == pytest.approx(0.005 / _PART)


def test_a_debt_is_not_forgiven_when_the_others_leave_for_a_moment() -> None:
    share = _shared_by("a", "light")
    share.spend("a", 0.1, now=0.0)
    share.leave("light", arrived=True)
    share.spend("a", 0.002, now=0.0)
    _enter(share, "light")
    assert share.wait_s("a", now=0.0) == pytest.approx(0.08 / _PART)


def test_a_request_that_never_arrives_holds_nobody_back() -> None:
    share = _shared_by("a")
    share.enter("slow", now=0.0)
    assert _flood(share, "a", until=1.0) == pytest.approx(1.0)
    share.arrive("slow")
    assert share.wait_s("a", now=1.0) > 0
    share.leave("slow", arrived=True)
    assert share.wait_s("a", now=1.0) == 0.0


def test_where_there_are_cores_for_all_nobody_waits() -> None:
    assert _flood(_shared_by("a", "light", part=1.0), "a", until=1.0, others=0.0005) == pytest.approx(0.8, abs=0.003)
