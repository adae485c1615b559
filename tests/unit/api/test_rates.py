"""Token buckets on a clock of the test's own."""

import pytest

from app.api.rates import Allowance, Rates
from app.errors import RateLimited


def _asks(allowance: Allowance, *moments: float) -> list[bool]:
    answers = []
    for now in moments:
        try:
            allowance.ask(now=now)
        except RateLimited:
            answers.append(False)
        else:
            answers.append(True)
    return answers


def test_without_rates_everything_is_allowed() -> None:
    allowance = Allowance(Rates())
    allowance.charge(10**12)
    assert all(_asks(allowance, *[0.0] * 1000))


def test_a_burst_of_one_second_then_the_rate() -> None:
    assert _asks(Allowance(Rates(requests_per_s=3)), 5.0, 5.0, 5.0, 5.0, 5.2, 5.34, 5.34) == [
        *[True] * 3, False, False, True, False
    ]  # fmt: skip


def test_less_than_one_a_second() -> None:
    assert _asks(Allowance(Rates(requests_per_s=0.5)), 0.0, 1.0, 1.9, 2.0) == [True, False, False, True]


def test_an_idle_key_saves_up_no_more_than_its_burst() -> None:
    allowance = Allowance(Rates(requests_per_s=2))
    _asks(allowance, 0.0, 0.0)
    assert _asks(allowance, *[1000.0] * 4) == [True, True, False, False]


def test_a_refusal_says_when_to_come_back() -> None:
    allowance = Allowance(Rates(requests_per_s=0.5))
    allowance.ask(now=0.0)
    with pytest.raises(RateLimited, match=r"0\.5 requests a second") as refusal:
        allowance.ask(now=0.5)
    assert refusal.value.retry_after_s == pytest.approx(1.5)


def test_tokens_are_counted_when_they_have_been_read_and_may_be_overdrawn_once() -> None:
    allowance = Allowance(Rates(tokens_per_min=600))
    allowance.ask(now=0.0)
    allowance.charge(1200)
    with pytest.raises(RateLimited, match="600 tokens read in a minute") as refusal:
        allowance.ask(now=0.0)
    assert refusal.value.retry_after_s == pytest.approx(60.1)
    assert _asks(allowance, 59.0, 60.2) == [False, True]
