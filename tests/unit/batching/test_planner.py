"""Batching decisions: what is admitted, what shares a batch, and that nothing is lost."""

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from app.batching.planner import BatchPlanner, Entry
from app.errors import Overloaded

_MANY = 10**9


def _planner(
    *, tokens: int = 64, pairs: int = 8, waiting: int = _MANY, padding: float = 0.25, jobs: Sequence[Sequence[int]] = ()
) -> BatchPlanner:
    planner = BatchPlanner(
        max_batch_tokens=tokens, max_batch_pairs=pairs, max_waiting_tokens=waiting, max_padding=padding
    )
    for number, lengths in enumerate(jobs):
        planner.admit(number, lengths)
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


def test_a_batch_is_filled_with_what_others_have_of_the_same_length() -> None:
    planner = _planner(tokens=48, jobs=[[16], [12, 16], [15, 40]])
    assert planner.next_batch() == [Entry(0, 0, 16), Entry(1, 1, 16), Entry(1, 0, 12)]
    assert planner.next_batch() == [Entry(2, 1, 40)]
    assert planner.next_batch() == [Entry(2, 0, 15)]
    assert not planner


def test_a_longer_encoding_of_another_request_does_not_stretch_the_batch() -> None:
    planner = _planner(tokens=1000, jobs=[[10, 10], [100, 10]])
    assert _lengths([planner.next_batch()]) == [[10, 10, 10]]


def test_padding_within_the_limit_is_accepted() -> None:
    assert _lengths(_drain(_planner(padding=0.25, jobs=[[16, 8]]))) == [[16, 8]]
    assert _lengths(_drain(_planner(padding=0.24, jobs=[[16, 8]]))) == [[16], [8]]


def test_requests_are_served_in_order_of_arrival_and_urgent_ones_first() -> None:
    planner = _planner(tokens=16, jobs=[[16], [16]])
    planner.admit(7, [16], urgent=True)
    planner.admit(8, [16], urgent=True)
    assert [batch[0].job for batch in _drain(planner)] == [7, 8, 0, 1]


@pytest.mark.parametrize(
    ("waiting", "request_tokens", "admitted"),
    [(0, 101, True), (50, 50, True), (50, 51, False), (100, 1, False)],
)
def test_a_request_is_admitted_whole_or_not_at_all(waiting: int, request_tokens: int, admitted: bool) -> None:
    planner = _planner(waiting=100, jobs=[[waiting]] if waiting else [])
    lengths = [1] * request_tokens
    if admitted:
        planner.admit(1, lengths)
        assert planner.waiting_tokens == waiting + request_tokens
    else:
        with pytest.raises(Overloaded, match=f"{waiting} tokens wait .* has {request_tokens} .* limit is 100"):
            planner.admit(1, lengths)
        assert planner.waiting_tokens == waiting
        assert planner.withdraw(1) == 0


def test_urgent_work_is_admitted_beyond_the_limit() -> None:
    planner = _planner(waiting=10, jobs=[[10]])
    planner.admit(1, [10], urgent=True)
    assert planner.waiting_tokens == 20


def test_withdrawing_returns_what_was_saved() -> None:
    planner = _planner(tokens=32, jobs=[[16, 16, 16]])
    planner.admit(1, [5], urgent=True)
    planner.next_batch()
    planner.next_batch()
    assert planner.withdraw(0) == 16
    assert planner.withdraw(0) == 0
    assert planner.withdraw(99) == 0
    assert not planner
    assert planner.waiting_tokens == 0


def test_urgent_work_can_be_withdrawn() -> None:
    planner = _planner()
    planner.admit(1, [5, 6], urgent=True)
    assert planner.withdraw(1) == 11
    assert not planner


def test_nothing_waits_gives_an_empty_batch() -> None:
    assert _planner().next_batch() == []


_LENGTHS = st.lists(st.integers(1, 90), min_size=1, max_size=30)


@given(
    jobs=st.lists(_LENGTHS, min_size=1, max_size=8),
    tokens=st.integers(1, 200),
    pairs=st.integers(1, 12),
    padding=st.floats(0, 1),
)
def test_no_pair_is_lost_or_served_twice_and_every_budget_is_kept(
    jobs: list[list[int]], tokens: int, pairs: int, padding: float
) -> None:
    batches = _drain(_planner(tokens=tokens, pairs=pairs, padding=padding, jobs=jobs))
    served = Counter(entry for batch in batches for entry in batch)
    assert served == Counter(
        Entry(job, position, length) for job, lengths in enumerate(jobs) for position, length in enumerate(lengths)
    )
    for batch in batches:
        longest = batch[0].length
        area = len(batch) * longest
        assert all(entry.length <= longest for entry in batch)
        assert len(batch) <= pairs
        assert area <= tokens or len(batch) == 1
        assert area - sum(entry.length for entry in batch) <= padding * area


@given(jobs=st.lists(_LENGTHS, min_size=2, max_size=8), tokens=st.integers(1, 200))
def test_the_oldest_request_is_in_every_batch_until_it_is_served(jobs: list[list[int]], tokens: int) -> None:
    first_jobs = [batch[0].job for batch in _drain(_planner(tokens=tokens, jobs=jobs))]
    assert first_jobs == sorted(first_jobs)


class PlannerLife(RuleBasedStateMachine):
    """Requests come, are served and go away in any order; a plain model of what waits must agree at every step."""

    jobs: Bundle[int | None] = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.planner = _planner(tokens=100, pairs=4, waiting=400)
        self.waiting: dict[int, dict[int, int]] = {}
        self.urgent: set[int] = set()
        self.numbers = 0

    def _total(self) -> int:
        return sum(sum(lengths.values()) for lengths in self.waiting.values())

    @rule(target=jobs, lengths=_LENGTHS, urgent=st.booleans())
    def admit(self, lengths: list[int], urgent: bool) -> int | None:
        self.numbers += 1
        refused = bool(self.waiting) and not urgent and self._total() + sum(lengths) > 400
        try:
            self.planner.admit(self.numbers, lengths, urgent=urgent)
        except Overloaded:
            assert refused
            return None
        assert not refused
        self.waiting[self.numbers] = dict(enumerate(lengths))
        if urgent:
            self.urgent.add(self.numbers)
        return self.numbers

    @rule()
    def serve(self) -> None:
        batch = self.planner.next_batch()
        assert bool(batch) == bool(self.waiting)
        if batch and self.urgent & self.waiting.keys():
            assert batch[0].job in self.urgent
        for entry in batch:
            assert self.waiting[entry.job].pop(entry.position) == entry.length
            if not self.waiting[entry.job]:
                del self.waiting[entry.job]

    @rule(job=consumes(jobs))
    def withdraw(self, job: int | None) -> None:
        number = job or 10**6
        assert self.planner.withdraw(number) == sum(self.waiting.pop(number, {}).values())

    @invariant()
    def waiting_tokens_are_the_sum_of_what_waits(self) -> None:
        assert self.planner.waiting_tokens == self._total()
        assert bool(self.planner) == bool(self.waiting)


TestPlannerLife = PlannerLife.TestCase
TestPlannerLife.settings = settings(max_examples=40, stateful_step_count=30)
