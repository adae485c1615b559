"""Decides which work is taken and which is refused at once. Pure.

Refusing at the door is kind: the caller can ask another replica now, and what was admitted is answered in time.
A request whose texts are still being tokenised counts already, by an estimate.
"""

from dataclasses import dataclass
from math import inf

from app.batching.cost import CostModel
from app.batching.planner import BatchPlanner
from app.domain import Terms
from app.errors import DeadlineExceeded, Overloaded

_FIRST_RETRY_S = 1.0
# What the prediction of a request's own work is off by.
_MARGIN = 1.1
# What waits is predicted from recent passes, and the next ones may be slower. Taking in less costs nothing while work
# waits; taking in too much costs everybody behind the first that is late.
_QUEUE_MARGIN = 1.2
# What an answer needs beside the passes, or a tenth of the time that is left where that is less.
_ANSWER_S = 0.03
# Only passes teach how fast the engine is. Who is refused because it was slow would else be refused for ever.
_TRIAL_AFTER_S = 2.0
_TOKENS_PER_CHARACTER = 0.25
_MEMORY = 0.95


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens of a request, and the sum of its encodings' squared lengths."""

    tokens: int
    squares: float


class Admission:
    """Answers for one model. `reserved` work is admitted, but not in the planner yet."""

    def __init__(self, planner: BatchPlanner, cost: CostModel, *, max_waiting_tokens: int, workers: int) -> None:
        self._planner = planner
        self._cost = cost
        self._max_waiting_tokens = max_waiting_tokens
        self._workers = workers
        self._tokens_per_character = _TOKENS_PER_CHARACTER
        self._let_in_at = -inf
        self.reserved_tokens = 0

    @property
    def seconds_per_token(self) -> float:
        """How fast waiting work goes, all workers together."""
        return self._cost.seconds_per_token / self._workers

    def estimate(self, *, characters: int, encodings: int, longest: int) -> Work:
        """What texts of so many characters will be, before they are tokenised and cut to `longest` tokens each."""
        tokens = min(max(1, round(characters * self._tokens_per_character)), encodings * longest)
        return Work(tokens, tokens * tokens / max(1, encodings))

    def learn_length(self, *, characters: int, tokens: int) -> None:
        """Take in how many tokens a request's characters were."""
        if characters:
            share = tokens / characters
            self._tokens_per_character = _MEMORY * self._tokens_per_character + (1 - _MEMORY) * share

    def check(self, work: Work, terms: Terms, *, now: float, busy_s: float) -> None:
        """Let a request in, or say why not. `busy_s` is what the passes that run will still take.

        Raises:
            Overloaded: too much waits, or the deadline cannot be met now; `retry_after_s` is when it could.
            DeadlineExceeded: the deadline could not be met by an idle server either.
        """
        if terms.urgent:
            return
        self._check_room(work, terms)
        if terms.deadline < inf and self._cost.known:
            self._check_deadline(work, terms, now=now, busy_s=busy_s)
        self._let_in_at = now

    def _check_room(self, work: Work, terms: Terms) -> None:
        """A caller that has not its part of the queue yet is not refused because others have more than theirs. Until it
        has less than its part, equal shares of the engine are taken for granted. What is larger than the limit is let
        in when nothing waits.
        """
        waiting = self._planner.waiting_tokens + self.reserved_tokens
        own = self._planner.tokens_of(terms.caller)
        callers = self._planner.active_callers + (not own)
        part = self._max_waiting_tokens / callers
        excess: float = min(waiting, waiting + work.tokens - self._max_waiting_tokens)
        if callers > 1 and work.tokens <= part:
            excess = min(excess, callers * (own + work.tokens - part))
        if excess > 0:
            raise Overloaded(
                f"{waiting} tokens wait already; this request has about {work.tokens} and the limit is "
                f"{self._max_waiting_tokens}: try again later, or send fewer documents",
                retry_after_s=excess * self.seconds_per_token or _FIRST_RETRY_S,
            )

    def _check_deadline(self, work: Work, terms: Terms, *, now: float, busy_s: float) -> None:
        """Work of one caller is done in the order of deadlines when need be: what must be done before this one's
        deadline must fit before it, and what has a later deadline must fit with it. Who takes a partial answer is let
        in when half of the time is left for it, and now and then who could be answered if the engine were as fast as
        it has been.
        """
        left_s = terms.deadline - now
        answer_s = min(_ANSWER_S, left_s / 10)
        own_s = _MARGIN * self._cost.seconds(tokens=work.tokens, squares=work.squares) / self._workers
        if terms.partial:
            own_s = min(own_s, left_s / 2)
        if own_s + answer_s > left_s:
            if own_s + answer_s <= left_s * self._cost.slowdown and self._is_idle_for_long(now, busy_s):
                return
            raise DeadlineExceeded(
                f"this request needs about {own_s:.2f} s and its deadline is in {max(0.0, left_s):.2f} s: "
                "allow more time, or send fewer documents"
            )
        late_s, retry_s = self._lateness(own_s, answer_s, terms, now=now, busy_s=busy_s)
        if late_s > 0:
            raise Overloaded(
                f"this request would be answered about {late_s:.2f} s after its deadline: try again later",
                retry_after_s=retry_s,
            )

    def _is_idle_for_long(self, now: float, busy_s: float) -> bool:
        idle = not (self._planner.waiting_tokens or self.reserved_tokens or busy_s)
        return idle and now - self._let_in_at >= _TRIAL_AFTER_S

    def _lateness(
        self, own_s: float, answer_s: float, terms: Terms, *, now: float, busy_s: float
    ) -> tuple[float, float]:
        """By how much the first deadline to be missed would be missed, if this request were admitted, and in how many
        seconds none would be, if nobody else comes.

        In every second `_QUEUE_MARGIN` seconds of predicted work are done: by so much is this request less late if it
        comes a second later, with a deadline as far away. The deadlines of others come nearer meanwhile. For those it
        is too late until they have gained enough all the same, or have to be met before its own.
        """
        left_s = terms.deadline - now
        pace_s = _QUEUE_MARGIN * self.seconds_per_token
        own_tokens = self._planner.tokens_of(terms.caller)
        others = self._planner.active_callers - bool(own_tokens)
        foreign_s = pace_s * (self._planner.waiting_tokens - own_tokens)
        earlier, later = self._planner.queue_of(terms.caller, deadline=terms.deadline)
        done_s = busy_s + pace_s * (self.reserved_tokens + earlier) + own_s
        late_s = self._shared(done_s, foreign_s, others) + answer_s - left_s
        retry_s = late_s / _QUEUE_MARGIN
        for pending in later:
            done_s += pace_s * pending.tokens
            answered_s = self._shared(done_s, foreign_s, others) + answer_s
            missed_s = answered_s - (pending.deadline - now)
            gained_s = missed_s / (_QUEUE_MARGIN - 1)
            behind_s = max(pending.deadline - terms.deadline, (answered_s - left_s) / _QUEUE_MARGIN)
            late_s = max(late_s, missed_s)
            retry_s = max(retry_s, min(gained_s, behind_s))
        return late_s, retry_s

    @staticmethod
    def _shared(own_s: float, foreign_s: float, others: int) -> float:
        """When own work is done beside that of other callers: after all of theirs, or at an equal share."""
        return min(own_s + foreign_s, own_s * (others + 1))
