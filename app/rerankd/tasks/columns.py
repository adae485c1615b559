"""Writes payloads and results as columns: a small description and a few large buffers, whatever their number.

Values of one kind become one column, like Arrow's: the ids of a hundred encodings are one array and their lengths
another. Only what is listed here can be read back, so bytes from another process make data and nothing else.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from itertools import accumulate, chain
from operator import attrgetter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rerankd.domain import FloatArray
from rerankd.tasks.attend import AttendedPrompt
from rerankd.tasks.embed import EncodedText
from rerankd.tasks.embed_tokens import ExpandedText
from rerankd.tasks.encoding import Encoding, PromptEncoding
from rerankd.tasks.generate import Conversation, Generated, Message, Prompt
from rerankd.tasks.prune import PrunablePair
from rerankd.tasks.rank import TextPair
from rerankd.tasks.read_images import IllustratedEncoding, SeenImage
from rerankd.tasks.read_vectors import MarkedPrompt
from rerankd.tasks.reason import Judged
from rerankd.tasks.sample import Answer, Sampled
from rerankd.tasks.weigh_words import WORD_WEIGHT

# What describes a column: JSON.
Form = list[Any]
ReadImage = Callable[[bytes, bytes, str], FloatArray]

_ALIGNED: Final = 8
_RECORDS: Final = (
    Encoding,
    PromptEncoding,
    EncodedText,
    ExpandedText,
    PrunablePair,
    IllustratedEncoding,
    SeenImage,
    AttendedPrompt,
    MarkedPrompt,
    Prompt,
    Message,
    Conversation,
    TextPair,
    Generated,
    Judged,
    Answer,
    Sampled,
)
_NAMED: Final[dict[str, type[Any]]] = {record.__name__: record for record in _RECORDS}
# A function stays where it is: the reader has its own.
_FIELDS: Final = {
    record: [field.name for field in fields(record) if (record, field.name) != (SeenImage, "read")]
    for record in _RECORDS
}
_GETTERS: Final = {record: [attrgetter(name) for name in names] for record, names in _FIELDS.items()}
_DTYPES: Final = {"words": WORD_WEIGHT}
_SCALARS: Final = {"bool": np.bool_, "int": np.int64, "float": np.float64}


def _no_images(_image: bytes, _digest: bytes, _owner: str) -> FloatArray:
    raise TypeError("cannot read an image: the model has only texts")


class ColumnWriter:
    """Collects the buffers of columns."""

    def __init__(self) -> None:
        self._buffers: list[bytes] = []

    def write(self, values: Sequence[Any]) -> Form:
        """Add a column and return its form.

        Raises:
            TypeError: a value is of no kind that can be written.
        """
        kinds = set(map(type, values))
        if len(kinds) == 1:
            return self._write_kind(kinds.pop(), values)
        if not kinds:
            return ["none", 0]
        return self._write_parts(list(map(type, values)), values)

    def take(self) -> bytes:
        """All buffers, one after another, each aligned."""
        return b"".join(self._buffers)

    def _write_kind(self, kind: type, values: Sequence[Any]) -> Form:  # noqa: PLR0911 - one line for each kind
        if kind in _GETTERS:
            return ["record", kind.__name__, [self.write([*map(get, values)]) for get in _GETTERS[kind]]]
        if issubclass(kind, np.ndarray):
            return self._write_arrays(values)
        if kind is type(None):
            return ["none", len(values)]
        if kind is bytes:
            return ["bytes", self._write_joined(values)]
        if kind is str:
            return ["str", self._write_joined([value.encode("utf-8", "surrogatepass") for value in values])]
        if issubclass(kind, bool | np.bool_):
            return ["bool", self._put(np.array(values, dtype=np.bool_))]
        if issubclass(kind, int | np.integer):
            return ["int", self._put(np.array(values, dtype=np.int64))]
        if issubclass(kind, float | np.floating):
            return ["float", self._put(np.array(values, dtype=np.float64))]
        if kind in (tuple, list):
            lengths = self._put(np.array([*map(len, values)], dtype=np.int64))
            return [kind.__name__, lengths, self.write([*chain.from_iterable(values)])]
        raise TypeError(f"cannot send {kind.__qualname__} to another process")

    def _write_parts(self, kinds: Sequence[object], values: Sequence[Any]) -> Form:
        """Values of several kinds: the number of each one's kind, and a column a kind."""
        numbers = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
        chosen = self._put(np.array([numbers[kind] for kind in kinds], dtype=np.uint8))
        parts = [[value for value, of in zip(values, kinds, strict=True) if of == kind] for kind in numbers]
        return ["parts", chosen, [self.write(part) for part in parts]]

    def _write_arrays(self, values: Sequence[NDArray[Any]]) -> Form:
        kinds = {(value.dtype, value.ndim) for value in values}
        if len(kinds) > 1:
            return self._write_parts([(value.dtype, value.ndim) for value in values], values)
        dtype, dimensions = kinds.pop()
        named = next((name for name, known in _DTYPES.items() if known == dtype), dtype.str)
        shapes = {value.shape for value in values}
        if len(shapes) == 1:
            return ["array", named, len(values), shapes.pop(), self._put(np.array(values, dtype=dtype))]
        flat = values if dimensions == 1 else [value.ravel() for value in values]
        of_shapes = self._put(np.array([value.shape for value in values], dtype=np.int64))
        return ["arrays", named, dimensions, of_shapes, self._put(np.concatenate(flat, dtype=dtype))]

    def _write_joined(self, values: Sequence[bytes]) -> list[int]:
        return [self._put(np.array([*map(len, values)], dtype=np.int64)), self._add(b"".join(values))]

    def _put(self, array: NDArray[Any]) -> int:
        return self._add(array.tobytes())

    def _add(self, content: bytes) -> int:
        self._buffers.append(content)
        if rest := len(content) % _ALIGNED:
            self._buffers.append(bytes(_ALIGNED - rest))
        return len(content)


class ColumnReader:
    """Reads columns back in the order in which they were written. `read_image` gives images their patches."""

    def __init__(self, buffers: bytes, read_image: ReadImage = _no_images) -> None:
        self._buffers = buffers
        self._at = 0
        self._seen_image = partial(SeenImage, read=read_image)

    def read(self, form: Form) -> list[Any]:
        """The values of a column. Arrays are views of the buffers.

        Raises:
            ValueError: this is no column.
        """
        kind, *rest = form
        if kind in _SCALARS:
            return self._numbers(_SCALARS[kind], *rest).tolist()  # type: ignore[no-any-return] # as NumPy's own stub says
        if kind == "none":
            return [None] * rest[0]
        readers: dict[str, Callable[..., list[Any]]] = {
            "record": self._records,
            "bytes": self._bytes,
            "str": self._strs,
            "tuple": self._tuples,
            "list": self._lists,
            "parts": self._parts,
            "array": self._array,
            "arrays": self._arrays,
        }
        return readers[kind](*rest)

    def _records(self, name: str, columns: Sequence[Form]) -> list[Any]:
        record = self._seen_image if name == SeenImage.__name__ else _NAMED[name]
        return [*map(record, *[self.read(column) for column in columns])]

    def _bytes(self, sizes: tuple[int, int]) -> list[bytes]:
        lengths, content = self._numbers(np.int64, sizes[0]).tolist(), self._take(sizes[1])
        ends = [*accumulate(lengths)]
        return [content[end - length : end] for end, length in zip(ends, lengths, strict=True)]

    def _strs(self, sizes: tuple[int, int]) -> list[str]:
        return [content.decode("utf-8", "surrogatepass") for content in self._bytes(sizes)]

    def _tuples(self, size: int, column: Form) -> list[tuple[Any, ...]]:
        return [*map(tuple, self._lists(size, column))]

    def _lists(self, size: int, column: Form) -> list[list[Any]]:
        lengths = self._numbers(np.int64, size).tolist()
        values = self.read(column)
        return [values[end - length : end] for end, length in zip(accumulate(lengths), lengths, strict=True)]

    def _parts(self, size: int, columns: Sequence[Form]) -> list[Any]:
        chosen = self._numbers(np.uint8, size).tolist()
        parts = [iter(self.read(column)) for column in columns]
        return [next(parts[number]) for number in chosen]

    def _array(self, dtype: str, count: int, shape: Sequence[int], size: int) -> list[NDArray[Any]]:
        return [*self._numbers(_DTYPES.get(dtype, dtype), size).reshape(count, *shape)]

    def _arrays(self, dtype: str, dimensions: int, of_shapes: int, size: int) -> list[NDArray[Any]]:
        shapes = self._numbers(np.int64, of_shapes).reshape(-1, dimensions)
        content = self._numbers(_DTYPES.get(dtype, dtype), size)
        sizes = shapes.prod(axis=1).tolist()
        flat = [content[end - length : end] for end, length in zip(accumulate(sizes), sizes, strict=True)]
        if dimensions == 1:
            return flat
        return [one.reshape(shape) for one, shape in zip(flat, shapes.tolist(), strict=True)]

    def _numbers(self, dtype: Any, size: int) -> NDArray[Any]:  # noqa: ANN401 - whatever NumPy takes for one
        start = self._advance(size)
        dtype = np.dtype(dtype)
        return np.frombuffer(self._buffers, dtype, count=size // dtype.itemsize, offset=start)

    def _take(self, size: int) -> bytes:
        start = self._advance(size)
        return self._buffers[start : start + size]

    def _advance(self, size: int) -> int:
        start, self._at = self._at, self._at + -(-size // _ALIGNED) * _ALIGNED
        return start
