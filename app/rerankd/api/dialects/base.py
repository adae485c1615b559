"""What a dialect is: how one family of clients writes a rerank request and reads the answer."""

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

from rerankd.api.answers import FOUR_STRINGS, Answer, ErrorForm, Json
from rerankd.api.parsing.raw_body import RawBody
from rerankd.concurrency.slices import Sliced
from rerankd.config.options import JSON, UNKNOWN_KEY, field_of, fields_of, phrase_of, shape_in
from rerankd.domain import Document, ImageLimits, RerankRequest, RerankResult, Truncation
from rerankd.errors import InvalidRequest, RequestTooLarge, RerankError

# Paths that several dialects share; the body shows which dialect it is.
SHARED_PATHS: Final = ("/v1/rerank", "/rerank")

_PROBLEMS_SHOWN = 3
_IGNORED_SHOWN = 10
_NAME_SHOWN = 100
_VALUE_SHOWN = 60
_NO_BODY = RawBody()
# Kinds of problems that showing the value would not explain.
_WITHOUT_VALUE: Final = frozenset(["missing", "too_short", "too_long"])
_PRINTABLE = re.compile(r"[\w.-]{1,64}", re.ASCII)
# What follows the place of a value in the place of one inside of it.
_BELOW = re.compile(r"[.[]")


def shown(value: object) -> str:
    """A client's value for a message, shortened so that it is still recognisable."""
    if isinstance(value, str):
        return repr(value) if len(value) <= _VALUE_SHOWN else f"{value[:_VALUE_SHOWN]!r}... ({len(value)} characters)"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return "null" if value is None else orjson.dumps(value).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """The most of each thing that a request may have. More is rejected before anything is built from it. `fields` are
    those of one object outside the documents.
    """

    documents: int
    queries: int
    query_chars: int
    rank_fields: int
    fields: int
    images: ImageLimits


def limits_of(info: ValidationInfo) -> RequestLimits:
    """The limits under which `Dialect.parse` reads a body."""
    return cast(RequestLimits, info.context)


class RequestBody(BaseModel, ABC):
    """A request body of a dialect. Unknown fields are ignored, as clients of a drop-in replacement expect, unless the
    operator sets `strict`.
    """

    _raw_body: RawBody | None = PrivateAttr(default=None)

    @property
    def raw_body(self) -> RawBody:
        """The bytes that this was parsed from; empty unless a list in it holds objects."""
        return self._raw_body or _NO_BODY

    def keep(self, raw_body: RawBody) -> None:
        self._raw_body = raw_body

    @property
    def image_bytes(self) -> int:
        """How many bytes the images have that were read from the body."""
        return 0

    def prepare(self) -> Sliced[None]:
        """Do what takes long before `to_requests`, in slices.

        Raises:
            InvalidRequest: a document is not text, and not an object with the fields to read.
        """
        yield from ()

    @abstractmethod
    def to_requests(self) -> Sequence[RerankRequest]:
        """Our form of it: one request for each query.

        Raises:
            InvalidRequest: a document is not text, and not an object with the fields to read.
        """

    @abstractmethod
    def render(self, results: Sequence[RerankResult], *, request_id: str) -> Answer:
        """The answer in the dialect's form, from the result of each request."""


class QueryBody(RequestBody):
    """A body with one query, as in all rerank dialects."""

    @abstractmethod
    def to_request(self) -> RerankRequest:
        """As `to_requests`."""

    @abstractmethod
    def render_result(self, result: RerankResult, *, request_id: str) -> Answer:
        """As `render`."""

    def to_requests(self) -> Sequence[RerankRequest]:
        return [self.to_request()]

    def render(self, results: Sequence[RerankResult], *, request_id: str) -> Answer:
        return self.render_result(results[0], request_id=request_id)


def _any_body(_body: Mapping[str, Any], _headers: Mapping[str, str]) -> bool:
    return True


def has_field(*names: str) -> Callable[[Mapping[str, Any], Mapping[str, str]], bool]:
    """Claims bodies with one of these fields. A null counts: some clients send every field that they know."""
    return lambda body, _headers: not body.keys().isdisjoint(names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one family of clients speaks.

    Several dialects may share a path: the first one registered there that `claims` a body gets it. On a path that
    belongs to one dialect, it gets every body with one of its `document_fields`, which are paths such as
    `input.documents`; other bodies go to the dialect that claims them. A parameter of a path is a field that the body
    may leave out. `answer` and `example` describe an answer and a request in the OpenAPI document. `truncation_hint`
    says how a request allows that long texts are truncated; empty: it cannot. `errors` is the form of errors on the
    paths that belong to this dialect.
    """

    name: str
    paths: tuple[str, ...]
    document_fields: frozenset[str]
    body: type[RequestBody]
    answer: type[BaseModel]
    example: Json
    truncation_hint: str = ""
    errors: ErrorForm = FOUR_STRINGS
    claims: Callable[[Mapping[str, Any], Mapping[str, str]], bool] = _any_body

    @property
    def shares(self) -> bool:
        """Whether it uses the paths on which the body shows the dialect."""
        return set(SHARED_PATHS) <= set(self.paths)

    def parse(
        self, fields: Mapping[str, Any], text: bytes, *, limits: RequestLimits, strict: bool = False
    ) -> RequestBody:
        """Read a body's fields; `text` are the bytes that they came from.

        Raises:
            InvalidRequest: a field is missing or has the wrong type, or is unknown and `strict` forbids that; the
                message names it.
            RequestTooLarge: there is more of something than the limits allow.
        """
        self._reject_long_lists(fields, limits)
        try:
            body = self.body.model_validate(fields, extra="forbid" if strict else "ignore", context=limits)
        except ValidationError as error:
            raise InvalidRequest(_explain(error, self.body)) from None
        except RecursionError:
            # For an enum field Python writes out the whole value that is not a member.
            raise InvalidRequest("a field is nested too deeply; flatten it") from None
        if any(dict in set(map(type, documents)) for documents in self._lists_in(fields)):
            body.keep(RawBody(text))
        return body

    def count(self, fields: Mapping[str, Any]) -> int:
        """The number of documents, before `parse`."""
        return sum(map(len, self._lists_in(fields)))

    def has_documents(self, fields: Mapping[str, Any]) -> bool:
        """Whether a body has a field of the dialect's own for documents."""
        places = [path.partition(".") for path in self.document_fields]
        return any(name in fields and (not inner or isinstance(fields[name], Mapping)) for name, inner, _ in places)

    def reworded(self, error: RerankError, requests: Sequence[RerankRequest]) -> RerankError:
        """An error with the dialect's own names of fields."""
        fields = {field.partition(".")[0] for field in self.document_fields}
        documents = next(name for name in self.example if name in fields)
        if not isinstance(error, InvalidRequest):
            return error
        if error.bad_image is not None:
            place = _place_of(error.bad_image.digest, requests, documents=documents)
            return InvalidRequest(error.bad_image.phrase(place=place))
        if error.too_long is None:
            return error
        cut = any(request.options.truncation is Truncation.TRUNCATE for request in requests)
        hint = "" if cut else self.truncation_hint
        return InvalidRequest(error.too_long.phrase(documents=documents, truncation_hint=hint))

    def ignored(self, fields: Mapping[str, Any]) -> list[str]:
        """At most ten of the unknown fields, so that a client can notice a misspelling; nested ones as
        `passages.token`.
        """
        return list(islice(_unknown_fields(fields, self.body), _IGNORED_SHOWN))

    def _reject_long_lists(self, fields: Mapping[str, Any], limits: RequestLimits) -> None:
        """Check the length of every list and object outside of lists, in unknown fields too, before anything reads the
        entries.
        """
        places: list[tuple[str, Mapping[str, Any]]] = [("", fields)]
        while places:
            before, members = places.pop()
            for name, value in members.items():
                place = f"{before}{name[:_NAME_SHOWN]}"[:_NAME_SHOWN]
                if isinstance(value, list) and len(value) > limits.documents:
                    what = "documents per request" if place in self.document_fields else "entries in a list"
                    raise RequestTooLarge(f"at most {limits.documents} {what}; {place} has {len(value)}")
                if isinstance(value, dict):
                    if len(value) > limits.fields:
                        raise RequestTooLarge(f"at most {limits.fields} fields in an object; {place} has {len(value)}")
                    places.append((f"{place}.", value))

    def _lists_in(self, fields: Mapping[str, Any]) -> Iterator[list[Any]]:
        """The lists that hold the documents of a body."""
        for path in self.document_fields:
            value: Any = fields
            for name in path.split("."):
                value = value.get(name) if isinstance(value, Mapping) else None
            if isinstance(value, list):
                yield value


def _place_of(digest: bytes, requests: Sequence[RerankRequest], *, documents: str) -> str:
    """Which image of a call this is; in a call of pairs, positions are those of each query's own documents."""
    if len(requests) > 1:
        return "an image"
    (request,) = requests
    if isinstance(request.query, Document) and request.query.digest == digest:
        return "the image of the query"
    places = (
        index
        for index, document in enumerate(request.documents)
        if isinstance(document, Document) and document.digest == digest
    )
    return next((f"the image of {documents}[{index}]" for index in places), "an image")


@cache
def _known_fields(shape: type) -> frozenset[str]:
    aliases = [field.validation_alias for field in fields_of(shape).values()]
    choices = [choice for alias in aliases if isinstance(alias, AliasChoices) for choice in alias.choices]
    return frozenset([*fields_of(shape), *(choice for choice in choices if isinstance(choice, str))])


def _unknown_fields(fields: Mapping[str, Any], shape: type) -> Iterator[str]:
    """Objects in lists are documents, which may have any fields."""
    known = _known_fields(shape)
    for name, value in fields.items():
        if name not in known:
            if _PRINTABLE.fullmatch(name):
                yield name
        elif isinstance(value, dict):
            field = field_of(shape, name)
            inner = shape_in(field.annotation) if field else None
            yield from (f"{name}.{unknown}" for unknown in (_unknown_fields(value, inner) if inner else ()))


def _explain(error: ValidationError, shape: type[RequestBody]) -> str:
    problems = error.errors(include_url=False)
    # Unknown fields come first: one of them may be a missing field, misspelt.
    problems.sort(key=lambda problem: problem["type"] not in UNKNOWN_KEY)
    # A value that fits none of several types has one problem for each type.
    phrases: dict[tuple[str, str], list[str]] = {}
    places = [_place(problem, shape) for problem in problems]
    entered = {
        place[: mark.start()]
        for place, problem in zip(places, problems, strict=True)
        if problem["type"] != "missing"
        for mark in _BELOW.finditer(place)
    }
    for place, problem in zip(places, problems, strict=True):
        # The value has one of the types, and a field of it is wrong: what the other types want is no help.
        if place in entered:
            continue
        before, phrase, after = _phrases(problem)
        phrases.setdefault((f"{place}{before}", after), []).append(phrase)
    lines = [f"{before}{' or '.join(dict.fromkeys(several))}{after}" for (before, after), several in phrases.items()]
    if len(lines) > _PROBLEMS_SHOWN:
        lines[_PROBLEMS_SHOWN:] = [f"and {len(lines) - _PROBLEMS_SHOWN} more"]
    return "; ".join(lines)


def _place(problem: ErrorDetails, shape: type[RequestBody]) -> str:
    """Where a problem is: `passages[0].text`. A client may send names of any length, so they are cut. Names that
    pydantic gives to the members of a union are left out.
    """
    place = ""
    model: type | None = shape
    last = len(problem["loc"]) - 1
    for depth, part in enumerate(problem["loc"]):
        if isinstance(part, int):
            place += f"[{part}]"
            continue
        field = field_of(model, part) if model else None
        if field or not place or (depth == last and problem["type"] in UNKNOWN_KEY):
            place += f".{part}" if place else part
        if field:
            model = shape_in(field.annotation)
    return place[:_NAME_SHOWN] or "body"


def _phrases(problem: ErrorDetails) -> tuple[str, str, str]:
    """What separates the place from the phrase, the phrase, and the value if it helps."""
    kind = problem["type"]
    if kind in UNKNOWN_KEY:
        return ": ", "unknown field", ""
    # Our own validators' messages name the value themselves.
    if kind == "value_error":
        return ": ", str(problem["ctx"]["error"]), ""
    return " ", phrase_of(problem, JSON), "" if kind in _WITHOUT_VALUE else f", not {shown(problem['input'])}"
