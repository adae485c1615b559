"""Batching decisions: what is admitted, what shares a batch, and that nothing is lost."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from rerankd.batching.planner import BatchPlanner, Entry
from rerankd.domain import Terms


def _entries(job: int, lengths: Sequence[int]) -> list[Entry]:
    return [Entry(job, position, length) for position, length in enumerate(lengths)]


def _planner(
    *,
    tokens: int = 64,
    pairs: int = 8,
    workers: int = 1,
    padded: bool = True,
    stretch: float = 1.0,
    padding: float = 0.25,
    jobs: Sequence[Sequence[int]] = (),
) -> BatchPlanner:
    planner = BatchPlanner(
        max_batch_tokens=tokens,
        max_batch_pairs=pairs,
        workers=workers,
        padded=padded,
        stretch=stretch,
        max_padding=padding,
    )
    for number, lengths in enumerate(jobs):
        planner.add(_entries(number, lengths), Terms())
    return planner


def _drain(planner: BatchPlanner) -> list[list[Entry]]:
    batches = []
    while planner:
        batches.append(planner.next_batch())
        assert batches[-1], "a batch of nothing would go on for ever"
    return batches


def _lengths(batches: list[list[Entry]]) -> list[list[int]]:
    return [[entry.length for entry in batch] for batch in batches]


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        pytest.param([10], [[10]], id="one"),
        pytest.param([16] * 4, [[16] * 4], id="exactly full"),
        pytest.param([16] * 5, [[16] * 4, [16]], id="one over"),
        pytest.param([17] * 4, [[17] * 3, [17]], id="area counts, not the sum"),
        pytest.param([4] * 9, [[4] * 8, [4]], id="pairs are limited too"),
        pytest.param([500, 4, 4], [[500], [4, 4]], id="oversize goes alone"),
        pytest.param([1, 9, 30, 4, 29], [[30, 29], [9], [4], [1]], id="too much padding opens a new batch"),
        pytest.param([20, 18, 16, 20], [[20, 20, 18], [16]], id="longest first"),
    ],
)
def test_batches_of_one_request(lengths: list[int], expected: list[list[int]]) -> None:
    assert _lengths(_drain(_planner(jobs=[lengths]))) == expected


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        pytest.param([16] * 5, [[16] * 4, [16]], id="one over"),
        pytest.param([17] * 4, [[17] * 3, [17]], id="the sum counts"),
        pytest.param([4] * 9, [[4] * 8, [4]], id="pairs are limited too"),
        pytest.param([500, 4, 4], [[500], [4, 4]], id="oversize goes alone"),
        pytest.param([1, 9, 30, 4, 29, 14], [[30, 29, 4, 1], [14, 9]], id="what fits fills the batch"),
    ],
)
def test_batches_that_are_not_padded(lengths: list[int], expected: list[list[int]]) -> None:
    assert _lengths(_drain(_planner(padded=False, jobs=[lengths]))) == expected


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        pytest.param([["aa"]], ["aa"], id="one group"),
        pytest.param([["ab"]], ["a", "b"], id="two groups of one request"),
        pytest.param([["ab", "ba"]], ["aa", "bb"], id="of two lengths"),
        pytest.param([["a"], ["b"], ["a"]], ["aa", "b"], id="of several requests"),
        pytest.param([["aab"], ["b"], ["aaaaaaab"]], ["aaaaaaaa", "a", "bbb"], id="a full batch of one group"),
    ],
)
def test_only_items_of_one_group_share_a_batch(jobs: list[list[str]], expected: list[str]) -> None:
    planner = _planner(tokens=1000)
    for number, lengths in enumerate(jobs):
        groups = [(length, group) for length, some in enumerate(lengths, start=8) for group in some]
        entries = [Entry(number, position, length, group) for position, (length, group) in enumerate(groups)]
        planner.add(entries, Terms())
    batches = ["".join(str(entry.group) for entry in batch) for batch in _drain(planner)]
    assert sorted(batches, key=lambda batch: batch[0]) == sorted(expected, key=lambda batch: batch[0])
    assert planner.waiting_tokens == 0


def test_an_item_of_a_group_that_is_removed_or_withdrawn_waits_no_longer() -> None:
    planner = _planner()
    entries = [Entry(0, 0, 8, "a"), Entry(0, 1, 8, "b"), Entry(0, 2, 8, "b")]
    planner.add(entries, Terms())
    planner.remove(entries[0])
    planner.remove(entries[0])
    assert planner.waiting_tokens == 16
    assert _drain(planner) == [[entries[2], entries[1]]]
    planner.add(entries, Terms())
    assert planner.withdraw(0) == 24
    assert not planner


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        pytest.param([[8] * 12], [[8] * 12], id="one pass finishes it"),
        pytest.param([[8] * 9, [8] * 9], [[8] * 9, [8] * 9], id="no more than its own"),
        pytest.param([[8] * 7, [8] * 7], [[8] * 8, [8] * 6], id="what is over is filled up as usual"),
        pytest.param([[8] * 96], [[8] * 12] * 8, id="as many passes as are few"),
        pytest.param([[8] * 104], [[8] * 8] * 1 + [[8] * 12] * 8, id="more"),
    ],
)
def test_a_request_that_few_passes_finish_has_larger_ones(lengths: list[list[int]], expected: list[list[int]]) -> None:
    assert _lengths(_drain(_planner(tokens=64, pairs=64, stretch=1.5, jobs=lengths))) == expected


def test_larger_batches_are_shared_by_workers_too() -> None:
    assert _lengths(_drain(_planner(tokens=64, pairs=64, workers=2, stretch=1.5, jobs=[[8] * 12]))) == [
        [8] * 6,
        [8] * 3,
        [8] * 2,
        [8],
    ]


def test_without_padding_the_first_request_is_served_before_others_of_a_better_length() -> None:
    planner = _planner(padded=False, jobs=[[40, 10, 10], [39, 24, 3]])
    assert [(entry.job, entry.length) for entry in planner.next_batch()] == [(0, 40), (0, 10), (0, 10), (1, 3)]


def test_a_batch_is_filled_with_what_others_have_of_the_same_length() -> None:
    planner = _planner(tokens=48, jobs=[[16], [12, 16], [15, 40]])
    assert planner.next_batch() == [Entry(0, 0, 16), Entry(1, 1, 16), Entry(2, 0, 15)]
    assert planner.next_batch() == [Entry(1, 0, 12)]
    assert planner.next_batch() == [Entry(2, 1, 40)]
    assert not planner


@pytest.mark.parametrize(
    ("others", "terms", "kept"),
    [
        pytest.param(13, Terms(), False, id="others of about its size pad less"),
        pytest.param(15, Terms(), True, id="a much larger one waits"),
        pytest.param(13, Terms(caller="somebody else"), True, id="so do other callers"),
        pytest.param(13, Terms(deadline=2.0), True, id="no time to lose"),
    ],
)
def test_a_request_shares_its_batch_only_where_that_costs_it_little(others: int, terms: Terms, kept: bool) -> None:
    planner = _planner(tokens=48)
    planner.add(_entries(0, [16, 12]), Terms(deadline=min(terms.deadline, 1.0) if terms.deadline < inf else inf))
    planner.add(_entries(1, [16] * others), terms)
    batch = planner.next_batch(now=0.0, seconds_per_token=0.01)
    assert (Entry(0, 1, 12) in batch) == kept
    assert len(batch) == 3


def test_a_longer_encoding_of_another_request_does_not_stretch_the_batch() -> None:
    planner = _planner(tokens=1000, jobs=[[10, 10], [100, 10]])
    assert _lengths([planner.next_batch()]) == [[10, 10, 10]]


def test_padding_within_the_limit_is_accepted() -> None:
    assert _lengths(_drain(_planner(padding=0.25, jobs=[[16, 8]]))) == [[16, 8]]
    assert _lengths(_drain(_planner(padding=0.24, jobs=[[16, 8]]))) == [[16], [8]]


def test_urgent_requests_go_first() -> None:
    planner = _planner(tokens=16, jobs=[[16], [16]])
    planner.add(_entries(7, [16]), Terms(urgent=True))
    planner.add(_entries(8, [16]), Terms(urgent=True))
    assert [batch[0].job for batch in _drain(planner)] == [7, 8, 0, 1]


def test_a_request_with_much_less_work_left_goes_first() -> None:
    planner = _planner(tokens=16, jobs=[[16] * 40, [16], [16] * 10])
    assert [planner.next_batch()[0].job for _ in range(3)] == [1, 2, 2]


def test_requests_of_about_one_size_are_served_in_order_of_arrival() -> None:
    planner = _planner(tokens=16, jobs=[[16] * 12, [16] * 9, [16] * 10])
    assert [planner.next_batch()[0].job for _ in range(31)] == [0] * 12 + [1] * 9 + [2] * 10


def test_a_request_that_is_nearly_done_is_finished_before_one_that_was_shorter_at_first() -> None:
    planner = _planner(tokens=32, jobs=[[16] * 40])
    for _ in range(17):
        planner.next_batch()
    planner.add(_entries(1, [16] * 20), Terms())
    assert planner.next_batch()[0].job == 0


def test_one_batch_in_four_belongs_to_the_oldest_request() -> None:
    planner = _planner(tokens=16, jobs=[[16] * 100])
    served = []
    for number in range(1, 30):
        planner.add(_entries(number, [16]), Terms())
        served.append(planner.next_batch()[0].job)
    assert served.count(0) == pytest.approx(len(served) / 4, abs=1)


def test_a_request_that_comes_in_portions_keeps_its_age() -> None:
    planner = _planner(tokens=16, jobs=[[16] * 40, [16] * 40])
    planner.add([Entry(0, 40, 16)], Terms())
    for number in range(2, 30):
        planner.add(_entries(number, [16]), Terms())
    assert [planner.next_batch()[0].job for _ in range(8)] == [2, 3, 4, 0, 5, 6, 7, 0]


def test_a_lower_priority_goes_first_among_one_callers_requests() -> None:
    planner = _planner(tokens=16)
    for number, priority in enumerate([500, 0, 999]):
        planner.add(_entries(number, [16]), Terms(priority=priority))
    assert [batch[0].job for batch in _drain(planner)] == [1, 0, 2]


def test_equal_callers_share_the_engine_evenly() -> None:
    planner = _planner(tokens=16)
    for number in range(40):
        planner.add(_entries(number, [16]), Terms(caller="ab"[number % 2]))
    served = [planner.next_batch()[0].job for _ in range(20)]
    assert sum(number % 2 for number in served) == pytest.approx(10, abs=1)


def test_a_light_caller_goes_before_a_flooding_one_and_starves_no_caller() -> None:
    planner = _planner(tokens=16)
    for number in range(400):
        planner.add(_entries(number, [16]), Terms(caller="heavy"))
    served = []
    for number in range(400, 460):
        planner.add(_entries(number, [16]), Terms(caller="light"))
        served.append(planner.next_batch()[0].job)
    assert 0 < sum(number < 400 for number in served) < 20


def test_a_caller_that_had_less_than_its_share_goes_before_one_that_had_more() -> None:
    planner = _planner(tokens=1600)
    for number in range(50):
        planner.add(_entries(number, [16] * 8), Terms(caller="heavy"))
    for _ in range(10):
        planner.next_batch()
    planner.add(_entries(100, [16] * 24), Terms(caller="light"))
    assert [planner.next_batch()[0].job for _ in range(3)] == [100] * 3


def test_of_callers_that_had_equally_much_the_one_that_came_first_goes_first() -> None:
    planner = _planner(tokens=16)
    for number, caller in enumerate(["a", "b", "a"]):
        planner.add(_entries(number, [16]), Terms(caller=caller))
    planner.withdraw(0)
    assert [batch[0].job for batch in _drain(planner)] == [1, 2]


def test_what_a_caller_may_catch_up_after_an_absence_is_bounded() -> None:
    planner = _planner(tokens=10_000, pairs=10_000)
    planner.add(_entries(0, [10]), Terms(caller="late"))
    planner.add(_entries(1, [1000] * 1000), Terms(caller="early"))
    while planner.tokens_of("early") > 100_000:
        planner.next_batch()
    planner.add(_entries(2, [1000] * 1000), Terms(caller="late"))
    catching_up = 0
    while planner.next_batch()[0].job == 2:
        catching_up += 10_000
    assert 0 < catching_up <= 70_000


class _Unforgetting(BatchPlanner):
    def _forget_callers(self) -> None:
        pass


@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, 5), st.lists(st.integers(1, 60_000), min_size=1, max_size=4)),
            st.none(),
        ),
        max_size=40,
    )
)
def test_a_dropped_idle_caller_is_served_as_if_it_were_kept(events: list[tuple[int, list[int]] | None]) -> None:
    """A caller's request, or a batch: large enough that credit is used up and comes back."""
    planners = [kind(max_batch_tokens=30_000, max_batch_pairs=4) for kind in (BatchPlanner, _Unforgetting)]
    for number, event in enumerate(events):
        if event:
            caller, lengths = event
            for planner in planners:
                planner.add(_entries(number, lengths), Terms(caller=str(caller)))
        else:
            forgetful, other = (planner.next_batch() for planner in planners)
            assert forgetful == other
    assert _drain(planners[0]) == _drain(planners[1])


def test_callers_that_are_gone_are_forgotten() -> None:
    planner = BatchPlanner(max_batch_tokens=512, max_batch_pairs=64)
    for number in range(100):
        planner.add(_entries(number, [10]), Terms(caller=f"gone {number}"))
    _drain(planner)
    for number in range(100, 400):
        planner.add(_entries(number, [512]), Terms(caller="here"))
        planner.next_batch()
    assert planner._callers.keys() == {"here"}


def test_deadlines_that_would_be_missed_come_first() -> None:
    planner = _planner(tokens=16)
    planner.add(_entries(0, [16] * 10), Terms(deadline=10.0))
    planner.add(_entries(1, [16]), Terms())
    planner.add(_entries(2, [16]), Terms(deadline=50.0))
    at_leisure = planner.next_batch(now=0.0, seconds_per_token=0.01)
    in_haste = planner.next_batch(now=8.3, seconds_per_token=0.01)
    assert at_leisure[0].job == 1
    assert in_haste[0].job == 0


def test_a_deadline_in_danger_comes_first_whose_ever_it_is() -> None:
    planner = _planner(tokens=16)
    planner.add(_entries(0, [16] * 10), Terms(caller="heavy", deadline=10.0))
    planner.next_batch()
    planner.add(_entries(1, [16] * 3), Terms(caller="light", deadline=50.0))
    at_leisure = planner.next_batch(now=0.0, seconds_per_token=0.01)
    in_haste = planner.next_batch(now=8.3, seconds_per_token=0.01)
    assert at_leisure[0].job == 1
    assert in_haste[0].job == 0


@pytest.mark.parametrize(("partial", "first"), [(False, 1), (True, 0)])
def test_what_is_too_late_already_does_not_make_others_late(partial: bool, first: int) -> None:
    planner = _planner(tokens=16)
    planner.add(_entries(0, [16] * 10), Terms(deadline=1.0, partial=partial))
    planner.add(_entries(1, [16] * 6), Terms(deadline=1.2))
    batches = [planner.next_batch(now=0.0, seconds_per_token=0.01) for _ in range(16)]
    assert batches[0][0].job == first
    assert sorted(batch[0].job for batch in batches) == [0] * 10 + [1] * 6, "if time is left, it is scored all the same"


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0.0, 5.0), st.booleans()), min_size=1, max_size=20))
def test_a_request_that_can_be_in_time_never_waits_behind_one_that_cannot(asked: list[tuple[int, float, bool]]) -> None:
    planner = _planner(tokens=16)
    for number, (pairs, deadline, partial) in enumerate(asked):
        planner.add(_entries(number, [16] * pairs), Terms(deadline=deadline, partial=partial))
    first = planner.next_batch(now=0.0, seconds_per_token=0.01)[0].job
    possible = {
        number for number, (pairs, deadline, partial) in enumerate(asked) if partial or deadline >= 16 * pairs * 0.01
    }
    assert first in possible or not possible


def test_batches_grow_again_when_memory_has_sufficed_for_long() -> None:
    planner = _planner(tokens=64)
    planner.batch_did_not_fit(area=64)
    planner.batch_did_not_fit(area=64)
    assert planner.max_batch_tokens == 32, "both were cut before the first one failed"
    budgets = []
    for _ in range(5):
        for _ in range(500):
            budgets.append(planner.max_batch_tokens)
            planner.batch_fitted()
    assert budgets[::500] == [32, 40, 50, 63, 64]
    assert planner.max_batch_tokens == 64


def test_a_batch_that_does_not_fit_puts_growing_off() -> None:
    planner = _planner(tokens=64)
    planner.batch_did_not_fit(area=64)
    for _ in range(499):
        planner.batch_fitted()
    planner.batch_did_not_fit(area=2)
    for _ in range(499):
        planner.batch_fitted()
    assert planner.max_batch_tokens == 1
    planner.batch_fitted()
    assert planner.max_batch_tokens == 2


def test_several_workers_share_what_little_waits() -> None:
    planner = _planner(tokens=64, workers=2, jobs=[[10] * 10])
    assert [len(planner.next_batch()) for _ in range(3)] == [5, 2, 1]


def test_enough_work_gives_every_worker_a_full_batch() -> None:
    planner = _planner(tokens=64, workers=2, jobs=[[16] * 16])
    assert _lengths(_drain(planner))[:3] == [[16] * 4] * 3


def test_withdrawing_returns_what_was_saved() -> None:
    planner = _planner(tokens=32, jobs=[[16, 16, 16]])
    planner.add(_entries(1, [5]), Terms(urgent=True))
    planner.next_batch()
    planner.next_batch()
    assert planner.withdraw(0) == 16
    assert planner.withdraw(0) == 0
    assert planner.withdraw(99) == 0
    assert not planner
    assert planner.waiting_tokens == 0


def test_urgent_work_can_be_withdrawn() -> None:
    planner = _planner()
    planner.add(_entries(1, [5, 6]), Terms(urgent=True))
    assert planner.withdraw(1) == 11
    assert not planner


def test_one_encoding_can_be_taken_out() -> None:
    planner = _planner(jobs=[[16, 8, 16]])
    planner.remove(Entry(0, 2, 16))
    planner.remove(Entry(0, 2, 16))
    planner.remove(Entry(9, 0, 16))
    assert planner.waiting_tokens == 24
    assert planner.next_batch() == [Entry(0, 0, 16), Entry(0, 1, 8)]
    assert not planner


def test_taking_the_last_encoding_out_forgets_the_request() -> None:
    planner = _planner(jobs=[[16]])
    planner.remove(Entry(0, 0, 16))
    assert not planner
    assert planner.next_batch() == []


def test_deadlines_are_told_of_all_callers_and_tokens_of_each() -> None:
    planner = _planner()
    planner.add(_entries(0, [4, 4]), Terms(caller="a", deadline=9.0))
    planner.add(_entries(1, [4]), Terms(caller="a", deadline=3.0))
    planner.add(_entries(2, [4]), Terms(caller="a"))
    planner.add(_entries(3, [4]), Terms(caller="b", deadline=1.0))
    assert planner.queue(deadline=1.0) == (0, [(1.0, 4), (3.0, 4), (9.0, 8)])
    assert planner.queue(deadline=9.0) == (8, [(9.0, 8)])
    assert planner.queue(deadline=10.0) == (16, [])
    assert (planner.tokens_of("a"), planner.dated_tokens_of("a")) == (16, 12)
    assert planner.dated_tokens_of("nobody") == 0
    assert planner.tokens_of("nobody") == 0
    assert planner.active_callers == 2


def test_nothing_waits_gives_an_empty_batch() -> None:
    assert _planner().next_batch() == []


_LENGTHS = st.lists(st.integers(1, 90), min_size=1, max_size=30)


@given(
    jobs=st.lists(_LENGTHS, min_size=1, max_size=8),
    tokens=st.integers(1, 200),
    pairs=st.integers(1, 12),
    padded=st.booleans(),
    padding=st.floats(0, 1),
)
def test_no_pair_is_lost_or_served_twice_and_every_budget_is_kept(
    jobs: list[list[int]], tokens: int, pairs: int, padded: bool, padding: float
) -> None:
    batches = _drain(_planner(tokens=tokens, pairs=pairs, padded=padded, padding=padding, jobs=jobs))
    served = Counter(entry for batch in batches for entry in batch)
    assert served == Counter(
        Entry(job, position, length) for job, lengths in enumerate(jobs) for position, length in enumerate(lengths)
    )
    for batch in batches:
        assert len(batch) <= pairs
        if not padded:
            assert sum(entry.length for entry in batch) <= tokens or len(batch) == 1
            continue
        longest = batch[0].length
        area = len(batch) * longest
        assert all(entry.length <= longest for entry in batch)
        assert area <= tokens or len(batch) == 1
        assert area - sum(entry.length for entry in batch) <= padding * area


_TERMS = st.builds(
    Terms,
    caller=st.sampled_from(["a", "b", "c"]),
    priority=st.integers(0, 3),
    urgent=st.booleans(),
    deadline=st.one_of(st.just(inf), st.floats(0, 100)),
    partial=st.booleans(),
)


@given(lengths=_LENGTHS, terms=_TERMS, others=st.lists(_LENGTHS, min_size=1, max_size=4), tokens=st.integers(1, 200))
def test_nothing_starves_while_newer_work_keeps_coming(
    lengths: list[int], terms: Terms, others: list[list[int]], tokens: int
) -> None:
    """However much arrives, a request without deadline or haste is done after a bounded number of batches."""
    planner = _planner(tokens=tokens, pairs=8)
    terms = replace(terms, urgent=False, priority=3, deadline=inf)
    planner.add(_entries(0, lengths), terms)
    waiting, number, batches = len(lengths), 0, 0
    while waiting:
        for other in others:
            number += 1
            planner.add(_entries(number, other), Terms(caller=terms.caller))
        waiting -= sum(entry.job == 0 for entry in planner.next_batch())
        batches += 1
        assert batches <= 4 * len(lengths)


class PlannerLife(RuleBasedStateMachine):
    """Requests come, are served and go away in any order; a plain model of what waits must agree at every step."""

    jobs: Bundle[int] = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.planner = _planner(tokens=100, pairs=4, workers=2)
        self.waiting: dict[int, dict[int, int]] = {}
        self.urgent: set[int] = set()
        self.terms: dict[int, Terms] = {}
        self.numbers = 0

    def _total(self) -> int:
        return sum(sum(lengths.values()) for lengths in self.waiting.values())

    @rule(target=jobs, lengths=_LENGTHS, terms=_TERMS)
    def add(self, lengths: list[int], terms: Terms) -> int:
        self.numbers += 1
        self.planner.add(_entries(self.numbers, lengths), terms)
        self.waiting[self.numbers] = dict(enumerate(lengths))
        self.terms[self.numbers] = terms
        if terms.urgent:
            self.urgent.add(self.numbers)
        return self.numbers

    @rule(job=jobs, lengths=_LENGTHS)
    def add_more(self, job: int, lengths: list[int]) -> None:
        self.numbers += 1
        more = {1000 * self.numbers + place: length for place, length in enumerate(lengths)}
        self.planner.add([Entry(job, position, length) for position, length in more.items()], self.terms[job])
        self.waiting.setdefault(job, {}).update(more)

    @rule(now=st.floats(0, 100))
    def serve(self, now: float) -> None:
        batch = self.planner.next_batch(now=now, seconds_per_token=0.01)
        assert bool(batch) == bool(self.waiting)
        if batch and self.urgent & self.waiting.keys():
            assert batch[0].job in self.urgent
        for entry in batch:
            assert self.waiting[entry.job].pop(entry.position) == entry.length
            self._forget_if_done(entry.job)

    @rule(job=jobs, position=st.integers(0, 5))
    def take_one_out(self, job: int, position: int) -> None:
        length = self.waiting.get(job, {}).pop(position, 7)
        self.planner.remove(Entry(job, position, length))
        self._forget_if_done(job)

    @rule(job=consumes(jobs))
    def withdraw(self, job: int) -> None:
        assert self.planner.withdraw(job) == sum(self.waiting.pop(job, {}).values())

    def _forget_if_done(self, job: int) -> None:
        if not self.waiting.get(job, True):
            del self.waiting[job]

    @invariant()
    def waiting_tokens_are_the_sum_of_what_waits(self) -> None:
        assert self.planner.waiting_tokens == self._total()
        assert bool(self.planner) == bool(self.waiting)

    @invariant()
    def tokens_with_a_deadline_are_the_sum_of_theirs(self) -> None:
        earlier, later = self.planner.queue(deadline=50.0)
        expected = {True: 0, False: 0}
        for number, lengths in self.waiting.items():
            terms = self.terms[number]
            if terms.deadline < inf and not terms.urgent:
                expected[terms.deadline < 50.0] += sum(lengths.values())
        assert expected == {True: earlier, False: sum(one.tokens for one in later)}


TestPlannerLife = PlannerLife.TestCase
TestPlannerLife.settings = settings(max_examples=40, stateful_step_count=30)


def test_a_light_caller_keeps_its_turn_though_another_ones_deadline_is_in_danger() -> None:
    planner = _planner(tokens=16)
    planner.add(_entries(0, [16] * 100), Terms(caller="heavy", deadline=100.0))
    planner.next_batch()
    planner.add(_entries(1, [16] * 3), Terms(caller="light", deadline=500.0))
    order = [planner.next_batch(now=83.5, seconds_per_token=0.01)[0].job for _ in range(4)]
    assert order == [1, 1, 1, 0]


def test_a_light_caller_that_had_more_than_its_part_stands_back_when_a_deadline_is_in_danger() -> None:
    planner = _planner(tokens=16)
    planner.add(_entries(0, [16] * 200), Terms(caller="greedy"))
    for _ in range(199):
        planner.next_batch()
    planner.add(_entries(1, [16] * 100), Terms(caller="heavy", deadline=10.0))
    assert planner.next_batch(now=8.0, seconds_per_token=0.01)[0].job == 1


@pytest.mark.parametrize(("waiting", "light"), [(15 * 16, False), (16 * 16, True)])
def test_a_light_caller_has_an_eighth_of_its_part_of_what_waits(waiting: int, light: bool) -> None:
    planner = _planner()
    planner.add(_entries(0, [1] * (waiting - 26)), Terms(caller="heavy"))
    assert planner.is_light("light", tokens=16, others=10) == light, "or is on its way"
    planner.add(_entries(0, [1] * 10), Terms(caller="heavy"))
    assert planner.is_light("light", tokens=16) == light
    planner.add(_entries(1, [16]), Terms(caller="light"))
    assert planner.is_light("light") == light
    assert planner.ahead_of_light("third") == (16 if light else 0)
