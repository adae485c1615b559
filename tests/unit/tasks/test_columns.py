"""Payloads and results go to another process and come back as they were."""

import inspect
from collections.abc import Sequence
from dataclasses import is_dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd import tasks
from rerankd.domain import FloatArray
from rerankd.tasks.attend import AttendedPrompt
from rerankd.tasks.columns import _RECORDS, ColumnReader, ColumnWriter
from rerankd.tasks.embed import EncodedText
from rerankd.tasks.embed_tokens import ExpandedText
from rerankd.tasks.encoding import Encoding, PromptEncoding
from rerankd.tasks.generate import Conversation, Generated, Message, Prompt
from rerankd.tasks.prune import PrunablePair
from rerankd.tasks.rank import TextPair
from rerankd.tasks.read_images import IllustratedEncoding, SeenImage
from rerankd.tasks.read_vectors import MarkedPrompt
from rerankd.tasks.reason import Judged
from rerankd.tasks.sample import Answer, Sampled, Sampling
from rerankd.tasks.weigh_words import WORD_WEIGHT


def _ids(*numbers: int) -> Any:
    return np.array(numbers, dtype=np.int32)


def _patches(image: bytes, _digest: bytes, _owner: str) -> FloatArray:
    return np.full((1, 2), len(image), dtype=np.float32)


_IMAGE = SeenImage(b"digest", 2, 3, b"the file", "key", _patches)
_VALUES: dict[str, Sequence[Any]] = {
    "nothing": [],
    "encodings": [Encoding(_ids(1, 2, 3), 1), Encoding(_ids(4), 0), Encoding(_ids(), 0)],
    "equal lengths": [Encoding(_ids(1, 2), 1), Encoding(_ids(3, 4), 2)],
    "prompts with passages": [PromptEncoding(_ids(1, 2), 1, (0, 2)), PromptEncoding(_ids(1), 0, (1, 1))],
    "texts": [EncodedText(_ids(1, 2), 0, 1)],
    "expanded texts": [ExpandedText(_ids(1, 2), 0, 1, np.array([True, False])), ExpandedText(_ids(1), 0)],
    "prunable pairs": [PrunablePair(_ids(1, 2, 3), 1, 1, 2)],
    "images beside plain ones": [Encoding(_ids(1), 0), IllustratedEncoding(_ids(1, 2), 1, (_IMAGE, _IMAGE))],
    "attended prompts": [AttendedPrompt(_ids(1), _ids(2, 3), _ids(), np.array([[0, 1], [1, 2]]))],
    "marked prompts": [MarkedPrompt(_ids(1, 2), np.array([0, 1]))],
    "prompts": [Prompt(_ids(1, 2), 20), Prompt(_ids(3), 1)],
    "conversations": [Conversation((Message("user", "né \ud800"), Message("system", ""))), Conversation(())],
    "pairs of texts": [TextPair("q", "d"), TextPair("q", "d", "an instruction")],
    "written": [Generated("text", [-0.5, -1.0]), Generated("none"), Generated("", (0.25,))],
    "judged": [Judged(np.array([0.5, 1.5], dtype=np.float32), 12, "a thought")],
    "sampled": [Sampled([Answer(["a", "b"], [-1.0, -2.0]), Answer([])], 2), Sampled([], 0)],
    "rows": [*np.arange(6, dtype=np.float32).reshape(3, 2)],
    "vectors of tokens": [np.ones((2, 4), np.float16), np.zeros((5, 4), np.float16)],
    "weights of words": [np.array([(1, 0.5)], dtype=WORD_WEIGHT), np.array([], dtype=WORD_WEIGHT)],
    "lists of arrays": [[np.ones((2, 3))], [np.ones((2, 1)), np.zeros((2, 2))], []],
    "arrays of two kinds": [np.ones(2, np.float32), np.ones(3, np.int64), np.ones((1, 1), np.float32)],
    "scores": [0.5, float("inf"), -1.0],
    "NumPy's numbers": [np.float32(0.5), np.int64(3), np.bool_(True)],
    "groups": [None, "adapter", (224, 224), 7, None, b"bytes", True],
}


def _back(values: Sequence[Any]) -> list[Any]:
    writer = ColumnWriter()
    form = writer.write(values)
    return ColumnReader(writer.take(), _patches).read(form)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
    if is_dataclass(one):
        names = one.__dataclass_fields__
        return type(one) is type(other) and all(_same(getattr(one, name), getattr(other, name)) for name in names)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("values", _VALUES.values(), ids=_VALUES.keys())
def test_values_come_back_as_they_were(values: Sequence[Any]) -> None:
    assert _same([*values], _back(values))


def test_an_image_is_read_where_it_arrives() -> None:
    (_, back) = _back(_VALUES["images beside plain ones"])
    assert back.images[1].patches().tolist() == [[8.0, 8.0]]


@given(st.lists(st.tuples(st.binary(max_size=9), st.lists(st.integers(0, 2**31 - 1), max_size=9), st.text(max_size=5))))
def test_columns_of_any_lengths_stay_apart(rows: list[tuple[bytes, list[int], str]]) -> None:
    writer = ColumnWriter()
    columns = [[row[0] for row in rows], [_ids(*row[1]) for row in rows], [row[2] for row in rows]]
    forms = [writer.write(column) for column in columns]
    reader = ColumnReader(writer.take())
    assert all(_same(column, reader.read(form)) for column, form in zip(columns, forms, strict=True))


def test_what_is_not_listed_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot send"):
        ColumnWriter().write([Encoding])


def test_every_payload_and_result_of_a_task_can_be_sent() -> None:
    """A dataclass of a task is one, unless it is the task itself, with a name, or a setting of one."""
    found = set()
    for module in iter_modules(tasks.__path__):
        loaded = import_module(f"rerankd.tasks.{module.name}")
        for _, kind in inspect.getmembers(loaded, inspect.isclass):
            if is_dataclass(kind) and kind.__module__ == loaded.__name__ and not hasattr(kind, "name"):
                found.add(kind)
    assert found - {Sampling} == set(_RECORDS)
