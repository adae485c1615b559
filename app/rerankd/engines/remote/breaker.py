"""Decides whether a remote model is asked. Pure.

After some failures in a row it counts as away, and nobody waits for it any more. After a pause one request tries it: an
answer brings it back, another failure doubles the pause.
"""

from typing import Final

_LONGEST_PAUSE_S: Final = 300.0
# A call that its caller gives up tells of a remote that hangs only if it took this long, and this many times as long as
# usual: otherwise callers with short deadlines would take the remote away from all others.
_LONG_S: Final = 1.0
_LONG_FACTOR: Final = 3.0
_MEMORY: Final = 0.9


class Breaker:
    def __init__(self, *, failures: int, pause_s: float) -> None:
        self._allowed_failures = failures
        self._first_pause_s = self._pause_s = pause_s
        self._failures = 0
        self._asked_again_at = 0.0
        self._being_tried = False
        self._usual_s = 0.0
        self.away = False

    def wait_s(self, *, now: float) -> float:
        """Seconds until the remote is asked again; 0: now, by this caller, which then says what came of it."""
        if not self.away:
            return 0.0
        if self._being_tried or now < self._asked_again_at:
            return max(self._asked_again_at - now, 1.0)
        self._being_tried = True
        return 0.0

    def left_s(self, *, now: float) -> float:
        """Seconds until somebody may try a remote that is away."""
        return max(0.0, self._asked_again_at - now)

    def succeeded(self, *, seconds: float) -> None:
        """Note an answer. A refusal of the request is one, too."""
        self._usual_s = max(seconds, _MEMORY * self._usual_s)
        self._failures = 0
        self._pause_s = self._first_pause_s
        self.away = self._being_tried = False

    def failed(self, *, now: float, pause_s: float = 0.0) -> None:
        """Note that no answer came; the remote said when to ask again, or `pause_s` is 0."""
        self._failures += 1
        if not self._being_tried and self._failures < self._allowed_failures:
            return
        if self.away and not self._being_tried:
            # It was asked before it was away.
            return
        self._asked_again_at = now + max(self._pause_s, pause_s)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self.away = True
        self._being_tried = False

    def given_up(self, *, now: float, seconds: float) -> None:
        """Note that nobody waits any more for an answer that was asked for so long ago."""
        if seconds >= max(_LONG_S, _LONG_FACTOR * self._usual_s):
            self.failed(now=now)
        else:
            self._being_tried = False
