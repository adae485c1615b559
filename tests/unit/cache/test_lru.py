"""The map behind the caches: bounded, the least recently used out first, and fair to its owners."""

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from rerankd.cache.lru import Lru

_SIZE = 100
_OWNERS = st.sampled_from(["a", "b", "c"])
_STEPS = st.lists(
    st.tuples(st.sampled_from(["get", "put"]), st.integers(0, 30), st.integers(1, 40), _OWNERS), max_size=200
)


def _lru(max_size: int = _SIZE) -> Lru[int, int]:
    """A value is its own size."""
    return Lru(max_size=max_size, size_of=lambda _, value: value)


@given(_STEPS)
def test_with_one_owner_it_is_an_lru(steps: list[tuple[str, int, int, str]]) -> None:
    lru, model = _lru(), OrderedDict[int, int]()
    for what, key, value, _ in steps:
        if what == "get":
            if key in model:
                model.move_to_end(key)
            assert lru.get(key) == model.get(key)
            continue
        model[key] = value
        model.move_to_end(key)
        while sum(model.values()) > _SIZE:
            model.popitem(last=False)
        lru.put(key, value)
        assert (len(lru), lru.size) == (len(model), sum(model.values()))
    assert lru.get_many(range(31)) == [model.get(key) for key in range(31)]


@given(_STEPS)
def test_it_is_bounded_and_an_owner_below_its_part_loses_nothing(steps: list[tuple[str, int, int, str]]) -> None:
    lru, held, kept = _lru(), {"a": 0, "b": 0, "c": 0}, dict[int, tuple[str, int]]()
    for what, key, value, asking in steps:
        if what == "get":
            lru.get(key)
            continue
        owner = asking if lru.get(key) is None else kept[key][0]
        lru.put(key, value, owner=owner)
        kept[key] = owner, value
        kept = {one: known for one, known in kept.items() if lru.get_many([one]) != [None]}
        for name, before in held.items():
            held[name] = sum(size for whose, size in kept.values() if whose == name)
            if held[name] < before and name != owner:
                assert before * 3 >= _SIZE, "who loses something held an equal part at least"
        assert lru.size == sum(held.values()) <= _SIZE


def test_what_does_not_fit_is_not_kept_and_costs_others_nothing() -> None:
    lru = _lru()
    lru.put(1, 40, owner="a")
    lru.put(2, 101, owner="b")
    assert lru.get_many([1, 2]) == [40, None]
    assert lru.size == 40


def test_all_owners_find_an_entry_and_it_stays_with_its_own() -> None:
    lru = _lru()
    lru.put(1, 10, owner="a")
    assert lru.get(1) == 10
    lru.put(1, 20, owner="b")
    for key in range(2, 30):
        lru.put(key, 10, owner="a")
    assert lru.get(1) is None, "it was the one that a used longest ago"


def test_nothing_is_left_after_clearing() -> None:
    lru = _lru()
    lru.put(1, 10)
    lru.clear()
    assert (lru.get(1), len(lru), lru.size) == (None, 0, 0)
    lru.put(1, 10)
    assert lru.get(1) == 10
