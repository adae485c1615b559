"""Hostile bodies: every field of every dialect, with every shape that may cost more than its bytes. Fields are read
from the dialects' models, so that new ones are included.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from inspect import signature
from itertools import count
from typing import Final, get_args

import orjson
from pydantic import AliasChoices, BaseModel

from rerankd.api.dialects import DIALECTS
from rerankd.api.dialects.base import Dialect

_UNKNOWN: Final = "no_such_field"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostileBody:
    """A request whose body grows with the `size` that `content` is asked for, about as many bytes."""

    dialect: Dialect
    path: str
    headers: Mapping[str, str]
    field: str
    shape: str
    content: Callable[[int], bytes]

    def __str__(self) -> str:
        return f"{self.dialect.name}-{self.field}-{self.shape.replace(' ', '-')}"


def hostile_bodies() -> Iterator[HostileBody]:
    """All of them: dialects times fields times shapes, and what takes two fields together."""
    for dialect in DIALECTS:
        for place in _places(dialect.body):
            for shape, write in SHAPES.items():
                yield _hostile(dialect, ".".join(place), shape, _in_place(dialect, place, write))
        for shape, write in _REPEATED.items():
            yield _hostile(dialect, "body", shape, write)
        if "rank_fields" in dialect.body.model_fields:
            for shape, write_both in _RANKED.items():
                yield _hostile(dialect, "rank_fields", shape, _ranked(dialect, write_both))


def _hostile(dialect: Dialect, field: str, shape: str, content: Callable[[int], bytes]) -> HostileBody:
    headers = {"x-pinecone-api-version": "2025-10"} if dialect.name == "pinecone" else {}
    path = re.sub(r"{\w+:path}", "name", dialect.paths[-1])
    return HostileBody(dialect=dialect, path=path, headers=headers, field=field, shape=shape, content=content)


def _places(model: type) -> Iterator[tuple[str, ...]]:
    """Every field by the names that clients use, those of objects in it, and one that there is not."""
    yield (_UNKNOWN,)
    if not issubclass(model, BaseModel):
        yield from ((name,) for name in signature(model).parameters)
        return
    for name, field in model.model_fields.items():
        aliases = field.validation_alias
        names = [str(choice) for choice in aliases.choices] if isinstance(aliases, AliasChoices) else [name]
        for one in names:
            yield (one,)
            for inner in _models_in(field.annotation):
                yield from ((one, *rest) for rest in _places(inner))


def _models_in(annotation: object) -> Iterator[type]:
    """Models that a field holds itself; those in its lists are among the shapes of lists."""
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation)):
        yield annotation
    elif not str(annotation).startswith("list"):
        for inner in get_args(annotation):
            yield from _models_in(inner)


def _in_place(dialect: Dialect, place: tuple[str, ...], write: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """The dialect's example with one of its fields replaced. Its other names for the same field are left out."""
    others = {str(choice) for choice in _synonyms(dialect.body, place[0])}

    def content(size: int) -> bytes:
        sent = {name: orjson.dumps(value) for name, value in dialect.example.items() if name not in others}
        value = write(size)
        for name in reversed(place[1:]):
            value = b'{"%b": %b}' % (name.encode(), value)
        return _object(sent | {place[0]: value})

    return content


def _synonyms(model: type[BaseModel], name: str) -> list[str]:
    for field_name, field in model.model_fields.items():
        aliases = field.validation_alias
        names = [str(choice) for choice in aliases.choices] if isinstance(aliases, AliasChoices) else [field_name]
        if name in names:
            return names
    return [name]


def _object(fields: Mapping[str, bytes]) -> bytes:
    return b"{" + b", ".join(b'"%b": %b' % (name.encode(), value) for name, value in fields.items()) + b"}"


def _list(entry: bytes) -> Callable[[int], bytes]:
    return lambda size: b"[" + b",".join([entry] * max(1, size // (len(entry) + 1))) + b"]"


def _numbered(entry: str, opening: bytes, closing: bytes) -> Callable[[int], bytes]:
    """Entries that differ: `%d` is a number of seven digits."""

    def write(size: int) -> bytes:
        entries = size // (len(entry) + 6)
        return (
            opening + b",".join(entry.encode() % number for number in range(10**6, 10**6 + max(1, entries))) + closing
        )

    return write


def _deep(opening: bytes, closing: bytes) -> Callable[[int], bytes]:
    """As deep as is read, again and again."""

    def write(size: int) -> bytes:
        one = opening * 1000 + b"1" + closing * 1000
        return b"[" + b",".join([one] * max(1, size // len(one))) + b"]"

    return write


# What a field is set to.
SHAPES: Final[Mapping[str, Callable[[int], bytes]]] = {
    "one word": lambda size: b'"' + b"x" * size + b'"',
    "many words": lambda size: b'"' + b"word " * (size // 5) + b'"',
    "blanks": lambda size: b'"' + b" " * size + b'"',
    "escapes": lambda size: b'"' + b"\\u00e9" * (size // 6) + b'"',
    "backslashes": lambda size: b'"' + b"\\\\" * (size // 2) + b'"',
    "one emoji in ASCII": lambda size: b'"' + b"x" * size + "💥".encode() + b'"',
    "digits": lambda size: b"1" * min(size, 300) + b" " * size,
    "blanks between": lambda size: b"[" + b" " * size + b"]",
    "empty texts": _list(b'""'),
    "short texts": _list(b'"ab"'),
    "distinct texts": _numbered('"%d"', b"[", b"]"),
    "numbers": _list(b"1e9"),
    "whole numbers": _list(b"300"),
    "nulls": _list(b"null"),
    "empty lists": _list(b"[]"),
    "empty objects": _list(b"{}"),
    "small objects": _list(b'{"a":1}'),
    "small documents": _list(b'{"text":"a"}'),
    "one long document": lambda size: b'[{"text": "' + b"word " * (size // 5) + b'"}]',
    "long documents": lambda size: b"[" + b",".join([b'{"text": "' + b"word " * (size // 500) + b'"}'] * 100) + b"]",
    "documents of many fields": _list(b"{" + b",".join(b'"f%d":"x"' % number for number in range(100)) + b"}"),
    "documents of numbers": _list(b'{"a":1E15,"b":[1E15,1E15]}'),
    "one document of many fields": _numbered('"%d":1', b'[{"text":"a",', b"}]"),
    "one document of many numbers": _numbered('"%d":1.5', b"[{", b"}]"),
    "documents of many numbers": _list(b"{" + b",".join(b'"f%d":1.5' % number for number in range(100)) + b"}"),
    "many fields": _numbered('"%d":1', b"{", b"}"),
    "lists in lists": _deep(b"[", b"]"),
    "objects in objects": _deep(b'{"a":', b"}"),
    "long names": lambda size: b'[{"' + b"n" * (size // 2) + b'": 1}, {"' + b"n" * (size // 2) + b'": 1}]',
}

# Whole bodies.
_REPEATED: Final[Mapping[str, Callable[[int], bytes]]] = {
    "unknown fields": _numbered('"f%d":0', b"{", b"}"),
    "one field again and again": lambda size: b'{"query": "q"' + b',"documents":["a"]' * (size // 18) + b"}",
    "no object": _list(b"[]"),
    "commas": lambda size: b"{" + b"," * size + b"}",
    "opening brackets": lambda size: b"[" * size,
    "blanks before": lambda size: b" " * size + b"{}",
    "a text without end": lambda size: b'{"query": "' + b"x" * size,
    "no UTF-8": lambda size: b'{"query": "' + b"\xe9" * size + b'"}',
    "UTF-16": lambda size: ('{"query": "' + "x" * (size // 2) + '"}').encode("utf-16"),
}

# `rank_fields` and the documents that they are to be read of.
_RANKED: Final[Mapping[str, Callable[[int], tuple[bytes, bytes]]]] = {
    "one name again and again": lambda size: (
        _list(b'"a"')(size // 2),
        b'[{"a": "' + b"x" * (size // 2) + b'"}]',
    ),
    "names times documents": lambda size: (
        _numbered('"%d"', b"[", b"]")(min(size, 60 * 10)),
        b"[" + b",".join([b'{"1000000": 1}'] * min(10_000, size // 15)) + b"]",
    ),
    "many names": lambda size: (
        _numbered('"%d"', b"[", b"]")(size // 2),
        _list(b'{"1000000": 1}')(size // 2),
    ),
    "some fields of one large document": lambda size: (
        b"[" + b",".join(b'"%d"' % number for number in range(10**6, 10**6 + 64)) + b"]",
        _numbered('"%d":1.5', b"[{", b"}]")(size),
    ),
    "all fields of large documents": lambda size: (
        b"[" + b",".join(b'"f%d"' % number for number in range(64)) + b"]",
        _list(b"{" + b",".join(b'"f%d":[1E15]' % number for number in range(64)) + b"}")(size),
    ),
}


def _ranked(dialect: Dialect, write: Callable[[int], tuple[bytes, bytes]]) -> Callable[[int], bytes]:
    documents = next(iter(dialect.document_fields))

    def content(size: int) -> bytes:
        names, values = write(size)
        return _object({"query": b'"q"', documents: values, "rank_fields": names})

    return content


def spread(bodies: Iterator[HostileBody], *, one_in: int) -> list[HostileBody]:
    """One in this many, spread over all dialects, fields and shapes."""
    return [body for number, body in zip(count(), bodies, strict=False) if number % one_in == 0]
