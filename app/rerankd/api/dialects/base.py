"""What a dialect is: one family of clients' words for a rerank request and its answer."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any, Final, cast

import orjson
from pydantic import AliasChoices, BaseModel, PrivateAttr, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails

from rerankd.api.parsing.raw_body import RawBody
from rerankd.concurrency.slices import Sliced
from rerankd.config.options import JSON, field_of, find, phrase_of
from rerankd.domain import RerankRequest, RerankResult, Truncation
from rerankd.errors import InvalidRequest, RequestTooLarge, RerankError

Json = dict[str, Any]

# Where clients of several dialects meet; the body says which of them it is.
SHARED_PATHS: Final = ("/v1/rerank", "/rerank")

_PROBLEMS_SHOWN = 3
_IGNORED_SHOWN = 10
_NAME_SHOWN = 100
_VALUE_SHOWN = 60
_NO_BODY = RawBody()
# Kinds of problems of which the value says nothing more.
_WITHOUT_VALUE: Final = frozenset(["missing", "too_short", "too_long"])
_PRINTABLE = re.compile(r"[\w.-]{1,64}", re.ASCII)


def shown(value: object) -> str:
    """A caller's value in a message: enough to recognise it, however long it is."""
    if isinstance(value, str):
        return repr(value) if len(value) <= _VALUE_SHOWN else f"{value[:_VALUE_SHOWN]!r}... ({len(value)} characters)"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return "null" if value is None else orjson.dumps(value).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLimits:
    """How much of each thing a request may have; what exceeds it is refused before anything is built from it. `fields`
    are those of an object beside the documents.
    """

    documents: int
    queries: int
    rank_fields: int
    fields: int


def limits_of(info: ValidationInfo) -> CallLimits:
    """The limits under which `Dialect.parse` reads a body."""
    return cast(CallLimits, info.context)


class Call(BaseModel, ABC):
    """A request body in a dialect's words. Unknown fields are ignored, as clients expect of a drop-in, unless the
    operator wants them refused.
    """

    _raw_body: RawBody | None = PrivateAttr(default=None)

    @property
    def raw_body(self) -> RawBody:
        """The bytes that this was parsed from; empty unless a list in it holds objects."""
        return self._raw_body or _NO_BODY

    def keep(self, raw_body: RawBody) -> None:
        self._raw_body = raw_body

    def prepare(self) -> Sliced[None]:
        """Do what takes long before `to_requests`, in slices.

        Raises:
            InvalidRequest: a document is neither text nor an object with the fields to read.
        """
        yield from ()

    @abstractmethod
    def to_requests(self) -> Sequence[RerankRequest]:
        """Say it in our words: one request for each query.

        Raises:
            InvalidRequest: a document is neither text nor an object with the fields to read.
        """

    @abstractmethod
    def render(self, results: Sequence[RerankResult], *, request_id: str) -> Json | list[Json]:
        """The answer in the dialect's words, from the result of each request."""


class QueryCall(Call):
    """A call with one query, as those of all rerank dialects are."""

    @abstractmethod
    def to_request(self) -> RerankRequest:
        """As `to_requests`."""

    @abstractmethod
    def render_result(self, result: RerankResult, *, request_id: str) -> Json | list[Json]:
        """As `render`."""

    def to_requests(self) -> Sequence[RerankRequest]:
        return [self.to_request()]

    def render(self, results: Sequence[RerankResult], *, request_id: str) -> Json | list[Json]:
        return self.render_result(results[0], request_id=request_id)


def _every_call(_body: Mapping[str, Any], _headers: Mapping[str, str]) -> bool:
    return True


def has_field(*names: str) -> Callable[[Mapping[str, Any], Mapping[str, str]], bool]:
    """Claims bodies with one of these fields, be it null: some clients send all that they know."""
    return lambda body, _headers: not body.keys().isdisjoint(names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """Paths may be shared: the first registered dialect that `claims` a body on its path gets it. On a path of its own
    a dialect gets every body that has one of the fields it `takes` documents from; others get theirs there too. A
    parameter of a path is a field that the body may leave out. `answer` describes the answer in the OpenAPI document;
    `example` is a request body for the same purpose. `cut_by` is how a request allows that long
    texts are cut; empty: it cannot.
    """

    name: str
    paths: tuple[str, ...]
    takes: frozenset[str]
    call: type[Call]
    answer: type[BaseModel]
    example: Json
    cut_by: str = ""
    claims: Callable[[Mapping[str, Any], Mapping[str, str]], bool] = _every_call

    @property
    def shares(self) -> bool:
        """Whether it answers on the paths where the body says whose it is."""
        return set(SHARED_PATHS) <= set(self.paths)

    def parse(self, body: Mapping[str, Any], text: bytes, *, limits: CallLimits, strict: bool = False) -> Call:
        """Read a body; `text` is what it came as.

        Raises:
            InvalidRequest: a field is missing or has the wrong type, or is unknown and `strict` forbids that; the
                message names it.
            RequestTooLarge: there is more of something than the limits allow.
        """
        self._refuse_long_lists(body, limits)
        try:
            call = self.call.model_validate(body, extra="forbid" if strict else "ignore", context=limits)
        except ValidationError as error:
            raise InvalidRequest(_explain(error, self.call)) from None
        except RecursionError:
            # A field of a few words: Python writes out whatever is not one of them.
            raise InvalidRequest("a field is nested too deeply to be what its name says; flatten it") from None
        if any(dict in set(map(type, body[name])) for name in self.takes if isinstance(body.get(name), list)):
            call.keep(RawBody(text))
        return call

    def count(self, body: Mapping[str, Any]) -> int:
        """How many documents a body has, before it is read."""
        return sum(len(body[name]) for name in self.takes if isinstance(body.get(name), list))

    def in_own_words(self, error: RerankError, requests: Sequence[RerankRequest]) -> RerankError:
        """An error that names fields, with the dialect's own names of them."""
        if not isinstance(error, InvalidRequest) or error.too_long is None:
            return error
        cut = any(request.options.truncation is Truncation.TRUNCATE for request in requests)
        documents = next(name for name in self.example if name in self.takes)
        return InvalidRequest(error.too_long.told(documents=documents, cut_by="" if cut else self.cut_by))

    def ignored(self, body: Mapping[str, Any]) -> list[str]:
        """The fields of a body that mean nothing here, those of objects in it as `passages.token`, so that a misspelt
        one can be noticed; at most ten.
        """
        return list(islice(_unknown_fields(body, self.call), _IGNORED_SHOWN))

    def _refuse_long_lists(self, body: Mapping[str, Any], limits: CallLimits) -> None:
        """Check the length of every list, of unknown fields too, before anything reads its entries."""
        for name, value in body.items():
            if isinstance(value, list) and len(value) > limits.documents:
                what = "documents per request" if name in self.takes else "entries in a list"
                raise RequestTooLarge(f"at most {limits.documents} {what}; {name[:_NAME_SHOWN]} has {len(value)}")
            if isinstance(value, dict) and len(value) > limits.fields:
                raise RequestTooLarge(
                    f"at most {limits.fields} fields in an object; {name[:_NAME_SHOWN]} has {len(value)}"
                )


@cache
def _known_fields(call: type[BaseModel]) -> frozenset[str]:
    aliases = [field.validation_alias for field in call.model_fields.values()]
    choices = [choice for alias in aliases if isinstance(alias, AliasChoices) for choice in alias.choices]
    return frozenset([*call.model_fields, *(choice for choice in choices if isinstance(choice, str))])


def _unknown_fields(body: Mapping[str, Any], shape: type[BaseModel]) -> Iterator[str]:
    """Objects in lists are the caller's texts, which may have fields of his own."""
    known = _known_fields(shape)
    for name, value in body.items():
        if name not in known:
            if _PRINTABLE.fullmatch(name):
                yield name
        elif isinstance(value, dict):
            field = field_of(shape, name)
            inner = find(BaseModel, field.annotation) if field else None
            yield from (f"{name}.{unknown}" for unknown in (_unknown_fields(value, inner) if inner else ()))


def _explain(error: ValidationError, call: type[Call]) -> str:
    problems = error.errors(include_url=False)
    # What is unknown is shown first: a field that is missing may be the same, misspelt.
    problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
    # A value that fits none of several types has a problem with each.
    phrases: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        place = _place(problem, call)
        before, phrase, after = _said(problem)
        phrases.setdefault((f"{place}{before}", after), []).append(phrase)
    said = [f"{before}{' or '.join(dict.fromkeys(several))}{after}" for (before, after), several in phrases.items()]
    if len(said) > _PROBLEMS_SHOWN:
        said[_PROBLEMS_SHOWN:] = [f"and {len(said) - _PROBLEMS_SHOWN} more"]
    return "; ".join(said)


def _place(problem: ErrorDetails, call: type[Call]) -> str:
    """Where a problem is: `passages[0].text`. Names of fields are the caller's own, of any length; those that pydantic
    gives the members of a union are left out.
    """
    place = ""
    model: type[BaseModel] | None = call
    last = len(problem["loc"]) - 1
    for depth, part in enumerate(problem["loc"]):
        if isinstance(part, int):
            place += f"[{part}]"
            continue
        field = field_of(model, part) if model else None
        if field or not place or (depth == last and problem["type"] == "extra_forbidden"):
            place += f".{part}" if place else part
        if field:
            model = find(BaseModel, field.annotation)
    return place[:_NAME_SHOWN] or "body"


def _said(problem: ErrorDetails) -> tuple[str, str, str]:
    """What stands between place and phrase, the phrase, and the value where it helps."""
    kind = problem["type"]
    if kind == "extra_forbidden":
        return ": ", "unknown field", ""
    # Our own validators' messages name the value themselves.
    if kind == "value_error":
        return ": ", str(problem["ctx"]["error"]), ""
    return " ", phrase_of(problem, JSON), "" if kind in _WITHOUT_VALUE else f", not {shown(problem['input'])}"
