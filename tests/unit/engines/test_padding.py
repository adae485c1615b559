"""Sequences of different lengths become one rectangle."""

import numpy as np
import pytest

from rerankd.engines.base import pad
from rerankd.tasks.encoding import Encoding


def encoding(*ids: int, boundary: int) -> Encoding:
    return Encoding(np.array(ids, dtype=np.int64), boundary)


def test_shorter_sequences_are_filled_with_the_padding_id_and_masked() -> None:
    batch = pad([encoding(5, 6, 7, 8, boundary=2), encoding(9, boundary=1)], pad_id=1)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [9, 1, 1, 1]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]
    assert batch.token_type_ids.tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("boundary", "expected"), [(0, [1, 1, 1]), (1, [0, 1, 1]), (2, [0, 0, 1]), (3, [0, 0, 0]), (9, [0, 0, 0])]
)
def test_segment_one_starts_at_the_boundary(boundary: int, expected: list[int]) -> None:
    batch = pad([encoding(5, 6, 7, boundary=boundary), encoding(5, 6, 7, 8, boundary=4)], pad_id=0)
    assert batch.token_type_ids[0].tolist() == [*expected, 0]


def test_every_array_is_what_exported_graphs_take() -> None:
    batch = pad([encoding(5, boundary=1)], pad_id=0)
    assert {array.dtype for array in (batch.input_ids, batch.attention_mask, batch.token_type_ids)} == {
        np.dtype("int64")
    }
