"""Whether the service is on its way out. It goes on answering while it drains; `/ready` says so at once."""

from dataclasses import dataclass


@dataclass(slots=True)
class Lifecycle:
    draining: bool = False
