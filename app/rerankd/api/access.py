"""The log line of a request, written when it has ended. The middleware fills in what it sees, the gateway the rest."""

import logging
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final

from starlette.types import Scope

from rerankd.gateway.gateway import CallFacts

logger = logging.getLogger("rerankd.access")

_KEY: Final = "rerankd.access"
_LONGEST_PATH: Final = 200
_LONGEST_ADDRESS: Final = 64
# Load balancers ask every second or two; changes of what they are told are logged elsewhere.
PROBES: Final = frozenset({"/health", "/ready", "/metrics"})
_USUAL_OF_PROBES: Final = frozenset({200, 503})


@dataclass(slots=True)
class Access:
    """One request. `status` is 0 before the answer's first byte; what is not known is left out of the log."""

    started: float = field(default_factory=perf_counter)
    status: int = 0
    call: CallFacts = field(default_factory=CallFacts)
    bytes_in: int = 0
    bytes_out: int = 0

    def log(self, scope: Scope) -> None:
        """Write the line, at DEBUG for probes."""
        probe = self.status in _USUAL_OF_PROBES and scope["path"] in PROBES
        level = logging.DEBUG if probe else logging.INFO
        if logger.isEnabledFor(level):
            logger.log(level, "request", extra=self._fields(scope))

    def _fields(self, scope: Scope) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "method": scope["method"],
            "path": _harmless(scope["path"], _LONGEST_PATH),
            "status": self.status,
            "duration_ms": round((perf_counter() - self.started) * 1000, 2),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
        }
        client = scope.get("client")
        if client:
            fields["client"] = _harmless(client[0], _LONGEST_ADDRESS)
        for name in ("key", "dialect", "model"):
            if value := getattr(self.call, name):
                fields[name] = value
        if self.call.documents is not None:
            fields["documents"] = self.call.documents
        return fields


def start_access(scope: Scope) -> Access:
    """Begin the record of a request."""
    access = scope[_KEY] = Access()
    return access


def access_of(scope: Scope) -> Access:
    """The record of the request that a scope belongs to."""
    access: Access | None = scope.get(_KEY)
    return start_access(scope) if access is None else access


def _harmless(text: str, longest: int) -> str:
    """Short, and without control characters for terminals: the text comes from the client."""
    shown = text[:longest]
    if not shown.isprintable():
        shown = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in shown)
    return shown if len(text) <= longest else f"{shown}..."
