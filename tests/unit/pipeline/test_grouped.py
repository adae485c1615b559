"""Into which groups documents are put."""

from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from rerankd.domain import GroupPlan
from rerankd.pipeline.grouped import groups_of


@given(st.integers(1, 60), st.integers(2, 12), st.integers(1, 5))
def test_each_document_is_in_one_group_of_each_pass(documents: int, size: int, passes: int) -> None:
    keys = [bytes([number]) for number in range(documents)]
    groups = groups_of(keys, GroupPlan(size=size, passes=passes))
    count = ceil(documents / size)
    assert len(groups) == passes * count
    for start in range(0, len(groups), count):
        one = groups[start : start + count]
        assert sorted(index for group in one for index in group) == list(range(documents))
        assert max(map(len, one)) <= size
        assert max(map(len, one)) - min(map(len, one)) <= 1


def test_groups_are_drawn_from_the_texts_and_not_from_their_order() -> None:
    plan = GroupPlan(size=5, passes=3)
    keys = [bytes([number]) for number in range(20)]
    turned = keys[::-1]
    one = [[keys[index] for index in group] for group in groups_of(keys, plan)]
    assert one == [[turned[index] for index in group] for group in groups_of(turned, plan)]
    assert sorted(map(sorted, one[:4])) != sorted(map(sorted, one[4:8])), "each pass draws again"
    other = [bytes([number + 1]) for number in range(20)]
    assert groups_of(other, plan) != groups_of(keys, plan)
