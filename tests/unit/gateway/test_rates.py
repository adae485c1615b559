"""Token buckets on a clock of the test's own."""

from collections.abc import Callable
from contextlib import suppress

import pytest

from rerankd.errors import RateLimited
from rerankd.gateway.rates import Allowance, Rates, RequestMeter


async def _asks(allowance: Allowance, *moments: float) -> list[bool]:
    answers = []
    for now in moments:
        try:
            await allowance.ask(now=now)
        except RateLimited:
            answers.append(False)
        else:
            answers.append(True)
    return answers


async def test_without_rates_everything_is_allowed() -> None:
    allowance = Allowance(Rates())
    assert not allowance.limited
    allowance.take(10**12, by=None, now=0.0)
    assert all(await _asks(allowance, *[0.0] * 1000))


async def test_a_burst_of_one_second_then_the_rate() -> None:
    assert await _asks(Allowance(Rates(requests_per_s=3)), 5.0, 5.0, 5.0, 5.0, 5.2, 5.34, 5.34) == [
        *[True] * 3, False, False, True, False
    ]  # fmt: skip


async def test_less_than_one_a_second() -> None:
    assert await _asks(Allowance(Rates(requests_per_s=0.5)), 0.0, 1.0, 1.9, 2.0) == [True, False, False, True]


async def test_an_idle_key_saves_up_no_more_than_its_burst() -> None:
    allowance = Allowance(Rates(requests_per_s=2))
    await _asks(allowance, 0.0, 0.0)
    assert await _asks(allowance, *[1000.0] * 4) == [True, True, False, False]


async def test_a_refusal_says_when_to_come_back() -> None:
    allowance = Allowance(Rates(requests_per_s=0.5))
    await allowance.ask(now=0.0)
    with pytest.raises(RateLimited, match=r"0\.5 requests a second") as refusal:
        await allowance.ask(now=0.5)
    assert refusal.value.retry_after_s == pytest.approx(1.5)


def test_a_quota_of_tokens_is_refused_when_nothing_is_left_and_says_when_there_is() -> None:
    allowance = Allowance(Rates(tokens_per_min=600))
    allowance.check_tokens(now=0.0)
    allowance.take(1200, by="request", now=0.0)
    with pytest.raises(RateLimited, match="600 tokens a minute") as refusal:
        allowance.check_tokens(now=0.0)
    assert refusal.value.retry_after_s == pytest.approx(60.1)
    with pytest.raises(RateLimited):
        allowance.check_tokens(now=59.0)
    allowance.check_tokens(now=60.2)


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _metered(tokens_per_min: int) -> tuple[Allowance, _Clock, Callable[[], RequestMeter]]:
    allowance, clock = Allowance(Rates(tokens_per_min=tokens_per_min)), _Clock()
    return allowance, clock, lambda: RequestMeter(allowance, clock)


def _left(allowance: Allowance, *, tokens_per_min: int) -> float:
    """How many tokens of a quota are left, told by the wait for the first one after a whole quota more was taken."""
    try:
        allowance.check_tokens(now=0.0)
    except RateLimited as refusal:
        return 1.0 - refusal.retry_after_s * tokens_per_min / 60
    allowance.take(tokens_per_min, by="the test", now=0.0)
    return tokens_per_min + _left(allowance, tokens_per_min=tokens_per_min)


async def test_requests_at_the_same_time_overdraw_a_quota_by_one_of_them_at_most() -> None:
    allowance, _, meter = _metered(2000)
    admitted = 0
    for _ in range(60):
        one = meter()
        with suppress(RateLimited):
            await one.reserve(1020)
            admitted += 1
    assert admitted == 2
    assert _left(allowance, tokens_per_min=2000) == pytest.approx(2000 - 2 * 1020)


async def test_what_turns_out_to_be_longer_than_reserved_is_refused_if_others_have_used_the_quota_up() -> None:
    _, _, meter = _metered(1000)
    first, second = meter(), meter()
    await first.reserve(600)
    await second.reserve(600)
    first.read(500)
    with pytest.raises(RateLimited):
        first.read(200)
    second.read(900)
    second.read(900)


async def test_a_request_that_another_model_answers_instead_costs_what_that_says() -> None:
    allowance, _, meter = _metered(1000)
    one = meter()
    await one.reserve(300)
    one.read(300)
    one.compute(300)
    one.start_over()
    one.read(200)
    one.compute(200)
    one.settle(200)
    assert _left(allowance, tokens_per_min=1000) == pytest.approx(800)


async def test_a_request_that_succeeds_costs_what_its_usage_says() -> None:
    allowance, _, meter = _metered(1000)
    for tokens in (700, 400):
        one = meter()
        await one.reserve(1000)
        one.read(tokens)
        one.compute(tokens)
        one.settle(tokens)
        one.close()
        one.close()
    assert _left(allowance, tokens_per_min=1000) == pytest.approx(1000 - 700 - 400)


@pytest.mark.parametrize(
    ("read", "computed", "cost"),
    [
        pytest.param(0, 0, 0, id="nothing was done"),
        pytest.param(6400, 0, 200, id="it was tokenized"),
        pytest.param(6400, 3200, 3300, id="half of it went to the engine"),
        pytest.param(6400, 6400, 6400, id="all of it went to the engine"),
    ],
)
async def test_a_request_that_fails_or_is_given_up_costs_what_was_done_for_it(
    read: int, computed: int, cost: int
) -> None:
    allowance, _, meter = _metered(1000)
    one = meter()
    await one.reserve(5000)
    one.read(read)
    one.compute(computed)
    one.close()
    assert _left(allowance, tokens_per_min=1000) == pytest.approx(1000 - cost)


async def test_a_quota_that_has_refilled_after_an_overdraft_is_open_to_all_requests() -> None:
    _, clock, meter = _metered(600)
    greedy = meter()
    await greedy.reserve(700)
    clock.now = 11.0
    other = meter()
    await other.reserve(700)
    with pytest.raises(RateLimited):
        await greedy.reserve(1)


async def test_without_a_quota_nothing_is_counted() -> None:
    one = RequestMeter(Allowance(Rates(requests_per_s=1)), _Clock())
    assert not one.limited
    await one.reserve(10**12)
    one.read(10**13)
    one.close()
    await RequestMeter(Allowance(Rates()), _Clock()).reserve(1)


@pytest.mark.parametrize(
    ("computed", "usage", "cost"),
    [(0, 1000, 1000), (1000, 1000, 1000), (320, 0, 320 + 680 // 32), (320, 300, 320 + 680 // 32), (320, 400, 400)],
)
async def test_a_partial_answer_costs_what_was_done_for_it(computed: int, usage: int, cost: int) -> None:
    allowance = Allowance(Rates(tokens_per_min=60_000))
    meter = RequestMeter(allowance, lambda: 0.0)
    await meter.reserve(900)
    meter.read(1000)
    meter.compute(computed)
    meter.settle(usage)
    meter.close()
    allowance.take(60_000 - cost, by=None, now=0.0)
    with pytest.raises(RateLimited):
        allowance.check_tokens(now=0.0)
    allowance.give_back(1)
    allowance.check_tokens(now=0.0)
