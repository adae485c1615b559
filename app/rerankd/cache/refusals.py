"""Tells a Redis that can never be used, as it is set up, from one that is only away, full or busy."""

import ssl
from collections.abc import Callable
from typing import Final

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    ClusterCrossSlotError,
    ClusterError,
    InvalidResponse,
    NoPermissionError,
)


def _is_a(*kinds: type[Exception]) -> Callable[[BaseException], bool]:
    return lambda error: isinstance(error, kinds)


def _says(text: str) -> Callable[[BaseException], bool]:
    return lambda error: text in str(error).lower()


def _is_tls(error: BaseException | None) -> bool:
    """Redis's client wraps its errors."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False


_CLUSTER: Final = "that server is a Redis Cluster, which is not supported; use a single Redis (it may have replicas)"
_REASONS: Final[tuple[tuple[Callable[[BaseException], bool], str], ...]] = (
    (_is_a(ClusterError, ClusterCrossSlotError, AskError), _CLUSTER),
    (_says("in cluster mode"), _CLUSTER),
    (
        _is_a(AuthenticationError, AuthorizationError, NoPermissionError),
        "that Redis refuses the user, the password or what the user wants to do (MGET, EVAL and SET on rerankd:*)",
    ),
    (_says("db index"), "that Redis has no such database; correct the number at the end"),
    (_says("unknown command"), "that server lacks a command, as a Sentinel does; give the address of a Redis itself"),
    (_is_a(InvalidResponse), "what answers there is not Redis"),
    (_says("protected mode"), "that Redis is in protected mode; give it a password"),
    (_is_tls, "TLS fails; check the scheme (redis:// or rediss://), the port and the certificate"),
)


def why_hopeless(error: BaseException) -> str:
    """Why the server that gave this error can never be used, and the way out; empty where time may help."""
    return next((reason for fits, reason in _REASONS if fits(error)), "")
