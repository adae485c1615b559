"""Decides which connections are accepted, and logs those that are refused. Knows no socket.

Beyond the limit a few more connections are accepted for probes. Over them only `/health` and `/ready` are answered, so
that an orchestrator does not restart a service that is merely full.
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
_MIN_PROBE_CONNECTIONS: Final = 8
_CONNECTIONS_PER_PROBE: Final = 16
_LOG_EVERY_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """How many connections there may be, and how long each phase of one may take."""

    max_connections: int
    max_per_address: int | None
    head_timeout_s: float
    body_timeout_s: float
    idle_timeout_s: float
    write_timeout_s: float

    @property
    def probe_connections(self) -> int:
        """Connections beyond `max_connections` that are accepted for probes only."""
        return max(_MIN_PROBE_CONNECTIONS, self.max_connections // _CONNECTIONS_PER_PROBE)


class Allowed(Enum):
    """What a new connection may be used for."""

    ANYTHING = "anything"
    PROBES = "probes"
    NOTHING = "nothing"


@dataclass(slots=True, eq=False)
class Slot:
    """What the limiter keeps of one connection; `origin` is the network that it comes from."""

    allowed: Allowed
    origin: str


@dataclass(slots=True)
class ConnectionLimiter:
    """Counts the open connections."""

    limits: ConnectionLimits
    observer: Observer
    clock: Callable[[], float] = monotonic
    _open: int = 0
    _open_by_origin: Counter[str] = field(default_factory=Counter)
    _not_logged: Counter[str] = field(default_factory=Counter)
    _logged_at: dict[str, float] = field(default_factory=dict)

    def acquire(self, address: str | None) -> Slot:
        """A slot for a new connection, which `release` returns, whatever it allows."""
        origin = _origin(address)
        slot = Slot(self._allowed(origin), origin)
        if slot.allowed is not Allowed.NOTHING:
            self._open += 1
            self._open_by_origin[origin] += 1
            self.observer.connections_changed(open_connections=self._open)
        return slot

    def release(self, slot: Slot) -> None:
        if slot.allowed is Allowed.NOTHING:
            return
        self._open -= 1
        self._open_by_origin[slot.origin] -= 1
        if not self._open_by_origin[slot.origin]:
            del self._open_by_origin[slot.origin]
        self.observer.connections_changed(open_connections=self._open)

    def count_refusal(self, slot: Slot, reason: str) -> None:
        """Count a connection that was refused or aborted; refusals are logged together every few seconds."""
        self.observer.connection_refused(reason=reason)
        self._not_logged[reason] += 1
        now = self.clock()
        if now - self._logged_at.get(reason, -_LOG_EVERY_S) >= _LOG_EVERY_S:
            self._logged_at[reason] = now
            logger.warning(
                "connections refused: %s",
                reason,
                extra={
                    "reason": reason,
                    "connections": self._not_logged.pop(reason),
                    "latest_from": slot.origin,
                    "open": self._open,
                },
            )

    def _allowed(self, origin: str) -> Allowed:
        limits = self.limits
        within = limits.max_per_address is None or self._open_by_origin[origin] < limits.max_per_address
        if within and self._open < limits.max_connections:
            return Allowed.ANYTHING
        return Allowed.PROBES if self._open < limits.max_connections + limits.probe_connections else Allowed.NOTHING


def _origin(address: str | None) -> str:
    """The network that an address belongs to: in IPv6 a customer has a whole /64."""
    try:
        ip = ip_address((address or "").partition("%")[0])
    except ValueError:
        return ""
    if isinstance(ip, IPv6Address):
        return str(ip.ipv4_mapped or int(ip) >> 64)
    return str(ip)
