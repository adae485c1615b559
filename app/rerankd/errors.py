"""Every error that a caller can meet.

    RerankError                 500 internal_error
    |- InvalidRequest           400 invalid_request     the caller must change the request
    |  |- Unauthorized          401 unauthorized
    |  |- Forbidden             403 forbidden
    |  |- ModelNotFound         404 model_not_found
    |  |- NotFound              404 not_found           no such job or file
    |  |- BodyTooSlow           408 request_timeout
    |  |- NotChanged            409 not_changed
    |  `- RequestTooLarge       413 request_too_large
    |- Unavailable              503 unavailable         the same request may succeed later: Retry-After
    |  |- Overloaded            429 overloaded
    |  |- RateLimited           429 rate_limited
    |  |- ModelNotReady         503 model_not_ready
    |  |- StoreUnavailable      503 store_unavailable   where jobs are kept does not answer
    |  `- RemoteUnavailable     503 remote_unavailable  a remote model did not answer
    |- DeadlineExceeded         504 deadline_exceeded
    |- NotConfigured            501 not_configured      the operator has to switch it on
    |- StoreFull                507 store_full          what is kept for jobs has to be deleted first
    |- RemoteFailed             502 remote_failed       a remote model's answer cannot be used
    `- ScoringFailed            500 scoring_failed      the cause goes to the log, never to the client

Outside of the tree stand: `ConfigError`, which stops the start (or the loading of one model) and names the key;
`CacheUnavailable`, which is caught where the cache is used and becomes a miss; `OutOfMemory`, by which an engine tells
the batcher what to do with a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

_NAMED: Final = 4


def few(names: Sequence[str]) -> str:
    """Names in a message: the first of them, whole, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


class RerankError(Exception):
    """An error with a stable code; `status` is a hint for HTTP and means nothing to anybody else."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    @property
    def message(self) -> str:
        """Never empty: some clients raise an error of their own for an empty one."""
        return str(self) or self.code


@dataclass(frozen=True, slots=True, kw_only=True)
class TooLong:
    """A text does not fit, and the request allows no cut. Every dialect has its own words for the list of documents and
    for allowing a cut; `index` is None for the query.
    """

    problem: str
    index: int | None = None

    def phrase(self, *, documents: str = "documents", truncation_hint: str = "") -> str:
        place = "" if self.index is None else f"{documents}[{self.index}]"
        return f"{place}{self.problem}" + (f", or allow truncation ({truncation_hint})" if truncation_hint else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class BadImage:
    """An image cannot be read. `digest` says which one; its place is known where the whole request is."""

    problem: str
    digest: bytes

    def phrase(self, *, place: str = "an image") -> str:
        return f"{place} cannot be read: {self.problem}"


class InvalidRequest(RerankError):
    """`too_long` is there if a cut would help, `bad_image` if another image would."""

    status = 400
    code = "invalid_request"

    def __init__(self, message: str | TooLong | BadImage) -> None:
        self.too_long = message if isinstance(message, TooLong) else None
        self.bad_image = message if isinstance(message, BadImage) else None
        super().__init__(message if isinstance(message, str) else message.phrase())


class Unauthorized(InvalidRequest):
    status = 401
    code = "unauthorized"


class Forbidden(InvalidRequest):
    """The key is valid, and not for this."""

    status = 403
    code = "forbidden"


class ModelNotFound(InvalidRequest):
    status = 404
    code = "model_not_found"


class NotFound(InvalidRequest):
    status = 404
    code = "not_found"


class BodyTooSlow(InvalidRequest):
    status = 408
    code = "request_timeout"


class NotChanged(InvalidRequest):
    status = 409
    code = "not_changed"


class RequestTooLarge(InvalidRequest):
    status = 413
    code = "request_too_large"


class Unavailable(RerankError):
    """The same request may succeed after `retry_after_s` seconds."""

    status = 503
    code = "unavailable"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(Unavailable):
    status = 429
    code = "overloaded"


class RateLimited(Unavailable):
    status = 429
    code = "rate_limited"


class ModelNotReady(Unavailable):
    status = 503
    code = "model_not_ready"


class StoreUnavailable(Unavailable):
    status = 503
    code = "store_unavailable"


class RemoteUnavailable(Unavailable):
    status = 503
    code = "remote_unavailable"


class DeadlineExceeded(RerankError):
    status = 504
    code = "deadline_exceeded"


class NotConfigured(RerankError):
    status = 501
    code = "not_configured"


class StoreFull(RerankError):
    status = 507
    code = "store_full"


class RemoteFailed(RerankError):
    status = 502
    code = "remote_failed"


class ScoringFailed(RerankError):
    status = 500
    code = "scoring_failed"


class ConfigError(Exception):
    """A setting, a registry entry or a model folder that cannot be used; the message names it and the way out."""


class SourceUnreachable(ConfigError):
    """A model's files could not be fetched now; fetching them later may succeed."""


class CacheUnavailable(Exception):
    """The cache did not answer in time, or answered with an error."""


class OutOfMemory(Exception):
    """An engine's device has too little memory for a batch; a smaller one may fit."""
