"""Reads the numbers in a cache URL's query string."""

from collections.abc import Mapping
from urllib.parse import SplitResult, parse_qsl

from app.errors import ConfigError


def read_parameters(url: SplitResult, defaults: Mapping[str, int]) -> dict[str, int]:
    """The URL's parameters over their defaults, all positive whole numbers.

    Raises:
        ConfigError: an unknown parameter or a value that is no positive whole number.
    """
    parameters = dict(defaults)
    for name, value in parse_qsl(url.query, keep_blank_values=True):
        if name not in defaults:
            raise ConfigError(
                f"RERANKD_CACHE_URL: unknown parameter {name!r} of {url.scheme}://; known: {', '.join(defaults)}"
            )
        if not value.isdecimal() or int(value) < 1:
            raise ConfigError(f"RERANKD_CACHE_URL: {name}={value!r} is no positive whole number")
        parameters[name] = int(value)
    return parameters
