"""What a call came to that was not answered, in terms that every front end can translate into its own."""

from asyncio import CancelledError
from dataclasses import dataclass
from typing import Final

from rerankd.errors import RerankError, Unavailable


class CallerGone(Exception):
    """The client closed its connection, or no longer waits, before the answer was ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """`code` is stable and meant for programs, `message` for people. `status` is the number that HTTP and the metrics
    use. After `retry_after_s` the same call may succeed; None: it must be changed.
    """

    status: int
    code: str
    message: str
    retry_after_s: float | None = None


CANCELLED: Final = Failure(status=499, code="cancelled", message="the call was cancelled before its answer was ready")
INTERNAL_ERROR: Final = Failure(
    status=500,
    code="internal_error",
    message="internal error; the server's log has the cause under this request's id",
)


def failure_of(error: BaseException) -> Failure:
    """What to tell the client of an error. The cause of an unexpected one stays in the server's log."""
    if isinstance(error, RerankError):
        retry_after_s = error.retry_after_s if isinstance(error, Unavailable) else None
        return Failure(status=error.status, code=error.code, message=error.message, retry_after_s=retry_after_s)
    return CANCELLED if isinstance(error, CallerGone | CancelledError) else INTERNAL_ERROR
