"""Tells a Redis that can never be used, as it is set up, from one that is only away, full or busy."""

import ssl
from collections.abc import Callable, Iterator
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

from rerankd.cache.deployments import UnknownMaster


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


_CLUSTER: Final = "that server is part of a Redis Cluster; write redis+cluster:// (with TLS: rediss+cluster://)"
_NO_CLUSTER: Final = "that server is not part of a Redis Cluster; write redis:// (with TLS: rediss://)"
_UNKNOWN_CA: Final = (
    "TLS fails, because nobody whom this machine trusts has signed the server's certificate; "
    "name the CA's in RERANKD_CACHE_CA_FILE"
)
_REASONS: Final[tuple[tuple[Callable[[BaseException], bool], str], ...]] = (
    (
        _is_a(UnknownMaster),
        "the Sentinels watch no master of that name; correct it: redis+sentinel://host:26379/name",
    ),
    (_says("cluster mode is not enabled"), _NO_CLUSTER),
    (_says("cluster support disabled"), _NO_CLUSTER),
    (_is_a(ClusterError, ClusterCrossSlotError, AskError), _CLUSTER),
    (_says("in cluster mode"), _CLUSTER),
    (
        _is_a(AuthenticationError, AuthorizationError, NoPermissionError),
        "that Redis refuses the user, the password or what the user wants to do (MGET, EVAL and SET on rerankd:*)",
    ),
    (_says("db index"), "that Redis has no such database; correct the number at the end"),
    (
        _says("unknown command"),
        "that server lacks a command, as a Sentinel does; Sentinels are redis+sentinel://host:26379/name",
    ),
    (_is_a(InvalidResponse), "what answers there is not Redis"),
    (_says("protected mode"), "that Redis is in protected mode; give it a password"),
    (_says("unable to get local issuer certificate"), _UNKNOWN_CA),
    (_says("self-signed certificate"), _UNKNOWN_CA),
    (
        _says("certificate is not valid for"),
        "TLS fails, because the certificate is for another host than the URL names",
    ),
    (
        _says("alert certificate required"),
        "that Redis asks for a certificate of ours; name it in RERANKD_CACHE_CERT_FILE",
    ),
    (_is_tls, "TLS fails; check the scheme (redis:// or rediss://), the port and the certificate"),
)


def why_hopeless(error: BaseException) -> str:
    """Why the server that gave this error can never be used, and the way out; empty where time may help."""
    return next((reason for fits, reason in _REASONS if any(fits(one) for one in _causes(error))), "")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
