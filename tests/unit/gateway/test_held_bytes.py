"""How many bytes each key may hold: exact at the edges, and given back whole."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rerankd.errors import Overloaded
from rerankd.gateway.held_bytes import Claim, HeldBytes

_MAX = 120


def _hold_all_it_may(held: HeldBytes, key: str) -> int:
    """How much a key gets hold of that asks byte by byte with many requests."""
    taken = 0
    while True:
        try:
            Claim(held, key).take(1)
        except Overloaded:
            return taken
        taken += 1


def test_without_keys_all_may_be_held() -> None:
    assert _hold_all_it_may(HeldBytes(_MAX), "") == _MAX


def test_greedy_keys_leave_as_much_as_each_of_them_has() -> None:
    held = HeldBytes(_MAX)
    assert _hold_all_it_may(held, "a") == _MAX // 2
    assert _hold_all_it_may(held, "b") == _MAX // 4
    assert _hold_all_it_may(held, "c") == _MAX // 8
    assert _MAX - held.total == _MAX // 8


@pytest.mark.parametrize("key", ["", "a"])
def test_one_request_alone_always_has_room(key: str) -> None:
    claim = Claim(HeldBytes(_MAX), key)
    for _ in range(3):
        claim.take(_MAX)
    assert claim.bytes == 3 * _MAX


@pytest.mark.parametrize(("amount", "fits"), [(60, True), (61, False)])
def test_a_key_may_hold_as_much_as_it_leaves(amount: int, fits: bool) -> None:
    held = HeldBytes(_MAX)
    Claim(held, "a").take(0)
    Claim(held, "other").hold(1)
    held.max_bytes += 1
    if fits:
        Claim(held, "a").take(amount)
    else:
        with pytest.raises(Overloaded, match="leave 59 for others"):
            Claim(held, "a").take(amount)


def test_an_answer_takes_the_place_of_what_was_held_for_it() -> None:
    held = HeldBytes(_MAX)
    claim = Claim(held, "a")
    claim.take(40)
    claim.change(10)
    assert (held.total, held.of_key["a"]) == (10, 10)
    claim.change(60)
    assert (held.total, held.of_key["a"]) == (60, 60)


def test_a_key_whose_answers_are_larger_than_its_bodies_leaves_room_for_others() -> None:
    held = HeldBytes(_MAX)
    claims = [Claim(held, "a") for _ in range(5)]
    refused = 0
    for claim in claims:
        claim.take(10)
    for claim in claims:
        try:
            claim.change(20)
        except Overloaded:
            refused += 1
    assert refused == 4
    assert held.of_key["a"] == 60
    Claim(held, "b").take(30)


def test_an_answer_counts_and_is_never_refused() -> None:
    held = HeldBytes(_MAX)
    Claim(held, "a").hold(10 * _MAX)
    with pytest.raises(Overloaded, match="other requests hold 1200 bytes"):
        Claim(held, "b").take(1)


@example([("a", 0, True)])
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 100), st.booleans()), max_size=50))
def test_what_is_held_is_what_claims_hold(steps: list[tuple[str, int, bool]]) -> None:
    held = HeldBytes(_MAX)
    claims: list[Claim] = []
    for key, amount, keep in steps:
        claim = Claim(held, key)
        try:
            claim.take(amount)
        except Overloaded:
            assert held.total > 0
        if keep:
            claims.append(claim)
        else:
            claim.release()
        assert held.total == sum(claim.bytes for claim in claims)
        holding = {claim.key for claim in claims if claim.bytes}
        assert holding <= set(held.of_key) <= {claim.key for claim in claims}
    for claim in claims:
        claim.release()
    assert (held.total, dict(held.of_key)) == (0, {})
