"""Fields that several dialects share, as lenient as their clients need them, and parts of answers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Annotated, Any, Final

import orjson
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    FailFast,
    Field,
    PrivateAttr,
    ValidationInfo,
    WithJsonSchema,
)

from rerankd.api.dialects.base import QueryBody, limits_of, shown
from rerankd.api.dialects.images import IMAGE_FIELDS, SentImages
from rerankd.api.parsing.json_text import kind_of
from rerankd.api.parsing.raw_body import RawBody
from rerankd.concurrency.slices import Sliced, run_to_end
from rerankd.domain import LAST_PRIORITY, RankedDocument, RerankResult, ScoreOptions, Side, Terms, Truncation
from rerankd.errors import InvalidRequest, RequestTooLarge
from rerankd.scorers.visible import is_visible

_NAMES_SHOWN: Final = 5
_LARGEST_COUNT: Final = 2.0**63
RANK_FIELD_CHARS: Final = 1000
_PAIRS_PER_SEARCH_UNIT: Final = 100
# Texts and fields that are read before other work may run.
_TEXTS_PER_STEP: Final = 1000
_FIELDS_PER_STEP: Final = 100

# Fields of a document that are returned with its result and are not read.
PASSED_THROUGH: Final = ("id", "metadata")

# Amazon's name of a document that is an object, with as many fields as it likes.
OBJECT_DOCUMENT: Final = "jsonDocument"

Documents = Annotated[
    list[Any],
    WithJsonSchema(
        {
            "type": "array",
            "items": {"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": True}]},
        }
    ),
    Field(
        description='Texts, or objects: the model reads their "text", or rank_fields, or else all but id and metadata.'
    ),
]


def _all_results(top_n: object) -> object:
    """For "all" clients send 0, null, -1 or the largest number that they know."""
    huge = isinstance(top_n, float) and top_n >= _LARGEST_COUNT
    return None if huge else top_n


def _result_count(top_n: int | None) -> int | None:
    if top_n is not None and top_n < -1:
        raise ValueError(f"{top_n} is not a number of results; leave it out, or send 0 or -1, for all")
    return None if top_n in (0, -1) else top_n


TopN = Annotated[
    int | None,
    Field(description="How many results to return; 0, -1, null, absent or more than there are: all."),
    BeforeValidator(_all_results),
    AfterValidator(_result_count),
]
ModelName = Annotated[
    str | None,
    Field(description="The name or an alias of a served model; absent: the default one."),
    AfterValidator(lambda name: name or None),
]


def _limited(names: object, info: ValidationInfo) -> object:
    if isinstance(names, list) and len(names) > limits_of(info).rank_fields:
        raise RequestTooLarge(f"at most {limits_of(info).rank_fields} rank_fields; got {len(names)}")
    return names


def _distinct(names: list[str] | None) -> list[str] | None:
    if names is None:
        return names
    longest = max(names, key=len, default="")
    if len(longest) > RANK_FIELD_CHARS:
        raise ValueError(
            f"{shown(longest)} is too long for the name of a field; at most {RANK_FIELD_CHARS} characters are allowed"
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{shown(twice)} is named twice; name each field once")
    return names


def _limit_fields(entries: object, info: ValidationInfo) -> object:
    limit = limits_of(info).fields
    objects = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    while objects:
        largest = max(map(len, objects))
        if largest > limit:
            raise RequestTooLarge(f"at most {limit} fields in an object; one has {largest}")
        objects = [
            inner
            for entry in objects
            for name, inner in entry.items()
            if isinstance(inner, dict) and name != OBJECT_DOCUMENT
        ]
    return entries


# With `strict` each unknown field would be an error of its own, so the number in objects of lists is checked first.
LimitedFields = BeforeValidator(_limit_fields)

RankFields = Annotated[
    list[str] | None,
    FailFast(),
    Field(description='The fields of documents sent as objects to read; default: "text".'),
    BeforeValidator(_limited),
    AfterValidator(_distinct),
]
ReturnDocuments = Annotated[bool | None, Field(description="Send the documents back with the results.")]
RawScores = Annotated[bool | None, Field(description="Answer with the model's raw scores instead of relevance.")]
MaxTokens = Annotated[int | None, Field(ge=0), AfterValidator(lambda tokens: tokens or None)]
Priority = Annotated[
    int | None, Field(ge=0, le=LAST_PRIORITY, description=f"0 is served first, {LAST_PRIORITY} last; default: 0.")
]
Instruction = Annotated[
    str | None,
    Field(
        validation_alias=AliasChoices("instruction", "instruct"),
        description="What counts as relevant. Models that follow no instructions refuse it.",
    ),
    AfterValidator(lambda text: text or None),
]
Truncate = Annotated[
    bool | None, Field(description="Truncate documents that are too long (default), or reject the request.")
]


def truncation_of(*, cut: bool | None) -> Truncation | None:
    """The policy that a client's flag means; None: the model's own."""
    return {None: None, True: Truncation.TRUNCATE, False: Truncation.ERROR}[cut]


def _whole_prompt(tokens: int | None) -> int | None:
    if tokens is not None and tokens != -1 and tokens < 1:
        raise ValueError(f"{tokens} is not a number of tokens; send at least 1, or -1 for as many as the model reads")
    return tokens


class ReadingFields(BaseModel):
    """How texts are read: the fields of Cohere, Jina and vLLM."""

    instruction: Instruction = None
    max_tokens_per_doc: MaxTokens = Field(
        default=None, description="Read at most this many tokens of each document; 0: as many as the model reads."
    )
    max_tokens_per_query: MaxTokens = Field(
        default=None, description="Read at most this many tokens of the query; 0: as many as the model reads."
    )
    truncate_prompt_tokens: Annotated[int | None, AfterValidator(_whole_prompt)] = Field(
        default=None,
        description="vLLM's: read at most this many tokens of query and document together, and truncate what is "
        "longer; -1: as many as the model reads.",
    )
    truncation_side: Side | None = Field(
        default=None, description="vLLM's: which end of long texts `truncate_prompt_tokens` cuts off; default: right."
    )
    priority: Priority = None

    def reading(self) -> ScoreOptions:
        """The options that these fields say."""
        cut = self.truncate_prompt_tokens is not None
        whole = self.truncate_prompt_tokens == -1
        return ScoreOptions(
            max_tokens_per_doc=self.max_tokens_per_doc,
            max_tokens_per_query=self.max_tokens_per_query,
            max_tokens_per_pair=None if whole else self.truncate_prompt_tokens,
            truncation=Truncation.TRUNCATE if cut else None,
            truncation_side=self.truncation_side or Side.RIGHT if cut else Side.RIGHT,
            instruction=self.instruction,
            terms=Terms(priority=self.priority or 0),
        )


@dataclass(frozen=True, slots=True)
class _Position:
    """Where a document is in the body."""

    raw_body: RawBody | None
    field: str
    index: int

    def __str__(self) -> str:
        return f"{self.field}[{self.index}]"


class TextsBody(QueryBody, ABC):
    """A body whose documents are texts, or objects that must be turned into texts."""

    _texts: list[str] | None = PrivateAttr(default=None)

    @abstractmethod
    def read_texts(self) -> Sliced[list[str]]:
        """The texts of the documents, by `texts_of`."""

    @property
    def texts(self) -> list[str]:
        """The text that the model reads of each document."""
        if self._texts is None:
            self._texts = run_to_end(self.read_texts())
        return self._texts

    def prepare(self) -> Sliced[None]:
        self._texts = yield from self.read_texts()


def texts_of(
    documents: Sequence[Any],
    raw_body: RawBody | None,
    *,
    rank_fields: Sequence[str] | None,
    name: str = "documents",
    bare: bool = False,
    images: SentImages | None = None,
) -> Sliced[list[str]]:
    """The text that the model reads of each document. Of a string that is the string, of an object its `text` or its
    `rank_fields`, the latter as lines of `name: value`. An object without either is read with all of its fields.

    `name` is the dialect's name of the list, and `raw_body` the body that it came in, None: the list's entries are not
    the documents themselves. `bare` reads a single rank field without its name. `images` reads those of documents that
    name no rank fields; None: such fields are like others.

    Raises:
        InvalidRequest: a document is not a string or an object, or lacks the fields.
        RequestTooLarge: an image is too large, or one too many.
    """
    if set(map(type, documents)) <= {str}:
        return list(documents)
    bare = bare and rank_fields is not None and len(rank_fields) == 1
    own = not rank_fields or list(rank_fields) == ["text"]
    texts: list[str] = []
    for index, document in enumerate(documents):
        text = document if isinstance(document, str) else None
        if text is None and own:
            if images and isinstance(document, dict) and not IMAGE_FIELDS.isdisjoint(document):
                text = yield from images.document_of(document, f"{name}[{index}]")
            text = _own_text(document) if text is None else text
        if text is None:
            yield
            text = yield from _text_of(document, _Position(raw_body, name, index), rank_fields, bare=bare)
        texts.append(text)
        if index % _TEXTS_PER_STEP == 0:
            yield
    return texts


def score_of(ranked: RankedDocument, *, raw: bool | None) -> float:
    return ranked.value if raw else ranked.relevance_score


def usage_of(*results: RerankResult) -> dict[str, int]:
    """Tokens that the model read. It writes none, so prompt and total are the same."""
    tokens = sum(result.tokens for result in results)
    return {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}


def search_units(result: RerankResult) -> int:
    """A query with up to 100 documents, or passages of long ones, is one unit."""
    return ceil(result.pairs / _PAIRS_PER_SEARCH_UNIT)


def _own_text(document: object) -> str | None:
    """The `text` of an object, which most objects have; None: the document needs a closer look."""
    text = document.get("text") if isinstance(document, dict) else None
    return text if isinstance(text, str) else None


def _text_of(document: object, where: _Position, rank_fields: Sequence[str] | None, *, bare: bool) -> Sliced[str]:
    if not isinstance(document, Mapping):
        kind = "null" if document is None else f"a {kind_of(document)}"
        raise InvalidRequest(f'{where} is {kind}; send a string or an object with a "text"')
    if rank_fields and list(rank_fields) != ["text"]:
        return (yield from _as_lines(document, where, rank_fields, bare=bare))
    if document and "text" not in document:
        names = [name for name in document if name not in PASSED_THROUGH]
        return (yield from _as_lines(document, where, names, bare=False))
    text = document.get("text")
    if not isinstance(text, str):
        raise InvalidRequest(
            f'{where} has no string in its field "text"; add one, or name the fields to read in rank_fields'
        )
    return text


def _as_lines(document: Mapping[str, Any], where: _Position, names: Sequence[str], *, bare: bool) -> Sliced[str]:
    present = [name for name in names if document.get(name) is not None]
    if not present:
        raise InvalidRequest(f"{where} has {_nothing_to_read(names)}")
    if bare:
        return (yield from _as_text(document[present[0]], present[0], where))
    lines: list[str] = []
    visible = False
    for number, name in enumerate(present):
        text = yield from _as_text(document[name], name, where)
        visible = visible or is_visible(text)
        lines.append(f"{name}: {text}")
        if number % _FIELDS_PER_STEP == 0:
            yield
    # If no value has a visible character, the names of the fields are not a text either.
    return "\n".join(lines) if visible else ""


def _nothing_to_read(names: Sequence[str]) -> str:
    if not names:
        passed = " and ".join(PASSED_THROUGH)
        return f'nothing to read besides {passed}; add a "text", or name the fields to read in rank_fields'
    listed = ", ".join(map(shown, names[:_NAMES_SHOWN])) + (", ..." if len(names) > _NAMES_SHOWN else "")
    return f'none of the fields to read: {listed}; add one, or a "text", or name others in rank_fields'


def _as_text(value: object, name: str, where: _Position) -> Sliced[str]:
    if isinstance(value, str):
        return value
    if isinstance(value, float) and where.raw_body is not None:
        # keeps all digits: 0.10, and integers beyond 64 bits
        yield from where.raw_body.find_members(where.field, where.index)
        return where.raw_body.member(where.field, where.index, name).decode()
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        raise InvalidRequest(f"{where} is nested too deeply in its rank_fields; flatten it") from None
