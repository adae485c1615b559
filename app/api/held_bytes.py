"""Decides how many bytes of bodies and answers may be held at a time, and by which API key. Pure.

A key may hold as much as it leaves free for others: alone half of all, two at once a third each, and so on. However
many keys send bodies that they do not finish, one that comes later finds room (dynamic thresholds: Choudhury and Hahne,
1998). Without keys all callers are one, which may hold everything.
"""

from collections import Counter
from dataclasses import dataclass, field

from app.errors import Overloaded


@dataclass(slots=True)
class HeldBytes:
    """What is held, in all and by each key."""

    max_bytes: int
    total: int = 0
    of_key: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Claim:
    """What one request holds; `key` is "" where there are no keys."""

    held: HeldBytes
    key: str
    bytes: int = 0

    def take(self, amount: int) -> None:
        """Hold more of a body.

        Raises:
            Overloaded: there is no room. One request alone always has it.
        """
        others = self.held.total - self.bytes
        if others:
            free = self.held.max_bytes - self.held.total - amount
            of_key = self.held.of_key[self.key] + amount
            if free < 0:
                raise Overloaded(f"other requests hold {others} bytes; try again when some are answered")
            if self.key and of_key > free:
                raise Overloaded(
                    f"this API key's requests would hold {of_key} bytes and leave {free} for others; "
                    "try again when some are answered"
                )
        self.hold(amount)

    def hold(self, amount: int) -> None:
        """Hold what is there already, as an answer."""
        self.bytes += amount
        self.held.total += amount
        self.held.of_key[self.key] += amount

    def release(self) -> None:
        self.held.total -= self.bytes
        self.held.of_key[self.key] -= self.bytes
        if not self.held.of_key[self.key]:
            del self.held.of_key[self.key]
        self.bytes = 0
