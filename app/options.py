"""Validates the `options` tables of the registry against the model that a scorer or an engine declares for them."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from app.errors import ConfigError

Options = TypeVar("Options", bound=BaseModel)


def explain(error: ValidationError) -> str:
    """Say what is wrong with which key, without repeating the values (one may be a secret)."""
    return "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'value'}: {problem['msg']}"
        for problem in error.errors(include_input=False, include_url=False)
    )


def read_options(options: Mapping[str, Any], shape: type[Options], *, of: str) -> Options:
    """Validate an engine's or scorer's options.

    Raises:
        ConfigError: an option is unknown or has an unusable value.
    """
    try:
        return shape.model_validate(dict(options))
    except ValidationError as error:
        known = ", ".join(shape.model_fields)
        raise ConfigError(f"options of {of}: {explain(error)} (known options: {known})") from None
