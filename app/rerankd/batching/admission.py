"""Decides which work is taken and which is refused at once. Pure.

Refusing at the door is kind: the caller can ask another replica now, and what was admitted is answered in time.
A request whose texts are still being tokenized counts already, by an estimate, which each chunk of them corrects. One
that turns out to be much more than it was admitted for is checked again.

An admitted request keeps its deadline, whatever comes later: near deadlines the planner does not look at callers. So
callers get their shares here. No request is promised time that other callers may still claim, and a caller with nothing
waiting needs less room than one with work in the queue. A light caller, one with much less than its share of the queue,
is not refused for the work of heavy ones: the planner serves it first.
"""

from collections import Counter
from dataclasses import dataclass
from math import exp, inf

from rerankd.batching.cost import CostModel
from rerankd.batching.planner import BatchPlanner
from rerankd.batching.work import Work
from rerankd.domain import Terms
from rerankd.errors import DeadlineExceeded, Overloaded

_FIRST_RETRY_S = 1.0
# What the prediction of a request's own work is off by.
_MARGIN = 1.1
# What waits is predicted from recent passes, and the next ones may be slower. Taking in less costs nothing while work
# waits; taking in too much costs everybody behind the first that is late. Where several callers ask, room is kept for
# what they may still claim, and less is needed beside it.
_QUEUE_MARGIN = 1.4
_SHARED_QUEUE_MARGIN = 1.2
# What an answer needs beside the passes, or a tenth of the time that is left where that is less.
_ANSWER_S = 0.03
# Only passes teach how fast the engine is: without a trial, requests would be refused for ever after a slow phase.
_TRIAL_AFTER_S = 2.0
_TOKENS_PER_CHARACTER = 0.25
_MEMORY = 0.95
# Texts of more callers than this are not remembered.
_REMEMBERED_CALLERS = 1000
# A request that turns out to be this many times what it was admitted for is checked again.
_SURPRISING = 1.25
# How long a caller's requests count: one that sends a request a minute is still expected a little.
_EXPECTED_S = 30.0
# Less than this is told in milliseconds.
_LITTLE_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What is known of a request before its texts are tokenized: their characters, and the items that they become,
    each cut to at most `longest` tokens.
    """

    characters: int
    items: int
    longest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenized:
    """What some of a request's texts turned out to be: `tokens`, and `work` as the engine computes them. Those that
    were not cut are `whole_tokens` of `whole_characters`: only they tell how long texts are.
    """

    characters: int
    items: int
    tokens: int
    work: Work
    whole_characters: int
    whole_tokens: int


class Forecast:
    """How much work a request is expected to be; each part of it that is tokenized makes this more exact."""

    def __init__(self, estimate: Estimate, *, density: float) -> None:
        self._characters = estimate.characters
        self._items = estimate.items
        self._longest = estimate.longest
        self._seen_characters = 0
        self._seen = Work(0, 0.0)
        self.work = self._expected(density)

    def correct(self, part: Tokenized) -> None:
        """Take in what some of the texts turned out to be; the others are expected to be like all seen so far."""
        self._characters -= part.characters
        self._items -= part.items
        self._seen_characters += part.characters
        self._seen = Work(self._seen.tokens + part.work.tokens, self._seen.squares + part.work.squares)
        self.work = self._expected(self._seen.tokens / max(1, self._seen_characters))

    def _expected(self, density: float) -> Work:
        if not self._items:
            return self._seen
        tokens = min(max(1, round(self._characters * density)), self._items * self._longest)
        return Work(self._seen.tokens + tokens, self._seen.squares + tokens * tokens / self._items)


class TextLengths:
    """Learns how many tokens texts have, by their characters. Each caller's texts are of their own kind."""

    def __init__(self) -> None:
        # The caller last heard of is last.
        self._tokens_per_character: dict[str, float] = {}

    def forecast(self, estimate: Estimate, *, caller: str = "") -> Forecast:
        """How much work a caller's texts should be, by how many tokens its characters have been so far."""
        return Forecast(estimate, density=self._tokens_per_character.get(caller, _TOKENS_PER_CHARACTER))

    def learn(self, *, characters: int, tokens: int, caller: str = "") -> None:
        """Take in how many tokens a caller's characters were."""
        if characters:
            known = self._tokens_per_character.pop(caller, _TOKENS_PER_CHARACTER)
            self._tokens_per_character[caller] = _MEMORY * known + (1 - _MEMORY) * tokens / characters
            if len(self._tokens_per_character) > _REMEMBERED_CALLERS:
                del self._tokens_per_character[next(iter(self._tokens_per_character))]


def is_surprising(work: Work, *, admitted: Work) -> bool:
    """Whether a request exceeds what it was admitted for by a factor that calls for a new check."""
    return work.tokens > _SURPRISING * admitted.tokens


class Admission:
    """Answers for one model."""

    def __init__(self, planner: BatchPlanner, cost: CostModel, *, max_waiting_tokens: int, workers: int) -> None:
        self._planner = planner
        self._cost = cost
        self._max_waiting_tokens = max_waiting_tokens
        self._workers = workers
        self._admitted_at = -inf
        self._reserved: Counter[str] = Counter()
        # Tokens that callers asked for lately, each counting less and less.
        self._asked: dict[str, float] = {}
        self._asked_at = -inf

    @property
    def seconds_per_token(self) -> float:
        """How fast waiting work goes, all workers together."""
        return self._cost.seconds_per_token / self._workers

    @property
    def reserved_tokens(self) -> int:
        """Tokens of requests that are admitted, but not in the planner yet."""
        return self._reserved.total()

    def reserve(self, caller: str, tokens: int) -> None:
        """Count this many tokens more, or less, for a caller."""
        self._reserved[caller] += tokens
        if not self._reserved[caller]:
            del self._reserved[caller]

    def check(self, work: Work, terms: Terms, *, now: float, busy_s: float, admitted: Work | None = None) -> None:
        """Admit a request, or say why not. `busy_s` is what the passes that run will still take; `admitted` is what a
        request that is checked again was admitted for.

        Raises:
            Overloaded: too much waits, or the deadline cannot be met now; `retry_after_s` is when it could.
            DeadlineExceeded: the deadline could not be met by an idle server either.
        """
        if terms.urgent or terms.background:
            return
        self._expect(work.tokens - (admitted.tokens if admitted else 0), terms.caller, now=now)
        self._check_room(work, terms)
        if terms.deadline < inf and self._cost.known:
            self._check_deadline(work, terms, now=now, busy_s=busy_s)
        self._admitted_at = now

    def fits(self, work: Work, terms: Terms, *, now: float, busy_s: float) -> bool:
        """Whether this work would be done before its deadline, if it came now. It is not counted as asked for."""
        if terms.deadline == inf or not self._cost.known:
            return True
        try:
            self._check_deadline(work, terms, now=now, busy_s=busy_s)
        except (Overloaded, DeadlineExceeded):
            return False
        return True

    def _check_room(self, work: Work, terms: Terms) -> None:
        """A caller below its share of the queue is not refused because others have more than theirs. Until it has less
        than its share, equal shares of the engine are taken for granted. A request that is larger than the limit is
        admitted when nothing waits.
        """
        waiting = self._planner.waiting_tokens + self.reserved_tokens
        own = self._tokens_of(terms.caller)
        newcomers = sum(not self._planner.tokens_of(caller) for caller in {terms.caller, *self._reserved})
        callers = self._planner.active_callers + newcomers
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
        """Work is done in the order of deadlines when need be: what must be done before this one's deadline, or may
        still be claimed, must fit before it, and what has a later deadline must fit with it. A request that takes a
        partial answer is admitted when half of the time is left for it; now and then also one that could be answered
        if the engine were as fast as it has been.
        """
        left_s = terms.deadline - now
        answer_s = min(_ANSWER_S, left_s / 10)
        needed_s = self._cost.seconds(tokens=work.tokens, squares=work.squares) / self._workers
        own_s = min(_MARGIN * needed_s, left_s / 2) if terms.partial else _MARGIN * needed_s
        if own_s + answer_s > left_s:
            if own_s + answer_s <= left_s * self._cost.slowdown and self._is_idle_for_long(now, busy_s):
                return
            raise DeadlineExceeded(
                f"this request needs about {_shown(own_s)} and its deadline is in {_shown(left_s)}: "
                "allow more time, or send fewer documents"
            )
        late = self._lateness_of_light if self._is_light(work, terms.caller) else self._lateness
        late_s, retry_s = late(needed_s, answer_s, terms, now=now, busy_s=busy_s)
        if late_s > 0:
            raise Overloaded(
                f"this request would be answered about {_shown(late_s)} after its deadline: try again later",
                retry_after_s=retry_s,
            )

    def _is_idle_for_long(self, now: float, busy_s: float) -> bool:
        idle = not (self._planner.waiting_tokens or self.reserved_tokens or busy_s)
        return idle and now - self._admitted_at >= _TRIAL_AFTER_S

    def _lateness(
        self, needed_s: float, answer_s: float, terms: Terms, *, now: float, busy_s: float
    ) -> tuple[float, float]:
        """By how much the first deadline to be missed would be missed, if this request were admitted, and in how many
        seconds none would be, if nobody else comes.

        In every second `margin` seconds of predicted work are done: by this much is the request less late if it comes
        a second later, with a deadline as far away. The deadlines of others come nearer meanwhile. For those it is too
        late until they have gained enough all the same, or have to be met before its own. What others may claim stays,
        so only what is done of the caller's own counts then.
        """
        left_s = terms.deadline - now
        own_tokens = self._tokens_of(terms.caller)
        own_margin, margin = self._margins(own_tokens)
        own_s = min(own_margin * needed_s, left_s / 2) if terms.partial else own_margin * needed_s
        pace_s = margin * self.seconds_per_token
        claimed_s = self._claimed(terms.caller, left_s, pace_s) if own_tokens else 0.0
        earlier, later = self._planner.queue(deadline=terms.deadline)
        done_s = busy_s + pace_s * (self.reserved_tokens + earlier) + claimed_s + own_s
        late_s = done_s + answer_s - left_s
        retry_s = late_s / margin
        if claimed_s:
            retry_s *= (self._planner.waiting_tokens + self.reserved_tokens) / own_tokens
        for pending in later:
            done_s += pace_s * pending.tokens
            answered_s = done_s + answer_s
            missed_s = answered_s - (pending.deadline - now)
            gained_s = missed_s / (margin - 1)
            behind_s = max(pending.deadline - terms.deadline, (answered_s - left_s) / margin)
            late_s = max(late_s, missed_s)
            retry_s = max(retry_s, min(gained_s, behind_s))
        return late_s, retry_s

    def _is_light(self, work: Work, caller: str) -> bool:
        own = self._reserved[caller]
        return self._planner.is_light(caller, tokens=own + work.tokens, others=self.reserved_tokens - own)

    def _lateness_of_light(
        self, needed_s: float, answer_s: float, terms: Terms, *, now: float, busy_s: float
    ) -> tuple[float, float]:
        """The same for a light caller: nobody's work but that of light ones is done before its own."""
        ahead = self._reserved[terms.caller] + self._planner.ahead_of_light(terms.caller)
        done_s = busy_s + _MARGIN * (self.seconds_per_token * ahead + needed_s)
        late_s = done_s + answer_s - (terms.deadline - now)
        return late_s, late_s / _MARGIN

    def _margins(self, own_tokens: int) -> tuple[float, float]:
        """By how much more time a caller's next request is counted with, and what waits, than recent passes say."""
        if not own_tokens:
            return _MARGIN, _MARGIN
        if len(self._asked) > 1:
            return _MARGIN, _SHARED_QUEUE_MARGIN
        return _QUEUE_MARGIN, _QUEUE_MARGIN

    def expected_of(self, caller: str) -> float:
        """Tokens that a caller asked for lately, as they count by now."""
        return self._asked.get(caller, 0.0)

    def take_back(self, caller: str, tokens: int) -> None:
        """Expect that much less of a caller: its request comes again."""
        self._asked[caller] = max(0.0, self._asked.get(caller, 0.0) - tokens)

    def _expect(self, tokens: int, caller: str, *, now: float) -> None:
        fading = exp((self._asked_at - now) / _EXPECTED_S)
        self._asked = {name: tokens * fading for name, tokens in self._asked.items() if tokens * fading >= 1}
        self._asked[caller] = max(0.0, self._asked.get(caller, 0.0) + tokens)
        self._asked_at = now

    def _claimed(self, caller: str, left_s: float, pace_s: float) -> float:
        """How much of the time that is left others may still claim, whose requests would go first: each as much as it
        has waiting and asked for lately, but no more than an equal part, less what is counted already.
        """
        part_s = left_s / max(1, len(self._asked))
        claimed_s = 0.0
        for other, asked in self._asked.items():
            if other != caller:
                wanted_s = min(pace_s * (asked + self._tokens_of(other)), part_s)
                counted_s = pace_s * (self._planner.dated_tokens_of(other) + self._reserved[other])
                claimed_s += max(0.0, wanted_s - counted_s)
        return claimed_s

    def _tokens_of(self, caller: str) -> int:
        return self._planner.tokens_of(caller) + self._reserved[caller]


def _shown(seconds: float) -> str:
    """In milliseconds where it is little."""
    seconds = max(0.0, seconds)
    if seconds >= _LITTLE_S:
        return f"{seconds:.2f} s"
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.001 else f"{1000 * seconds:.2g} ms"
