"""What the OpenAPI document says about the rerank paths."""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from pydantic import BaseModel

from rerankd.api.answers import FOUR_STRINGS, Json
from rerankd.api.dialects.base import Dialect
from rerankd.api.lines import NDJSON

_LINES: Final[Json] = {
    "type": "string",
    "description": 'Lines of JSON: any number of {"settled": [{"index", "rank"}]}, documents in their final places, '
    "then the answer or an error. For requests that accept these and no application/json.",
}
_PATH_PARAMETER: Final = re.compile(r"{(\w+)")


def description_of(path: str, dialects: Sequence[Dialect]) -> Json:
    """The parameters and the request body of a path."""
    return {
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in _PATH_PARAMETER.findall(path)
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": _any_of([_schema_of(dialect.body) for dialect in dialects]),
                    "examples": {dialect.name: {"value": dialect.example} for dialect in dialects},
                }
            },
        },
    }


def answers_of(dialects: Sequence[Dialect]) -> dict[int | str, Json]:
    """What a path answers, by status."""
    errors = {
        400: "The request must be changed; the message says how.",
        401: "No API key, or a wrong one.",
        404: "No such model.",
        408: "The body did not arrive in time.",
        413: "Too many documents, or too large a body.",
        429: "The queue is full, or the key's limit is reached; Retry-After says when to try again.",
        503: "The model is not ready; Retry-After says when to try again.",
        504: "Not answered in time.",
    }
    # What is refused before its dialect is known has the common form.
    own = dialects[-1].errors
    error_schema = own.schema if own is FOUR_STRINGS else _any_of([own.schema, FOUR_STRINGS.schema])
    schema = _any_of([_schema_of(dialect.answer) for dialect in dialects])
    return {
        200: {
            "description": "Results, best first.",
            "content": {"application/json": {"schema": schema}, NDJSON: {"schema": _LINES}},
        },
        **{
            status: {"description": text, "content": {"application/json": {"schema": error_schema}}}
            for status, text in errors.items()
        },
    }


def _any_of(schemas: list[Json]) -> Json:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


@cache
def _schema_of(model: type[BaseModel]) -> Json:
    """Without references of its own, which would point nowhere inside an OpenAPI document."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def resolve(part: Any) -> Any:  # noqa: ANN401 - any JSON
        if isinstance(part, dict):
            if "$ref" in part:
                return resolve(definitions[part["$ref"].rsplit("/", 1)[-1]])
            return {name: resolve(value) for name, value in part.items()}
        return [resolve(item) for item in part] if isinstance(part, list) else part

    inlined: Json = resolve(schema)
    return inlined
