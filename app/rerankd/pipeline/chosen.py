"""Ranks documents by comparisons: a schedule asks which of a few is the best, and a model answers."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from itertools import chain
from time import perf_counter
from typing import Any, Final, Generic, TypeVar

import numpy as np

from rerankd.batching.admission import Estimate, Tokenized
from rerankd.batching.ticket import Intake, Ticket
from rerankd.batching.work import WorkItem
from rerankd.cache.keys import comparison_key
from rerankd.concurrency.sharing import SharedWorker
from rerankd.concurrency.turns import Share
from rerankd.concurrency.worker import in_chunks
from rerankd.domain import FloatArray, IntArray, ScoreOptions, Scores, Settled, Timings, WindowPlan, WindowWishes
from rerankd.errors import ConfigError, InvalidRequest
from rerankd.pipeline.cached import keys_of, with_options
from rerankd.pipeline.choices import METHODS, Answer, Comparison, Extent, Method, Points, Rounds, of_both_orders
from rerankd.pipeline.chunks import share_of
from rerankd.pipeline.comparators import Comparator
from rerankd.pipeline.items import finished, items_of, tokenized
from rerankd.pipeline.known_scores import KnownScores
from rerankd.pipeline.windowed import values_of_order

T = TypeVar("T")
R = TypeVar("R")

# The mark of cached answers.
ANSWERS: Final = b"ch01"
# As many documents as other requests wait for: each takes some ten microseconds, beside its tokens.
_DOCUMENTS_PER_CALL: Final = 500
# To learn more answers than these takes milliseconds.
_MANY: Final = 500
# Above what is beyond the depth.
_LEAST_SHARE: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What one request asks for: the first `depth` documents of `order` are compared by a method."""

    name: str
    order: IntArray
    extent: Extent
    both_orders: bool

    @property
    def method(self) -> Method:
        return METHODS[self.name]

    @property
    def depth(self) -> int:
        return self.extent.candidates

    @property
    def size(self) -> int:
        """How many documents a prompt shows."""
        return 2 if self.method.pairs else min(self.extent.window, self.depth)

    @property
    def expected(self) -> int:
        """How many prompts it should take."""
        return max(1, self.method.expected(self.extent) * self._prompts)

    @property
    def most(self) -> int:
        """How many prompts it takes at most."""
        return max(1, self.method.most(self.extent) * self._prompts)

    @property
    def _prompts(self) -> int:
        return 2 if self.method.pairs and self.both_orders else 1

    @classmethod
    def of(cls, plan: WindowPlan, options: ScoreOptions, documents: int) -> "Course":
        """What a request asks for within the operator's plan.

        Raises:
            InvalidRequest: a wish is out of the plan's bounds, or asks for more comparisons than the plan's own
                schedule makes at its depth.
        """
        wishes = options.windows or WindowWishes()
        order = np.array(wishes.order_of(documents), dtype=np.int64)
        wanted = wishes.within(plan)
        try:
            check_method(wanted)
        except ConfigError as error:
            raise InvalidRequest(str(error)) from None
        asked = cls._at(wanted, order, depth=min(wanted.depth, documents), top_n=options.top_n)
        if wanted.schedule != plan.schedule:
            allowed = cls._at(plan, order, depth=plan.depth, top_n=None).most
            if asked.most > allowed:
                raise InvalidRequest(
                    f"schedule {wanted.schedule!r} may take {asked.most} comparisons of {asked.depth} documents, and "
                    f"this model's operator allows {allowed}: ask for a smaller depth, or leave schedule out"
                )
        return asked

    @classmethod
    def _at(cls, plan: WindowPlan, order: IntArray, *, depth: int, top_n: int | None) -> "Course":
        settle = min(top_n or plan.settle, plan.settle, depth)
        extent = Extent(candidates=depth, window=plan.window, settle=settle, rounds=plan.rounds)
        return cls(name=plan.schedule, order=order, extent=extent, both_orders=plan.both_orders)


def check_method(plan: WindowPlan) -> None:
    """Check that a plan's schedule is one of comparisons that its window allows.

    Raises:
        ConfigError: it is not.
    """
    if plan.schedule not in METHODS:
        raise ConfigError(f"unknown schedule {plan.schedule[:40]!r}; known: {', '.join(METHODS)}")
    if not METHODS[plan.schedule].pairs and plan.window < 3:
        pairs = ", ".join(name for name, method in METHODS.items() if method.pairs)
        raise ConfigError(
            f"schedule {plan.schedule!r} needs a window of at least 3 documents, and this one has {plan.window}; for "
            f"comparisons of two there are: {pairs}"
        )


class ChosenStage(Generic[T, R]):
    """Scores of methods with shares lie in (0, 1] and compare the documents of one request only; those of all others
    only say the order. Documents beyond the depth keep their order, below all others. `known` None: nothing is
    remembered; `fingerprint` says what changes an answer beside texts.
    """

    def __init__(
        self,
        comparator: Comparator[T, R],
        batcher: Intake[T, R],
        tokenizing: SharedWorker,
        *,
        known: KnownScores | None,
        fingerprint: str,
    ) -> None:
        check_method(comparator.plan)
        self._comparator = comparator
        self._asking = _Asking(comparator, batcher, tokenizing)
        self._tokenizing = tokenizing
        self._known = known
        self._fingerprint = fingerprint

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Order the documents. Where a partial answer was asked for, the deadline ends the schedule: then the order is
        the best that is known, and `settled` says how much of it is final.

        Raises:
            InvalidRequest: a wish is out of the operator's bounds, or a prompt does not fit into the model.
            ScoringFailed: the model's score of a document is not a finite number.
            Overloaded, DeadlineExceeded, Unavailable: see `Intake.admit` and `Ticket.run`.
            RateLimited: the caller's quota does not last for another round.
        """
        course = self._course(documents, options)
        async with AsyncExitStack() as admitted:
            answering = _Answering(
                self._asking, query, documents, options, course, admitted, self._known, self._fingerprint
            )
            return await _Ranking(answering, course, self._tokenizing).run()

    def estimate(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Estimate:
        """What a request should cost.

        Raises:
            InvalidRequest: as `score`.
        """
        course = self._course(documents, options)
        return self._asking.estimate(query, documents, course, prompts=course.expected)

    def _course(self, documents: Sequence[str], options: ScoreOptions) -> Course:
        return Course.of(self._comparator.plan, options, len(documents))


@dataclass(frozen=True, slots=True)
class _Asking(Generic[T, R]):
    """Asks the model."""

    comparator: Comparator[T, R]
    batcher: Intake[T, R]
    tokenizing: SharedWorker

    def estimate(self, query: str, documents: Sequence[str], course: Course, *, prompts: int) -> Estimate:
        """What this number of prompts costs, with documents of average length."""
        compared = [len(documents[index]) for index in course.order[: course.depth].tolist()]
        characters = prompts * (course.size * sum(compared) / len(compared) + len(query))
        return Estimate(characters=round(characters), items=prompts, longest=self.comparator.max_length)

    async def ask(
        self,
        query: str,
        documents: Sequence[str],
        comparisons: Sequence[Comparison],
        options: ScoreOptions,
        ticket: Ticket[T, R],
    ) -> Scores:
        """The answers to comparisons as `values`, shape [comparisons]: one trip through the batcher."""
        started = perf_counter()
        items: list[WorkItem[T]] = []
        dropped: list[IntArray] = []
        at_a_time = max(1, _DOCUMENTS_PER_CALL // len(comparisons[0]))
        for start in range(0, len(comparisons), at_a_time):
            chunk = comparisons[start : start + at_a_time]
            share = share_of(options.terms, [documents[index] for index in set(chain.from_iterable(chunk))])
            encoded, lost, part = await self.tokenizing.run(share, self._encode, query, documents, chunk, options)
            ticket.correct(part)
            items += encoded
            dropped.append(lost)
        tokens = np.array([item.cost for item in items], dtype=np.int64)
        tokenized_s = perf_counter() - started
        outcome = await ticket.run(items)
        scored = finished(outcome, len(comparisons))
        places = range(len(comparisons)) if scored is None else np.flatnonzero(scored).tolist()
        values = np.full(len(comparisons), np.nan, dtype=np.float32)
        if outcome.results:
            sizes = [len(comparisons[place]) for place in places]
            values[list(places)] = self.comparator.interpret(outcome.results, sizes)
        return Scores(
            values=values,
            scored=scored,
            tokens=tokens if scored is None else np.where(scored, tokens, 0),
            dropped=np.concatenate(dropped),
            timings=Timings(tokenize_s=tokenized_s, queue_s=outcome.queue_s, inference_s=outcome.inference_s),
        )

    def _encode(
        self, query: str, documents: Sequence[str], comparisons: Sequence[Comparison], options: ScoreOptions
    ) -> tuple[list[WorkItem[T]], IntArray, Tokenized]:
        """Blocking."""
        encoded = self.comparator.encode(query, documents, comparisons, options)
        items = items_of(self.comparator.task, encoded.encodings, scope=options.scope)
        part = tokenized(
            items,
            self.batcher.lengths_of(items),
            characters=[len(query) + sum(len(documents[index]) for index in one) for one in comparisons],
            whole=np.flatnonzero(~encoded.dropped.any(axis=1)).tolist(),
        )
        return items, encoded.dropped, part


class _Answering(Generic[T, R]):
    """Answers one request's comparisons, out of the cache as far as it knows them; what the model is asked for is
    admitted when it is asked first.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what one request is
        self,
        asking: _Asking[T, R],
        query: str,
        documents: Sequence[str],
        options: ScoreOptions,
        course: Course,
        admitted: AsyncExitStack,
        known: KnownScores | None,
        fingerprint: str,
    ) -> None:
        self._asking = asking
        self._query = query
        self._documents = documents
        self._options = options
        self._course = course
        self._admitted = admitted
        self._known = known
        self._fingerprint = with_options(fingerprint, options)
        self._ticket: Ticket[T, R] | None = None
        self._done = 0
        self._key_of: dict[int, bytes] = {}

    @property
    def documents(self) -> int:
        return len(self._documents)

    @property
    def settled(self) -> Settled | None:
        return self._options.settled

    @property
    def caller(self) -> str:
        return self._options.terms.caller

    async def answer(self, comparisons: Sequence[Comparison]) -> Scores:
        """The answers as `values`, shape [comparisons], of comparisons of documents' indices."""
        if self._known is None:
            return await self._ask(comparisons, asked=len(comparisons))

        async def compute(positions: Sequence[int]) -> Scores:
            return await self._ask([comparisons[position] for position in positions], asked=len(comparisons))

        started = perf_counter()
        keys = await self._keys(comparisons)
        hashed = Timings(cache_s=perf_counter() - started)
        scores = await self._known.complete(keys, compute, self._options.terms)
        return replace(scores, timings=scores.timings + hashed)

    async def _ask(self, comparisons: Sequence[Comparison], *, asked: int) -> Scores:
        """Ask the model for those of a round of `asked` comparisons that the cache does not know."""
        if self._ticket is None:
            # What is left of the schedule is expected to be as new as this is.
            later = max(0, self._course.expected - self._done - asked)
            estimate = self._asking.estimate(
                self._query, self._documents, self._course, prompts=len(comparisons) + later
            )
            admission = self._asking.batcher.admit(estimate, self._options.terms)
            self._ticket = await self._admitted.enter_async_context(admission)
        self._done += asked
        return await self._asking.ask(self._query, self._documents, comparisons, self._options, self._ticket)

    async def _keys(self, comparisons: Sequence[Comparison]) -> list[bytes]:
        new = [index for index in dict.fromkeys(chain.from_iterable(comparisons)) if index not in self._key_of]
        texts = [self._documents[index] for index in new]
        self._key_of |= zip(new, await keys_of(self._fingerprint, self._query, texts), strict=True)
        keys: list[bytes] = []
        async for span in in_chunks(len(comparisons)):
            keys += [comparison_key([self._key_of[index] for index in one]) for one in comparisons[span]]
        return keys


class _Ranking:
    """One request on its way through its schedule, and what that has cost so far."""

    def __init__(self, answering: _Answering[Any, Any], course: Course, tokenizing: SharedWorker) -> None:
        self._answering = answering
        self._course = course
        self._tokenizing = tokenizing
        self._standing = course.method.standing(course.depth)
        self._answers: dict[Comparison, Answer] = {}
        self._costs = _Costs(answering.documents)
        self._told = 0

    async def run(self) -> Scores:
        method, course = self._course.method, self._course
        if course.depth == 1:
            # One candidate needs no model, but a client or a canary must learn whether the model answers.
            await self._ask([(0, 0) if method.pairs else (0,)])
            self._standing.settled = [0]
            return self._scores(settled=None)
        schedule = method.run(self._standing, course.extent)
        comparisons: Sequence[Comparison] | None = next(schedule, None)
        while comparisons is not None:
            if not await self._ask(self._prompts(comparisons)):
                self._learn_known(comparisons)
                return self._scores(settled=len(self._standing.settled))
            comparisons = await self._advance(schedule, comparisons)
            self._tell_settled()
        return self._scores(settled=None)

    def _tell_settled(self) -> None:
        """Name the places that were settled since the last time."""
        settled, told = self._answering.settled, self._told
        self._told = len(self._standing.settled)
        if settled is not None and self._told > told:
            settled(told, self._course.order[self._standing.settled[told:]].tolist())

    def _prompts(self, comparisons: Sequence[Comparison]) -> list[Comparison]:
        """What the model is asked that it was not asked yet."""
        asked = dict.fromkeys(comparisons)
        if self._course.method.pairs and self._course.both_orders:
            asked |= dict.fromkeys(one[::-1] for one in comparisons)
        elif self._course.method.pairs:
            asked = {one: None for one in asked if one[::-1] not in self._answers}
        return [one for one in asked if one not in self._answers]

    async def _ask(self, prompts: Sequence[Comparison]) -> bool:
        """Whether the model answered all in time."""
        if not prompts:
            return True
        index_of = self._course.order.tolist()
        named = [tuple([index_of[place] for place in prompt]) for prompt in prompts]
        scores = await self._answering.answer(named)
        self._costs.add(named, scores)
        done = range(len(prompts)) if scores.scored is None else np.flatnonzero(scores.scored).tolist()
        values = scores.values.tolist()
        self._answers |= {prompts[place]: values[place] for place in done}
        return scores.scored is None or len(done) == len(prompts)

    async def _advance(self, schedule: Rounds, comparisons: Sequence[Comparison]) -> Sequence[Comparison] | None:
        """Learn the answers, and give the next round."""

        def step() -> Sequence[Comparison] | None:
            try:
                return schedule.send([self._answer(one) for one in comparisons])
            except StopIteration:
                return None

        if len(comparisons) <= _MANY:
            return step()
        share = Share(caller=self._answering.caller, cost=len(comparisons), left=len(comparisons))
        return await self._tokenizing.run(share, step)

    def _learn_known(self, comparisons: Sequence[Comparison]) -> None:
        """Learn what was answered of a round that the deadline ended."""
        for comparison in comparisons:
            if not set(self._prompts([comparison])):
                self._standing.learn(comparison, self._answer(comparison))

    def _answer(self, comparison: Comparison) -> Answer:
        known = self._answers
        if not self._course.method.pairs:
            return known[comparison]
        # Where one order was asked, the other one's answer is the opposite.
        reverse = comparison[::-1]
        answer = known[comparison] if comparison in known else 1 - known[reverse]
        other = known[reverse] if reverse in known else 1 - answer
        return of_both_orders(answer, other, decided=self._course.method.decided)

    def _scores(self, *, settled: int | None) -> Scores:
        course = self._course
        ranked = course.order[self._standing.order()]
        others = course.order[course.depth :]
        if course.method.shares and isinstance(self._standing, Points):
            values = self._shares(self._standing, others)
        else:
            values = values_of_order([*ranked.tolist(), *others.tolist()])
        return self._costs.scores(values, comparisons=len(self._answers), settled=settled)

    def _shares(self, standing: Points, others: IntArray) -> FloatArray:
        """Strictly falling in the standing's order, so that equal shares stay in the order of the first stage."""
        values = np.empty(len(self._course.order), dtype=np.float32)
        last = np.float32(np.inf)
        for place in standing.order():
            share = np.float32(max(_LEAST_SHARE, standing.share(place)))
            last = min(share, np.nextafter(last, np.float32(0)))
            values[self._course.order[place]] = last
        values[others] = last * np.arange(len(others), 0, -1) / (len(others) + 1)
        return values


class _Costs:
    """What comparisons cost, by document."""

    def __init__(self, documents: int) -> None:
        self._tokens = np.zeros(documents, dtype=np.int64)
        self._dropped = np.zeros(documents, dtype=np.int64)
        self._shown = np.zeros(documents, dtype=np.int64)
        self._computed = np.zeros(documents, dtype=np.int64)
        self._timings = Timings()
        self._silent = 0
        self._looked_up = False

    def add(self, comparisons: Sequence[Comparison], scores: Scores) -> None:
        """Count comparisons of documents' indices. A prompt's tokens are its documents' in equal parts, so that a
        request's sum is what the model read.
        """
        sizes = np.array([len(one) for one in comparisons], dtype=np.int64)
        flat = np.fromiter(chain.from_iterable(comparisons), dtype=np.int64, count=int(sizes.sum()))
        rows = np.repeat(np.arange(len(sizes)), sizes)
        places = np.arange(len(flat)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        share, rest = scores.tokens // sizes, scores.tokens % sizes
        np.add.at(self._tokens, flat, share[rows] + (places < rest[rows]))
        told = places < scores.dropped.shape[1]
        np.maximum.at(self._dropped, flat[told], scores.dropped[rows[told], places[told]])
        np.add.at(self._shown, flat, 1)
        if scores.cached is not None:
            self._looked_up = True
            np.add.at(self._computed, flat, ~scores.cached[rows])
        self._timings += scores.timings
        answered = np.ones(len(sizes), dtype=np.bool_) if scores.scored is None else scores.scored
        self._silent += int(np.count_nonzero(np.isnan(scores.values) & answered))

    def scores(self, values: FloatArray, *, comparisons: int, settled: int | None) -> Scores:
        # What was compared with nothing has reached no model, and so none of it is out of the cache.
        cached = (self._computed == 0) & (self._shown > 0) if self._looked_up else None
        return Scores(
            values=values,
            tokens=self._tokens,
            dropped=self._dropped,
            cached=cached,
            timings=self._timings,
            unordered=self._silent,
            comparisons=comparisons,
            settled=settled,
        )
