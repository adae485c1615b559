"""What is kept of jobs and files, and how a job's state changes. Pure.

validating -> in_progress -> completed | expired | failed
     |             `-> cancelling -> cancelled
     `-> failed
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, Self

import orjson

# Of a file that has more mistakes, the first ones are told.
MOST_PROBLEMS: Final = 100


class Status(StrEnum):
    """How far a job is. Clients of OpenAI's batches know these words."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in _ENDS


_ENDS: Final = frozenset({Status.COMPLETED, Status.FAILED, Status.EXPIRED, Status.CANCELLED})


class Passed(StrEnum):
    """The limit that one more job would pass."""

    WAITING = "waiting"
    KEPT = "kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A file that a client has sent, of `size` bytes. Times are seconds since 1970."""

    id: str
    owner: str
    name: str
    size: int
    created_at: int

    def to_json(self) -> bytes:
        return orjson.dumps(self)

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        return cls(**orjson.loads(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is wrong with a job; `line` counts from 1, None: with the whole of it."""

    code: str
    message: str
    line: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A file of requests that is to be answered by `expires_at`. It has `total` requests in `lines` lines, of which
    some may be blank; 0: they are not counted yet. `entered_at` says when it came to each status.
    """

    id: str
    owner: str
    input_id: str
    endpoint: str
    window: str
    created_at: int
    expires_at: int
    status: Status = Status.VALIDATING
    total: int = 0
    lines: int = 0
    entered_at: Mapping[str, int] = field(default_factory=dict)
    problems: Sequence[Problem] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    def entering(self, status: Status, *, now: float, **changes: Any) -> "Job":  # noqa: ANN401 - of any field
        """The job in its next status."""
        return replace(self, status=status, entered_at={**self.entered_at, status.value: int(now)}, **changes)

    @property
    def ended_at(self) -> int | None:
        return self.entered_at[self.status] if self.status.ended else None

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        fields = orjson.loads(text)
        problems = tuple(Problem(**problem) for problem in fields.pop("problems"))
        return cls(**{**fields, "status": Status(fields["status"]), "problems": problems})


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """The results of a job so far, those that are answers and those that are errors, and their bytes."""

    answered: int = 0
    failed: int = 0
    answered_bytes: int = 0
    failed_bytes: int = 0

    @property
    def results(self) -> int:
        return self.answered + self.failed


@dataclass(frozen=True, slots=True)
class Kept:
    """A job as it is kept: `version` grows with each change of it."""

    job: Job
    version: int
    counts: Counts


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that has not ended; `leased`: a process works on it."""

    id: str
    owner: str
    leased: bool


def has_room(size: int, *, most: int, total: int, own: int, shared: bool) -> bool:
    """Whether a key that has `own` bytes of all `total` may add some. Where keys share the room, each may have as much
    as it leaves free for others, as in memory (`rerankd.gateway.held_bytes`).
    """
    free = most - total - size
    return free >= 0 and (not shared or own + size <= free)
