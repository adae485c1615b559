"""Decides how many bytes of requests and answers may be held at a time, and by which API key. Pure.

A request holds its texts, and for each document what the work on it takes. Once there is an answer, it holds only that.

A key may hold as much as it leaves free for others: one key alone half of all, two at once a third each, and so on.
However many keys send requests that they do not finish, a key that comes later finds room (dynamic thresholds:
Choudhury and Hahne, 1998). Without keys all callers count as one, which may hold everything.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from rerankd.errors import Overloaded

# What a document takes beside its text: its entries in lists and arrays, its result, and its part of the answer.
# Measured: 300 bytes while a blank one waits, and 210 of its answer.
DOCUMENT_BYTES: Final = 512
# What a query takes beside those: its task, its terms, a few arrays and its result.
QUERY_BYTES: Final = 4096


@dataclass(slots=True)
class HeldBytes:
    """The bytes that are held, in all and by each key."""

    max_bytes: int
    total: int = 0
    of_key: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Claim:
    """The bytes that one request holds; `key` is "" where there are no keys. Beside other requests it may hold what is
    left of `part` of all bytes.
    """

    held: HeldBytes
    key: str
    bytes: int = 0
    part: float = 1.0

    def take(self, amount: int) -> None:
        """Hold more.

        Raises:
            Overloaded: there is no room. One request alone always has it.
        """
        others = self.held.total - self.bytes
        if others:
            free = int(self.part * self.held.max_bytes) - self.held.total - amount
            of_key = self.held.of_key[self.key] + amount
            if free < 0:
                raise Overloaded(f"other requests hold {others} bytes; try again when some are answered")
            if self.key and of_key > free:
                raise Overloaded(
                    f"this API key's requests would hold {of_key} bytes and leave {free} for others; "
                    "try again when some are answered"
                )
        self.hold(amount)

    def change(self, amount: int) -> None:
        """Replace the held bytes by `amount`.

        Raises:
            Overloaded: that is more, and there is no room for it.
        """
        if amount > self.bytes:
            self.take(amount - self.bytes)
        else:
            self.hold(amount - self.bytes)

    def hold(self, amount: int) -> None:
        """Hold more or less of what is in memory already, so there is nothing to reject."""
        self.bytes += amount
        self.held.total += amount
        self.held.of_key[self.key] += amount

    def release(self) -> None:
        self.held.total -= self.bytes
        self.held.of_key[self.key] -= self.bytes
        if not self.held.of_key[self.key]:
            del self.held.of_key[self.key]
        self.bytes = 0
