"""Decides which connections are taken, and tells an operator about those that are not. Knows no socket.

Beside the connections that it allows, a few more are taken for probes: over them only `/health` and `/ready` are
answered, so that an orchestrator does not restart a service that is only full.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv6Address, ip_address
from time import monotonic
from typing import Final

from rerankd.telemetry.observer import Observer

logger = logging.getLogger(__name__)

PROBE_PATHS: Final = frozenset({"/health", "/ready"})
_MIN_PROBE_PLACES: Final = 8
_PROBE_SHARE: Final = 16
_LOG_EVERY_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionBounds:
    """How many connections there may be, and how long each may take for what."""

    max_connections: int
    max_per_address: int | None
    head_timeout_s: float
    body_timeout_s: float
    idle_timeout_s: float
    write_timeout_s: float

    @property
    def probe_places(self) -> int:
        """Connections beyond `max_connections`, for probes only."""
        return max(_MIN_PROBE_PLACES, self.max_connections // _PROBE_SHARE)


class Place(Enum):
    """What a new connection may be used for."""

    ANYTHING = "anything"
    PROBES = "probes"
    NOTHING = "nothing"


@dataclass(slots=True, eq=False)
class Entry:
    """A connection as the door knows it."""

    place: Place
    origin: str


@dataclass(slots=True)
class Door:
    """Counts the open connections."""

    bounds: ConnectionBounds
    observer: Observer
    clock: Callable[[], float] = monotonic
    _open: int = 0
    _of_origin: Counter[str] = field(default_factory=Counter)
    _unsaid: Counter[str] = field(default_factory=Counter)
    _said_at: dict[str, float] = field(default_factory=dict)

    def enter(self, address: str | None) -> Entry:
        """Give a connection its place; `leave` gives it back, whichever it was."""
        origin = _origin(address)
        entry = Entry(self._place(origin), origin)
        if entry.place is not Place.NOTHING:
            self._open += 1
            self._of_origin[origin] += 1
            self.observer.connections_changed(open_connections=self._open)
        return entry

    def leave(self, entry: Entry) -> None:
        if entry.place is Place.NOTHING:
            return
        self._open -= 1
        self._of_origin[entry.origin] -= 1
        if not self._of_origin[entry.origin]:
            del self._of_origin[entry.origin]
        self.observer.connections_changed(open_connections=self._open)

    def refused(self, entry: Entry, reason: str) -> None:
        """Count a connection that was turned away or broken off, and log them together now and then."""
        self.observer.connection_refused(reason=reason)
        self._unsaid[reason] += 1
        now = self.clock()
        if now - self._said_at.get(reason, -_LOG_EVERY_S) >= _LOG_EVERY_S:
            self._said_at[reason] = now
            logger.warning(
                "connections refused: %s",
                reason,
                extra={
                    "reason": reason,
                    "connections": self._unsaid.pop(reason),
                    "latest_from": entry.origin,
                    "open": self._open,
                },
            )

    def _place(self, origin: str) -> Place:
        bounds = self.bounds
        most = bounds.max_per_address
        within = most is None or self._of_origin[origin] < most
        if within and self._open < bounds.max_connections:
            return Place.ANYTHING
        return Place.PROBES if self._open < bounds.max_connections + bounds.probe_places else Place.NOTHING


def _origin(address: str | None) -> str:
    """Whose connection it is: in IPv6 a customer has a whole /64 network."""
    try:
        ip = ip_address((address or "").partition("%")[0])
    except ValueError:
        return ""
    if isinstance(ip, IPv6Address):
        return str(ip.ipv4_mapped or int(ip) >> 64)
    return str(ip)
