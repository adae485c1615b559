"""Decides which large requests come back too early, so that they are refused before their bodies are read. Pure.

A refused request tells its client when to ask again. Clients that do not listen send megabytes, which are parsed only
to be refused again: the event loop and the threads that read texts lose their time for other keys. So a key's request
that is as large as a refused one, and comes before the time that the key was told, is refused by its head. The refusal
itself is late, so that clients that ask without a pause do not load the service with refusals either.

A queue may empty faster than expected, or the request may be another one: its scores may be in the cache, or it may be
for another model. So a refusal counts for a second at most. Where several models are served, all of them must
have refused the key: which model a request is for is known only from its body.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from rerankd.errors import Overloaded

_REMEMBERED_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Refused:
    """A request of this many bytes, until when it counts, and when it may come again."""

    size: int
    until: float
    again_at: float


class EarlyRetries:
    """The latest refusal of each key by each model. All times are seconds of one clock."""

    def __init__(self, *, remembered_s: float = _REMEMBERED_S) -> None:
        self._remembered_s = remembered_s
        self._refused: dict[tuple[str, str], _Refused] = {}

    def refused(self, key: str, model: str, *, size: int, retry_after_s: float, now: float) -> None:
        """A request for a model was refused."""
        until = now + min(retry_after_s, self._remembered_s)
        self._refused[key, model] = _Refused(size, until, now + retry_after_s)

    def wait_s(self, key: str, models: Collection[str], *, size: int, now: float) -> float:
        """How long to keep a request of this size waiting for its refusal; 0: it may be read."""
        known = [self._refused.get((key, model)) for model in models]
        if not known or not all(one is not None and now < one.until and size >= one.size for one in known):
            return 0.0
        return min(one.until for one in known if one is not None) - now

    def refusal(self, key: str, models: Collection[str], *, now: float) -> Overloaded:
        """What to tell the client of a request that came too early."""
        again_at = min(self._refused[key, model].again_at for model in models)
        return Overloaded(
            "a request of this API key that was no larger was refused a moment ago, and this one came before the time "
            "that its Retry-After named: wait that long",
            retry_after_s=max(again_at - now, 0.001),
        )
