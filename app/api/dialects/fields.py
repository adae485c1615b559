"""Fields that several dialects share, as leniently as their clients need them, and what answers say about documents."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Annotated, Any, Final

import orjson
from pydantic import AfterValidator, Field, WithJsonSchema

from app.domain import LAST_PRIORITY, RankedDocument, RerankResult, Truncation
from app.errors import InvalidRequest
from app.visible import is_visible

_SHOWN: Final = 200
_PAIRS_PER_SEARCH_UNIT: Final = 100

# Fields of a document that come back in its result and are not read.
PASSED_THROUGH: Final = ("id", "metadata")

# Where clients of several dialects meet; the body says which of them it is.
SHARED_PATHS: Final = ("/v1/rerank", "/rerank")

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
# Clients send 0 and null for "all of them".
TopN = Annotated[
    int | None,
    Field(ge=0, description="How many results to return; 0, null or absent: all."),
    AfterValidator(lambda top_n: top_n or None),
]
ModelName = Annotated[
    str | None,
    Field(description="The name or an alias of a served model; absent: the default one."),
    AfterValidator(lambda name: name or None),
]
RankFields = Annotated[
    list[str] | None, Field(description='The fields of documents sent as objects to read; default: "text".')
]
ReturnDocuments = Annotated[bool | None, Field(description="Send the documents back with the results.")]
RawScores = Annotated[bool | None, Field(description="Answer with the model's raw scores instead of relevance.")]
MaxTokens = Annotated[int | None, Field(ge=1, description="Read at most this many tokens of each document.")]
Priority = Annotated[
    int | None, Field(ge=0, le=LAST_PRIORITY, description=f"0 is served first, {LAST_PRIORITY} last; default: 0.")
]
Truncate = Annotated[
    bool | None, Field(description="Cut documents that are too long (default), or refuse the request.")
]


def truncation_of(*, cut: bool | None) -> Truncation | None:
    """The policy that a client's flag means; the model's own where it says nothing."""
    return {None: None, True: Truncation.TRUNCATE, False: Truncation.ERROR}[cut]


def texts_of(
    documents: Sequence[Any], *, rank_fields: Sequence[str] | None, name: str = "documents", bare: bool = False
) -> list[str]:
    """What the model reads of each document: a string itself; of an object its `text`, or `rank_fields` as
    `name: value` lines, or where there is neither all of its fields so. `name` is what the dialect calls the list;
    `bare` reads a single rank field without its name.

    Raises:
        InvalidRequest: a document is neither, or lacks the fields.
    """
    bare = bare and rank_fields is not None and len(rank_fields) == 1
    return [
        document if isinstance(document, str) else _text_of(document, f"{name}[{index}]", rank_fields, bare=bare)
        for index, document in enumerate(documents)
    ]


def as_object(document: str | Mapping[str, Any]) -> dict[str, Any]:
    """A document as answers give it back: objects as they came, a string as an object with a text."""
    return {"text": document} if isinstance(document, str) else dict(document)


def score_of(ranked: RankedDocument, *, raw: bool | None) -> float:
    return ranked.value if raw else ranked.relevance_score


def usage_of(*results: RerankResult) -> dict[str, int]:
    """Tokens that the model read. It reads only, so that prompt and total are the same."""
    tokens = sum(result.tokens for result in results)
    return {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}


def search_units(result: RerankResult) -> int:
    """A query with up to 100 documents, or passages of long ones, is one unit."""
    return ceil(result.pairs / _PAIRS_PER_SEARCH_UNIT)


def _text_of(document: object, where: str, rank_fields: Sequence[str] | None, *, bare: bool) -> str:
    if not isinstance(document, Mapping):
        kind = "null" if document is None else type(document).__name__
        raise InvalidRequest(f'{where} is {kind}; send a string or an object with a "text"')
    if rank_fields and list(rank_fields) != ["text"]:
        return _as_lines(document, where, rank_fields, bare=bare)
    if document and "text" not in document:
        return _as_lines(document, where, [name for name in document if name not in PASSED_THROUGH], bare=False)
    text = document.get("text")
    if not isinstance(text, str):
        raise InvalidRequest(
            f'{where} has no string in its field "text"; add one, or name the fields to read in rank_fields'
        )
    return text


def _as_lines(document: Mapping[str, Any], where: str, rank_fields: Sequence[str], *, bare: bool) -> str:
    present = [name for name in rank_fields if document.get(name) is not None]
    if not present:
        wanted = ", ".join(rank_fields)[:_SHOWN]
        raise InvalidRequest(f"{where} has none of the rank_fields: {wanted}")
    if bare:
        return _as_text(document[present[0]], where)
    texts = {name: _as_text(document[name], where) for name in present}
    # Names of fields that show nothing are no text of the document.
    if not any(map(is_visible, texts.values())):
        return ""
    return "\n".join(f"{name}: {text}" for name, text in texts.items())


def _as_text(value: object, where: str) -> str:
    if isinstance(value, str):
        return value
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        raise InvalidRequest(f"{where} is nested too deeply in its rank_fields; flatten it") from None
