"""Fields that several dialects share: documents as texts or objects, and numbers that clients are lenient about."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import orjson
from pydantic import AfterValidator, Field, WithJsonSchema

from app.errors import InvalidRequest

Sent = str | Mapping[str, Any]

_SHOWN = 200

Documents = Annotated[
    list[Any],
    WithJsonSchema(
        {
            "type": "array",
            "items": {"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": True}]},
        }
    ),
    Field(description='Texts, or objects with a "text" (others of their fields come back untouched).'),
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


def texts_of(documents: Sequence[Any], *, rank_fields: Sequence[str] | None) -> list[str]:
    """What the model reads of each document: a string itself; of an object its `text`, or with `rank_fields` those
    fields as `name: value` lines.

    Raises:
        InvalidRequest: a document is neither, or lacks the fields.
    """
    return [_text_of(document, index, rank_fields) for index, document in enumerate(documents)]


def _text_of(document: object, index: int, rank_fields: Sequence[str] | None) -> str:
    if isinstance(document, str):
        return document
    if not isinstance(document, Mapping):
        kind = "null" if document is None else type(document).__name__
        raise InvalidRequest(f'documents[{index}] is {kind}; send a string or an object with a "text"')
    if rank_fields and list(rank_fields) != ["text"]:
        return _as_lines(document, index, rank_fields)
    text = document.get("text")
    if not isinstance(text, str):
        raise InvalidRequest(
            f'documents[{index}] has no string in its field "text"; add one, or name the fields to read in rank_fields'
        )
    return text


def _as_lines(document: Mapping[str, Any], index: int, rank_fields: Sequence[str]) -> str:
    present = [name for name in rank_fields if document.get(name) is not None]
    if not present:
        wanted = ", ".join(rank_fields)[:_SHOWN]
        raise InvalidRequest(f"documents[{index}] has none of the rank_fields: {wanted}")
    return "\n".join(f"{name}: {_as_text(document[name], index)}" for name in present)


def _as_text(value: object, index: int) -> str:
    if isinstance(value, str):
        return value
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        raise InvalidRequest(f"documents[{index}] is nested too deeply in its rank_fields; flatten it") from None
