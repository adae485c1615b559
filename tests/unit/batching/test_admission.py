"""What is admitted: by tokens, by deadlines, and with a fair part of the queue for every caller."""

from collections.abc import Sequence
from time import perf_counter

import pytest

from rerankd.batching.admission import Admission, Estimate, Forecast, TextLengths, Tokenized, is_surprising
from rerankd.batching.cost import CostModel
from rerankd.batching.planner import BatchPlanner, Entry
from rerankd.batching.work import Work
from rerankd.domain import Terms
from rerankd.errors import DeadlineExceeded, Overloaded, RerankError

SECONDS_PER_TOKEN = 0.001


def _admission(
    *, limit: int = 10**9, workers: int = 1, waiting: Sequence[tuple[int, Terms]] = (), stalled: int = 0
) -> Admission:
    """An engine of a thousand tokens a second and worker, with requests of this many tokens waiting. Its last `stalled`
    passes took a hundred times as long.
    """
    planner, cost = BatchPlanner(max_batch_tokens=512, max_batch_pairs=64), CostModel()
    for number in range(50):
        factor = 100 if number >= 50 - stalled else 1
        cost.learn(tokens=512, squares=512 * 64, seconds=512 * SECONDS_PER_TOKEN * factor)
    for number, (tokens, terms) in enumerate(waiting):
        planner.add([Entry(number, position, 1) for position in range(tokens)], terms)
    return Admission(planner, cost, max_waiting_tokens=limit, workers=workers)


def _work(tokens: int) -> Work:
    return Work(tokens, tokens * 64)


def _verdict(admission: Admission, tokens: int, terms: Terms, *, busy_s: float = 0.0) -> RerankError | None:
    try:
        admission.check(_work(tokens), terms, now=0.0, busy_s=busy_s)
    except RerankError as refusal:
        return refusal
    return None


@pytest.mark.parametrize(
    ("waiting", "tokens", "admitted"), [(0, 101, True), (50, 50, True), (50, 51, False), (100, 1, False)]
)
def test_a_request_is_admitted_whole_or_not_at_all(waiting: int, tokens: int, admitted: bool) -> None:
    admission = _admission(limit=100, waiting=[(waiting, Terms())] if waiting else [])
    refusal = _verdict(admission, tokens, Terms())
    assert (refusal is None) == admitted
    if refusal:
        assert f"{waiting} tokens wait already; this request has about {tokens} and the limit is 100" in str(refusal)


def test_urgent_work_is_always_admitted() -> None:
    assert _verdict(_admission(limit=10, waiting=[(10, Terms())]), 10, Terms(urgent=True, deadline=-1.0)) is None


def test_reserved_work_counts() -> None:
    admission = _admission(limit=100)
    admission.reserve("", 90)
    assert isinstance(_verdict(admission, 11, Terms()), Overloaded)


def test_a_full_queue_still_has_room_for_a_caller_that_has_not_its_part() -> None:
    admission = _admission(limit=100, waiting=[(100, Terms(caller="heavy"))])
    assert isinstance(_verdict(admission, 1, Terms(caller="heavy")), Overloaded)
    assert _verdict(admission, 50, Terms(caller="light")) is None
    assert isinstance(_verdict(admission, 51, Terms(caller="light")), Overloaded)


def test_retry_after_is_the_time_until_there_is_room() -> None:
    refusal = _verdict(_admission(limit=1000, waiting=[(900, Terms())], workers=2), 300, Terms())
    assert isinstance(refusal, Overloaded)
    assert refusal.retry_after_s == pytest.approx(200 * SECONDS_PER_TOKEN / 2)


def test_what_is_larger_than_the_limit_may_come_when_nothing_waits() -> None:
    refusal = _verdict(_admission(limit=1000, waiting=[(300, Terms())]), 3000, Terms())
    assert isinstance(refusal, Overloaded)
    assert refusal.retry_after_s == pytest.approx(300 * SECONDS_PER_TOKEN)


def test_a_caller_with_its_share_of_a_full_queue_may_retry_when_part_of_it_is_done() -> None:
    """Of 1,600 tokens too many only ten are its own, and half of what is done is its own."""
    waiting = [(2000, Terms(caller="heavy")), (450, Terms(caller="light"))]
    refusal = _verdict(_admission(limit=1000, waiting=waiting), 60, Terms(caller="light"))
    assert isinstance(refusal, Overloaded)
    assert refusal.retry_after_s == pytest.approx(2 * 10 * SECONDS_PER_TOKEN)


@pytest.mark.parametrize(
    ("waiting", "due", "told_s"),
    [
        pytest.param(3400, 4.4, (0.15 + 3.4 * 1.4 + 0.21 + 0.03 - 4.4) / 0.4, id="once that has gained enough"),
        pytest.param(
            800, 1.2, (0.15 + 0.8 * 1.4 + 0.21 + 0.03 - 1.0) / 1.4, id="once its own deadline is the later one"
        ),
    ],
)
def test_a_request_that_endangers_a_later_deadline_may_retry_when_it_does_not(
    waiting: int, due: float, told_s: float
) -> None:
    admission = _admission(waiting=[(waiting, Terms(deadline=due))])
    refusal = _verdict(admission, 150, Terms(deadline=1.0), busy_s=0.15)
    assert isinstance(refusal, Overloaded)
    assert refusal.retry_after_s == pytest.approx(told_s, rel=0.01)


def test_before_anything_is_known_every_deadline_is_believed_in() -> None:
    planner = BatchPlanner(max_batch_tokens=512, max_batch_pairs=64)
    admission = Admission(planner, CostModel(), max_waiting_tokens=10**6, workers=1)
    assert _verdict(admission, 10_000, Terms(deadline=0.001)) is None


def test_what_no_idle_server_could_do_is_not_worth_a_retry() -> None:
    refusal = _verdict(_admission(), 1000, Terms(deadline=0.5))
    assert isinstance(refusal, DeadlineExceeded)
    assert "about 1.10 s and its deadline is in 0.50 s" in str(refusal)


def test_short_times_are_told_in_milliseconds() -> None:
    assert "about 2 ms and its deadline is in 1 ms" in str(_verdict(_admission(), 2, Terms(deadline=0.001)))
    assert "its deadline is in 0 ms" in str(_verdict(_admission(), 2, Terms(deadline=-1.0)))


@pytest.mark.parametrize(
    ("tokens", "waiting", "admitted"),
    [
        pytest.param(500, [], True, id="it could be done before the engine was slow"),
        pytest.param(5000, [], False, id="it could never be done"),
        pytest.param(500, [(1, Terms())], False, id="the passes of others teach as well"),
    ],
)
def test_an_engine_that_was_slow_is_tried_again_when_it_is_idle(
    tokens: int, waiting: Sequence[tuple[int, Terms]], admitted: bool
) -> None:
    admission = _admission(waiting=waiting, stalled=3)
    assert (_verdict(admission, tokens, Terms(deadline=1.0)) is None) == admitted
    if admitted:
        assert isinstance(_verdict(admission, tokens, Terms(deadline=1.0)), DeadlineExceeded), "and not all at once"


@pytest.mark.parametrize(("tokens", "waiting", "admitted"), [(5000, 0, True), (5000, 300, True), (5000, 400, False)])
def test_a_request_for_a_partial_answer_is_admitted_if_half_of_its_time_is_left(
    tokens: int, waiting: int, admitted: bool
) -> None:
    admission = _admission(waiting=[(waiting, Terms(deadline=0.5))] if waiting else [])
    refusal = _verdict(admission, tokens, Terms(deadline=1.0, partial=True))
    assert (refusal is None) == admitted
    assert admitted or isinstance(refusal, Overloaded)


@pytest.mark.parametrize(("deadline", "admitted"), [(1.7, True), (1.4, False)])
def test_work_with_an_earlier_deadline_and_running_passes_come_before(deadline: float, admitted: bool) -> None:
    admission = _admission(waiting=[(500, Terms(deadline=1.0))])
    refusal = _verdict(admission, 500, Terms(deadline=deadline), busy_s=0.2)
    assert (refusal is None) == admitted
    if isinstance(refusal, Overloaded):
        assert refusal.retry_after_s == pytest.approx((0.5 * 1.4 + 0.5 * 1.4 + 0.2 + 0.03 - deadline) / 1.4, rel=0.1)


@pytest.mark.parametrize(
    ("tokens", "deadline", "admitted"), [(500, 0.57, False), (500, 0.59, True), (50, 0.060, False), (50, 0.062, True)]
)
def test_an_answer_needs_some_time_beside_the_passes(tokens: int, deadline: float, admitted: bool) -> None:
    assert (_verdict(_admission(), tokens, Terms(deadline=deadline)) is None) == admitted


def test_work_without_a_deadline_stands_back() -> None:
    assert _verdict(_admission(waiting=[(5000, Terms())]), 500, Terms(deadline=1.0)) is None


def test_no_request_is_admitted_at_the_cost_of_an_admitted_one() -> None:
    admission = _admission(waiting=[(600, Terms(deadline=1.0))])
    assert isinstance(_verdict(admission, 300, Terms(deadline=0.9)), Overloaded)
    assert _verdict(admission, 50, Terms(deadline=0.9)) is None


def test_a_caller_with_an_empty_queue_is_admitted_when_its_request_just_fits() -> None:
    """Two fifths more room for surprises is for somebody that has more than one request."""
    waiting = [(600, Terms(caller="heavy", deadline=1.0))]
    assert isinstance(_verdict(_admission(waiting=waiting), 250, Terms(caller="heavy", deadline=1.0)), Overloaded)
    assert _verdict(_admission(waiting=waiting), 250, Terms(caller="light", deadline=1.0)) is None
    assert isinstance(_verdict(_admission(waiting=waiting), 300, Terms(caller="light", deadline=1.0)), Overloaded)


@pytest.mark.parametrize(
    ("asked", "admitted", "refused"),
    [
        pytest.param(100, 430, 460, id="what others asked for lately"),
        pytest.param(10**6, 90, 130, id="at most an equal part"),
    ],
)
def test_no_request_is_promised_what_others_may_still_claim(asked: int, admitted: int, refused: int) -> None:
    admission = _admission(waiting=[(300, Terms(caller="heavy", deadline=1.0))])
    admission.check(_work(asked), Terms(caller="other"), now=0.0, busy_s=0.0)
    assert _verdict(admission, admitted, Terms(caller="heavy", deadline=1.0)) is None
    assert isinstance(_verdict(admission, refused, Terms(caller="heavy", deadline=1.0)), Overloaded)


def test_what_others_have_waiting_is_claimed_but_once() -> None:
    waiting = [(100, Terms(caller="heavy", deadline=1.0)), (300, Terms(caller="other", deadline=1.0))]
    admission = _admission(waiting=waiting)
    admission.check(_work(300), Terms(caller="other"), now=0.0, busy_s=0.0)
    admission.reserve("other", 100)
    assert _verdict(admission, 250, Terms(caller="heavy", deadline=1.0)) is None
    assert isinstance(_verdict(admission, 350, Terms(caller="heavy", deadline=1.0)), Overloaded)


def test_a_caller_that_is_gone_is_expected_no_more() -> None:
    admission = _admission(waiting=[(300, Terms(caller="heavy", deadline=1000.0))])
    admission.check(_work(10**6), Terms(caller="other"), now=-500.0, busy_s=0.0)
    assert _verdict(admission, 460, Terms(caller="heavy", deadline=1.0)) is None


def test_a_request_that_is_being_tokenized_waits_already() -> None:
    admission = _admission()
    admission.check(_work(10**6), Terms(caller="other"), now=0.0, busy_s=0.0)
    admission.reserve("heavy", 300)
    assert isinstance(_verdict(admission, 160, Terms(caller="heavy", deadline=1.0)), Overloaded)
    admission.reserve("heavy", -300)
    assert _verdict(admission, 160, Terms(caller="heavy", deadline=1.0)) is None


def test_retry_after_is_how_long_the_callers_own_work_takes_beside_others() -> None:
    """Of 1,000 tokens a second a quarter are its own, and what is too much is its own."""
    waiting = [(100, Terms(caller="heavy", deadline=0.9)), (300, Terms(caller="other", deadline=0.9))]
    admission = _admission(waiting=waiting)
    admission.check(_work(10**6), Terms(caller="other"), now=0.0, busy_s=0.0)
    refusal = _verdict(admission, 400, Terms(caller="heavy", deadline=1.0))
    assert isinstance(refusal, Overloaded)
    late_s = 0.1 * 1.2 + 0.4 * 1.1 + 0.5 + 0.03 - 1.0
    assert refusal.retry_after_s == pytest.approx(4 * late_s / 1.2, rel=0.05)


@pytest.mark.timed
def test_a_decision_takes_no_longer_when_many_requests_wait() -> None:
    assert _decision_s(waiting=20_000) < 10 * _decision_s(waiting=200), "it grew with the number of waiting requests"


def _decision_s(*, waiting: int) -> float:
    admission = _admission(waiting=[(1, Terms(deadline=1e6 + number)) for number in range(waiting)])
    durations_s = []
    for _ in range(20):
        started = perf_counter()
        assert _verdict(admission, 10, Terms(deadline=2e6)) is None
        durations_s.append(perf_counter() - started)
    return min(durations_s)


def _estimate(characters: int, *, items: int) -> Estimate:
    return Estimate(characters=characters, items=items, longest=512)


def _part(characters: int, *, items: int, work: Work) -> Tokenized:
    return Tokenized(
        characters=characters,
        items=items,
        tokens=work.tokens,
        work=work,
        whole_characters=characters,
        whole_tokens=work.tokens,
    )


def test_an_estimate_learns_from_what_texts_turned_out_to_be() -> None:
    lengths = TextLengths()
    assert lengths.forecast(_estimate(400, items=1)).work.tokens == 100
    for _ in range(200):
        lengths.learn(characters=400, tokens=200)
    lengths.learn(characters=0, tokens=5)
    estimate = lengths.forecast(_estimate(400, items=4)).work
    assert estimate.tokens == pytest.approx(200, rel=0.01)
    assert estimate.squares == pytest.approx(200 * 200 / 4, rel=0.02)
    assert lengths.forecast(_estimate(4_000_000, items=4)).work.tokens == 4 * 512


def test_texts_of_one_caller_say_nothing_of_those_of_another() -> None:
    lengths = TextLengths()
    for _ in range(200):
        lengths.learn(characters=400, tokens=400, caller="dense")
    dense, other = (lengths.forecast(_estimate(400, items=1), caller=name).work for name in ("dense", "other"))
    assert dense.tokens == pytest.approx(400, rel=0.01)
    assert other.tokens == 100


def test_of_callers_without_number_only_the_latest_are_remembered() -> None:
    lengths = TextLengths()
    for number in range(1001):
        lengths.learn(characters=100, tokens=100, caller=str(number))
    tokens = [lengths.forecast(_estimate(100, items=1), caller=name).work.tokens for name in ("0", "1")]
    assert tokens == [25, 29]


def test_an_estimate_becomes_what_the_texts_turn_out_to_be() -> None:
    forecast = Forecast(_estimate(1000, items=10), density=0.25)
    assert forecast.work == Work(250, 6250.0)
    forecast.correct(_part(200, items=2, work=Work(200, 20_000.0)))
    assert forecast.work == Work(1000, 20_000.0 + 800 * 800 / 8), "the rest is like what was seen"
    forecast.correct(_part(800, items=8, work=Work(80, 800.0)))
    assert forecast.work == Work(280, 20_800.0)


def test_no_text_is_expected_to_be_longer_than_it_is_cut() -> None:
    forecast = Forecast(_estimate(100_000, items=10), density=0.25)
    assert forecast.work.tokens == 5120
    forecast.correct(_part(10_000, items=1, work=Work(512, 512 * 512)))
    assert forecast.work.tokens == 512 + round(90_000 * 512 / 10_000)


@pytest.mark.parametrize(("tokens", "surprising"), [(100, False), (125, False), (126, True)])
def test_a_request_much_larger_than_it_was_admitted_for_is_surprising(tokens: int, surprising: bool) -> None:
    assert is_surprising(_work(tokens), admitted=_work(100)) == surprising


def test_a_request_that_is_asked_about_again_is_expected_but_once() -> None:
    once, twice = (_admission(waiting=[(300, Terms(caller="heavy", deadline=1.0))]) for _ in range(2))
    for admission in (once, twice):
        admission.check(_work(100), Terms(caller="other"), now=0.0, busy_s=0.0)
    twice.check(_work(100), Terms(caller="other"), now=0.0, busy_s=0.0, admitted=_work(100))
    assert _verdict(once, 430, Terms(caller="heavy", deadline=1.0)) is None
    assert _verdict(twice, 430, Terms(caller="heavy", deadline=1.0)) is None


_FOR_FIVE_MINUTES = Terms(caller="heavy", deadline=300.0)


@pytest.mark.parametrize(
    ("tokens", "admitted"),
    [pytest.param(1_000, True, id="a light one"), pytest.param(60_000, False, id="as heavy as the other")],
)
def test_a_newcomer_is_refused_only_for_what_would_be_served_before_it(tokens: int, admitted: bool) -> None:
    """The heavy caller's deadlines are in danger already, and all of them are earlier."""
    admission = _admission(waiting=[(400_000, _FOR_FIVE_MINUTES)])
    assert (_verdict(admission, tokens, Terms(caller="light", deadline=301.0)) is None) == admitted


def test_a_light_caller_waits_for_itself_and_for_other_light_ones() -> None:
    waiting = [
        (400_000, _FOR_FIVE_MINUTES),
        (700, Terms(caller="light", deadline=2.0)),
        (300, Terms(caller="another", deadline=2.0)),
    ]
    admission = _admission(waiting=waiting)
    refusal = _verdict(admission, 800, Terms(caller="light", deadline=1.9), busy_s=0.1)
    assert isinstance(refusal, Overloaded)
    late_s = 0.1 + 1.1 * (0.7 + 0.3 + 0.8) + 0.03 - 1.9
    assert refusal.retry_after_s == pytest.approx(late_s / 1.1, rel=0.05)
    admission.reserve("light", 300)
    assert _verdict(admission, 400, Terms(caller="light", deadline=1.9), busy_s=0.1) is not None
    admission.reserve("light", -300)
    assert _verdict(admission, 400, Terms(caller="light", deadline=1.9), busy_s=0.1) is None


def test_work_that_is_being_tokenized_makes_no_newcomer_wait_either() -> None:
    admission = _admission()
    admission.reserve("heavy", 400_000)
    assert _verdict(admission, 1_000, Terms(caller="light", deadline=5.0)) is None


def test_what_a_caller_has_being_tokenized_is_of_its_part_of_the_queue() -> None:
    admission = _admission(limit=100, waiting=[(100, Terms(caller="heavy"))])
    admission.reserve("light", 40)
    assert isinstance(_verdict(admission, 20, Terms(caller="light")), Overloaded)
    assert _verdict(admission, 10, Terms(caller="light")) is None
    assert isinstance(_verdict(admission, 40, Terms(caller="third")), Overloaded), "of three the part is a third"
    assert _verdict(admission, 33, Terms(caller="third")) is None


def test_a_request_that_comes_again_later_is_expected_when_it_does() -> None:
    admission = _admission()
    admission.check(_work(300), Terms(caller="a"), now=0.0, busy_s=0.0)
    admission.take_back("a", 200)
    assert admission.expected_of("a") == 100
    admission.take_back("a", 200)
    assert admission.expected_of("a") == 0
    assert admission.expected_of("nobody") == 0


@pytest.mark.parametrize("waiting", [0, 300, 900])
@pytest.mark.parametrize("busy_s", [0.0, 0.2])
def test_what_fits_is_what_would_be_admitted(waiting: int, busy_s: float) -> None:
    others = [(waiting, Terms(caller="other", deadline=5.0))] if waiting else []
    for tokens in (1, 100, 400, 700, 1000, 3000):
        terms = Terms(caller="own", deadline=1.0)
        fits = _admission(waiting=others).fits(_work(tokens), terms, now=0.0, busy_s=busy_s)
        assert fits == (_verdict(_admission(waiting=others), tokens, terms, busy_s=busy_s) is None)


def test_to_ask_what_fits_asks_for_nothing() -> None:
    admission = _admission()
    assert admission.fits(_work(100), Terms(caller="a", deadline=1.0), now=0.0, busy_s=0.0)
    assert admission.expected_of("a") == 0
    assert admission.fits(_work(10**9), Terms(caller="a"), now=0.0, busy_s=0.0)
