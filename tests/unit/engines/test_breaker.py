"""When a remote model counts as away, and when it is tried again."""

import pytest

from rerankd.engines.remote.breaker import Breaker


def breaker(*, failures: int = 2, pause_s: float = 10.0) -> Breaker:
    return Breaker(failures=failures, pause_s=pause_s)


def failed(tried: Breaker, *, times: int, now: float = 0.0) -> Breaker:
    for _ in range(times):
        tried.failed(now=now)
    return tried


def test_it_is_away_after_failures_in_a_row() -> None:
    tried = failed(breaker(), times=1)
    tried.succeeded(seconds=0.1)
    assert not failed(tried, times=1).away
    assert failed(tried, times=1).away
    assert tried.wait_s(now=4) == 6


def test_one_request_tries_it_after_the_pause() -> None:
    tried = failed(breaker(), times=2)
    assert tried.wait_s(now=10) == 0
    assert tried.wait_s(now=10) > 0, "the others do not wait for it"
    tried.succeeded(seconds=0.1)
    assert not tried.away
    assert tried.wait_s(now=10) == 0


def test_the_pause_doubles_with_each_failed_trial_and_has_an_end() -> None:
    tried, now, pauses = failed(breaker(), times=2), 0.0, []
    for _ in range(8):
        pauses.append(tried.wait_s(now=now))
        now += pauses[-1]
        assert tried.wait_s(now=now) == 0
        tried.failed(now=now)
    assert pauses == [10, 20, 40, 80, 160, 300, 300, 300]
    tried.succeeded(seconds=1)
    assert failed(tried, times=2, now=now).wait_s(now=now) == 10


def test_a_pause_that_the_remote_states_is_kept() -> None:
    tried = breaker(failures=1)
    tried.failed(now=0, pause_s=45)
    assert tried.wait_s(now=0) == 45


def test_calls_that_began_before_it_was_away_do_not_make_the_pause_longer() -> None:
    tried = failed(breaker(), times=20)
    assert tried.wait_s(now=0) == 10


@pytest.mark.parametrize(
    ("usual_s", "seconds", "counts"), [(0.0, 0.9, False), (0.0, 1.1, True), (2.0, 5.9, False), (2.0, 6.1, True)]
)
def test_a_call_that_is_given_up_counts_only_if_it_took_long(usual_s: float, seconds: float, *, counts: bool) -> None:
    """Otherwise a client with short deadlines would take the remote away from all others."""
    tried = breaker(failures=1)
    tried.succeeded(seconds=usual_s)
    tried.given_up(now=0, seconds=seconds)
    assert tried.away == counts


def test_a_trial_that_is_given_up_is_left_to_the_next_request() -> None:
    tried = failed(breaker(), times=2)
    assert tried.wait_s(now=10) == 0
    tried.given_up(now=10.1, seconds=0.1)
    assert tried.wait_s(now=10.1) == 0
