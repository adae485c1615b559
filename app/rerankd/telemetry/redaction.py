"""Removes secrets from texts of other libraries, whose errors repeat URLs and headers."""

import re
from typing import Final

_HIDDEN: Final = "***"
_PATTERNS: Final = (
    # user:password@ of a URL
    (re.compile(r"(?<=://)[^/\s@'\"]+(?=@)"), _HIDDEN),
    # the query of a URL: signatures, tokens
    (re.compile(r"(https?://[^\s?'\"<>]+\?)[^\s'\"<>]+"), rf"\1{_HIDDEN}"),
    # the value of a header
    (re.compile(r"(?i)\b(bearer\s+)[^\s'\",]+"), rf"\1{_HIDDEN}"),
    (
        re.compile(r"(?i)\b(authorization|api-key)(['\"]?\s*[:=,]\s*b?['\"]?)(?!bearer)(?:basic\s+)?[^\s'\",]+"),
        rf"\1\2{_HIDDEN}",
    ),
    # a token of the hub
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}"), f"hf_{_HIDDEN}"),
)


def redacted(text: str) -> str:
    """The text without passwords in URLs, queries of URLs, keys in headers and tokens of the hub."""
    for pattern, shown in _PATTERNS:
        text = pattern.sub(shown, text)
    return text
