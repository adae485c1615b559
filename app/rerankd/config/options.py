"""Validates settings, files, option tables and requests, and explains problems in plain English."""

import re
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from inspect import isclass
from pathlib import Path
from typing import Any, Final, TypeVar, get_args, get_type_hints

from pydantic import AliasChoices, BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from rerankd.errors import ConfigError

Options = TypeVar("Options", bound=BaseModel)

_SHOWN: Final = 60
_TOML_PROBLEM: Final = re.compile(
    r"(?P<reason>.*) \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What a language calls its values."""

    text: str
    table: str


TOML: Final = Words(text="a text in quotes", table="a table")
JSON: Final = Words(text="a string", table="an object")

# What pydantic calls a key that a model, or a dataclass, does not have.
UNKNOWN_KEY: Final = frozenset(["extra_forbidden", "unexpected_keyword_argument"])

# What pydantic's kinds of problems are called here; `{...}` is what it says of the bound, or one of `Words`.
_PHRASES: Final = {
    "missing": "is missing",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be {text}",
    "string_too_long": "must have at most {max_length} characters",
    "path_type": "must be a path in quotes",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "frozen_set_type": "must be a list",
    "too_short": "must have at least {min_length} in it",
    "too_long": "must have at most {max_length} in it",
    "dict_type": "must be {table}",
    "mapping_type": "must be {table}",
    "model_type": "must be {table}",
    "dataclass_type": "must be {table}",
    "model_attributes_type": "must be {table}",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be one of {expected}",
    "enum": "must be one of {expected}",
    "url_parsing": "must be a URL such as http://host:port/path",
    "url_scheme": "must be a URL that begins with http:// or https://",
    "url_type": "must be a URL in quotes",
}


def explain(error: ValidationError, shape: type[BaseModel], *, data: object = None, variable_prefix: str = "") -> str:
    """Say what is wrong with which key. Values are repeated unless `shape` says `hide_input_in_errors`, or the field is
    a secret. `data` is what was validated, to name the table that a problem is in; `variable_prefix` is for settings.
    """
    problems: dict[tuple[str, bool], list[str]] = {}
    for problem in error.errors(include_url=False):
        if _follows_from_others(problem):
            continue
        place, phrase = _place(problem, shape, data, variable_prefix), _phrase(problem, shape)
        phrases = problems.setdefault((place, problem["type"] in UNKNOWN_KEY), [])
        if phrase not in phrases:
            phrases.append(phrase)
    # A value that fits none of several types has a problem with each.
    return "; ".join(
        f"{place}{(', ' if unknown else ' or ').join(phrases)}" for (place, unknown), phrases in problems.items()
    )


def read_toml(path: Path, *, secret: bool = False) -> dict[str, Any]:
    """Parse a TOML file. Of one with secrets only the place of a mistake is told.

    Raises:
        OSError: the file cannot be read.
        ConfigError: it is not TOML; the message says where.
    """
    try:
        # Windows editors write a byte order mark, which is not part of the text.
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file in UTF-8: byte {error.start + 1} is wrong") from None
    except tomllib.TOMLDecodeError as error:
        match = _TOML_PROBLEM.fullmatch(str(error))
        line = match and match["line"]
        place = f"line {line}, column {match['column']}" if match and line else "at its end"
        reason = "" if secret or not match else f": {match['reason'][:1].lower()}{match['reason'][1:]}"
        raise ConfigError(f"{path} is not valid TOML, {place}{reason}") from None


def closest(name: str, known: Collection[str], *, cutoff: float = 0.6) -> str:
    """The known name that is closest to `name`; empty if none is similar."""
    return next(iter(get_close_matches(name.lower(), known, n=1, cutoff=cutoff)), "")


def read_options(options: Mapping[str, Any], shape: type[Options], *, of: str) -> Options:
    """Validate an engine's or scorer's options.

    Raises:
        ConfigError: an option is unknown or has an unusable value.
    """
    try:
        return shape.model_validate(dict(options))
    except ValidationError as error:
        raise ConfigError(f"options of {of}: {explain(error, shape, data=options)}") from None


def _place(problem: ErrorDetails, shape: type[BaseModel], data: object, variable_prefix: str) -> str:
    """`[[model]] number 2 ('a'): passages.tokens `, or a variable's name."""
    if variable_prefix:
        return f"{variable_prefix}{problem['loc'][0]} ".upper() if problem["loc"] else ""
    tables: list[str] = []
    keys: list[str] = []
    for part, inner in _walk(problem, shape, data):
        if isinstance(part, str):
            keys.append(part)
        elif keys and inner.is_table:
            tables.append(f"[[{'.'.join(keys)}]] number {part + 1}{inner.name}: ")
            keys = []
        else:
            keys[-1:] = [f"{keys[-1] if keys else ''}[{part}]"]
    unknown = problem["type"] in UNKNOWN_KEY
    key = ".".join(keys[:-1] if unknown else keys)
    return "".join(tables) + (f"{key}: " if key and unknown else f"{key} " if key else "")


def _follows_from_others(problem: ErrorDetails) -> bool:
    """Of a list whose entries are wrong it is also said that too few are right."""
    given = problem["input"]
    return (
        problem["type"] == "too_short"
        and isinstance(given, list | tuple)
        and len(given) >= problem.get("ctx", {})["min_length"]
    )


@dataclass(frozen=True, slots=True)
class _Step:
    """What lies one step further on the way to a problem: of a table in a list its name, in brackets."""

    is_table: bool
    name: str


def _walk(problem: ErrorDetails, shape: type[BaseModel], data: object) -> Sequence[tuple[str | int, _Step]]:
    """Each step of the way to a problem, with what lies there. Ends where pydantic goes on with its own names, those of
    a union's members; before the keys of a table such a name is left out.
    """
    steps: list[tuple[str | int, _Step]] = []
    model: type | None = shape
    for place, part in enumerate(problem["loc"], 1):
        if isinstance(part, str):
            last = place == len(problem["loc"]) and problem["type"] in UNKNOWN_KEY
            known = fields_of(model).get(part) if model else None
            if model is None:
                break
            if known is None and not last:
                continue
            model = shape_in(known.annotation) if known else None
            data = data.get(part) if isinstance(data, Mapping) else None
        else:
            data = data[part] if isinstance(data, Sequence) and part < len(data) else None
        steps.append((part, _Step(is_table=model is not None, name=_name(data))))
    return steps


@cache
def fields_of(shape: type) -> Mapping[str, FieldInfo]:
    """The fields of a pydantic model, or of a dataclass that pydantic reads: its fields have pydantic's words in their
    `metadata`. By the names that they have in a file or a request.
    """
    if issubclass(shape, BaseModel):
        return shape.model_fields
    own = fields(shape) if is_dataclass(shape) else ()
    types = get_type_hints(shape)
    found = {one.name: FieldInfo.from_annotated_attribute(types[one.name], one) for one in own}
    return {str(field.validation_alias or name): field for name, field in found.items()}


def shape_in(annotation: object) -> type | None:
    """The model or dataclass that a field holds, alone, in a list or beside None."""
    return _found(lambda part: issubclass(part, BaseModel) or is_dataclass(part), annotation)


def _found(fits: Callable[[type], bool], annotation: object) -> type | None:
    if isclass(annotation) and fits(annotation):
        return annotation
    return next((found for part in get_args(annotation) if (found := _found(fits, part))), None)


def _name(table: object) -> str:
    name = table.get("name") if isinstance(table, Mapping) else None
    return f" ({name!r:.{_SHOWN}})" if isinstance(name, str) and name else ""


def _phrase(problem: ErrorDetails, shape: type[BaseModel]) -> str:
    kind = problem["type"]
    if kind in {"value_error", "assertion_error"}:
        return str(problem["ctx"]["error"])
    owner, field = _owner(problem, shape)
    if kind in UNKNOWN_KEY:
        known = tuple(fields_of(owner)) if owner else ()
        near = closest(field, known)
        meant = f"did you mean {near!r}?" if near else f"known keys: {', '.join(known)}"
        # In a file of secrets, a word that is like no key may be one.
        named = f" {field!r:.{_SHOWN}}" if near or not _is_secret(shape, owner) else ""
        return f"unknown key{named} ({meant})"
    known_field = fields_of(owner).get(field) if owner else None
    holds_tables = known_field is not None and shape_in(known_field.annotation) is not None
    if kind in {"missing", "too_short"} and holds_tables:
        return f"is missing: the file must have at least one [[{field}]] table"
    if kind in {"tuple_type", "list_type"} and isinstance(problem["input"], Mapping):
        # As `[model]` instead of `[[model]]` gives it.
        return f"must be a list of tables: write [[{field}]]" if holds_tables else "must be a list"
    return phrase_of(problem, TOML) + _not_this(problem, shape, owner, field)


def _is_secret(*shapes: type | None) -> bool:
    return any(getattr(shape, "model_config", {}).get("hide_input_in_errors") for shape in shapes)


def phrase_of(problem: ErrorDetails, words: Words) -> str:
    """What is wrong, without the value: `must be a whole number`."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind in {"string_too_short", "too_short"} and isinstance(problem["input"], str):
        least = context["min_length"]
        return "must not be empty" if least == 1 else f"must have at least {least} characters"
    return _PHRASES.get(kind, problem["msg"]).format(**context, text=words.text, table=words.table)


def field_of(shape: type, name: str) -> FieldInfo | None:
    """The field that a problem's place names, be it by an alias."""
    known = fields_of(shape)
    return known.get(name) or next((field for field in known.values() if name in _aliases(field)), None)


def _aliases(field: FieldInfo) -> Sequence[object]:
    alias = field.validation_alias
    return alias.choices if isinstance(alias, AliasChoices) else [alias]


def _owner(problem: ErrorDetails, shape: type[BaseModel]) -> tuple[type | None, str]:
    """The model that has, or lacks, the key with the problem, and the key."""
    owner: type | None = None
    field = ""
    model: type | None = shape
    for place, part in enumerate(problem["loc"], 1):
        if not isinstance(part, str) or model is None:
            continue
        known = fields_of(model).get(part)
        if known is None and place < len(problem["loc"]):
            continue
        owner, field = model, part
        model = shape_in(known.annotation) if known else None
    return owner, field


def _not_this(problem: ErrorDetails, shape: type[BaseModel], owner: type | None, field: str) -> str:
    given = problem["input"]
    if problem["type"] == "missing" or not isinstance(given, str | int | float) or given == "":
        return ""
    known = fields_of(owner).get(field) if owner else None
    secret = known is not None and _found(lambda part: issubclass(part, SecretStr), known.annotation) is not None
    return "" if secret or _is_secret(shape, owner) else f", not {given!r:.{_SHOWN}}"
