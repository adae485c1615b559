"""Spans of requests that are traced. Without a trace each place costs one look-up of a context variable.

A front end opens a request's span (`opened`), and everything that runs for the request finds it there. The names and
attributes are those of OpenTelemetry's conventions where it has some. No attribute holds a text or a key.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Final, Protocol

Attributes = Mapping[str, str | int | float | bool]


class Span(Protocol):
    """A part of a trace that runs now."""

    @property
    def trace_id(self) -> str:
        """In hexadecimal digits."""

    @property
    def headers(self) -> Mapping[str, str]:
        """What tells another server that its work belongs to this span: `traceparent` of W3C Trace Context."""

    def child(self, name: str, attributes: Attributes, *, outgoing: bool = False) -> "Span":
        """A span that begins now. `outgoing`: another server works on it."""

    def joint(self, name: str, attributes: Attributes, others: "Sequence[Span]") -> "Span":
        """A span that begins now and belongs to this one and others alike: a child of the only one, else the first of a
        trace of its own; with a link to each of them.
        """

    def record(self, name: str, attributes: Attributes, *, ago_s: float, seconds: float) -> None:
        """A child that began so long ago and is over."""

    def note(self, attributes: Attributes) -> None:
        """Add attributes."""

    def end(self, error: BaseException | None = None) -> None: ...


_current: ContextVar[Span | None] = ContextVar("span", default=None)
_NOTHING: Final[AbstractContextManager[None]] = nullcontext()


def current_span() -> Span | None:
    """The span that the current work belongs to; None: it is not traced."""
    return _current.get()


def leave_trace() -> None:
    """What this task does from now on, and the tasks that it starts, belongs to no request."""
    _current.set(None)


def traced(
    name: str, attributes: Attributes | None = None, *, outgoing: bool = False
) -> AbstractContextManager[Span | None]:
    """A child of the current span, as long as the `with` block runs."""
    parent = _current.get()
    return _NOTHING if parent is None else opened(parent.child(name, attributes or {}, outgoing=outgoing))


def joint_span(name: str, attributes: Attributes, origins: Sequence[Span]) -> AbstractContextManager[Span | None]:
    """A span of work for several requests, as long as the `with` block runs."""
    return opened(origins[0].joint(name, attributes, origins[1:])) if origins else _NOTHING


@contextmanager
def opened(one: Span) -> Iterator[Span]:
    """Make a span the current one; it ends with the block."""
    before = _current.set(one)
    failure: BaseException | None = None
    try:
        yield one
    except BaseException as error:
        failure = error
        raise
    finally:
        _current.reset(before)
        one.end(failure)
        # An error holds this frame.
        del failure
