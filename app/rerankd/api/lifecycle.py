"""Whether the service is shutting down. It still answers while it drains, but `/ready` is false at once."""

from dataclasses import dataclass


@dataclass(slots=True)
class Lifecycle:
    draining: bool = False
