"""Finds the fastest way to serve a model on this machine: engine, workers, threads and batch budget.

Only the speed is tuned. An engine that does not reproduce the golden pairs is not measured. Candidates are measured
alternately in one run, because a machine's speed varies. To be chosen, a candidate must beat the default by more than
the measurements of either vary.
"""

import asyncio
import gc
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from itertools import cycle
from statistics import median
from time import perf_counter
from typing import Final

import numpy as np

from rerankd.concurrency.worker import Worker, available_cores
from rerankd.config.registry import ModelSpec
from rerankd.config.settings import Settings
from rerankd.engines import load_engine
from rerankd.engines.base import BatchLimits, EngineSpec, LogitsEngine, cut_by_length
from rerankd.errors import ConfigError
from rerankd.scorers import load_scorer
from rerankd.scorers.base import AnyPairScorer, ScorerSpec
from rerankd.serving.assembly import golden_pairs
from rerankd.serving.model import Canary
from rerankd.serving.model_files import model_content, model_folder
from rerankd.serving.profiles import Choice, Machine, Profile, leaves_layout_open, tuned
from rerankd.tasks.encoding import Encoding
from rerankd.tools.quietness import CpuTimes, Interference, disturbances, spread

# Engines that serve the same ONNX graph, and their runtimes.
_ALTERNATIVES: Final = {"onnx": "onnxruntime", "openvino": "openvino"}
_BUDGETS: Final = (0.5, 1.0, 2.0, 4.0)
_FINALISTS: Final = 3
_TURNS: Final = 5
_FIRST_ROUND_SHARE: Final = 0.5
# A smaller advantage is not worth a special configuration.
_LEAST_ADVANTAGE: Final = 1.03

# Lengths of passages in retrieval systems: half have 70 to 140 words, few have more than 300.
_PAIRS: Final = 128
_MEDIAN_WORDS: Final = 100
_SPREAD: Final = 0.5
_QUERY: Final = "which of these passages answers the question about the weather"
_WORDS: Final = (
    "the of and to in for is on that by this with it not or be are from at as all have new more was we can about if "
    "has search one other time which their out use any there only so when here who also now first been would how "
    "services some these its like than find date top people list name over state year day into two health world next "
    "work last most system number water energy river history market theory island protein engine language mountain"
)


@dataclass(frozen=True, slots=True)
class Layout:
    """How the cores are used. `threads` is None if the engine has no such option. `fused` False means without our own
    kernels, which are not the fastest on every CPU; None means the engine's default.
    """

    workers: int
    threads: int | None
    fused: bool | None = None


@dataclass(slots=True)
class Candidate:
    """One way to serve the model, and its measured pairs per second."""

    choice: Choice
    speeds: list[float] = field(default_factory=list)

    @property
    def speed(self) -> float:
        return median(self.speeds)


@dataclass(frozen=True, slots=True)
class Step:
    """A candidate was measured, or left out for a reason; for the progress bar."""

    fraction: float
    text: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The fastest candidate, the default, and the variation of their measurements (1.1 means 10 %)."""

    default: Candidate
    fastest: Candidate
    noise: float

    @property
    def gain(self) -> float:
        return self.fastest.speed / self.default.speed

    @property
    def doubtful(self) -> bool:
        """Whether the fastest looks better, but the difference may be noise."""
        return _LEAST_ADVANTAGE < self.gain <= self.noise

    @property
    def chosen(self) -> Candidate:
        return self.fastest if self.gain > max(_LEAST_ADVANTAGE, self.noise) else self.default


@dataclass(frozen=True, slots=True)
class Tuned:
    """All measurements, fastest first, and the profile to save. `disturbances` are the reasons to doubt them."""

    candidates: Sequence[Candidate]
    decision: Decision
    profile: Profile
    disturbances: Sequence[str]


@dataclass(frozen=True, slots=True)
class Workload:
    """The pairs to score, of realistic lengths."""

    encodings: Sequence[Encoding]

    @property
    def mean_tokens(self) -> float:
        return float(np.mean([len(encoding.ids) for encoding in self.encodings]))

    def batches(self, limits: BatchLimits) -> list[list[Encoding]]:
        """The pairs in batches, in random order, so that any part is representative."""
        batches = cut_by_length(self.encodings, limits)
        random.Random(0).shuffle(batches)  # noqa: S311 - no secret
        return batches


def layouts(engine: str, spec: ModelSpec, *, cores: int) -> list[Layout]:
    """Every way to divide the cores evenly; only the default if the registry configures one, or on a GPU.

    The default comes first: one thread per forward pass, one pass per core.
    """
    threads = spec.engine_options.get("threads", 1)
    if engine not in _ALTERNATIVES or spec.devices or spec.engine_options.get("device", "cpu") != "cpu":
        return [Layout(spec.workers or 1, None)]
    if not leaves_layout_open(spec):
        return [Layout(spec.workers or max(1, cores // threads), threads)]
    divided = [Layout(cores // threads, threads) for threads in range(1, cores + 1) if cores % threads == 0]
    if engine == "onnx" and "fused" not in spec.engine_options:
        divided.insert(1, Layout(cores, 1, fused=False))
    return divided


def engines(spec: ModelSpec) -> list[str]:
    """The engines to compare, the entry's own first; others only if it configures no engine and no device."""
    if "engine" in spec.model_fields_set or spec.devices or spec.engine not in _ALTERNATIVES:
        return [spec.engine]
    installed = [name for name, runtime in _ALTERNATIVES.items() if find_spec(runtime) is not None]
    return [spec.engine, *(name for name in installed if name != spec.engine)]


def workload(scorer: AnyPairScorer) -> Workload:
    """Passages of random words: the meaning does not change the time that a model takes."""
    generator = random.Random(0)  # noqa: S311 - no secret
    documents = [
        " ".join(
            generator.choices(_WORDS.split(), k=max(5, round(generator.lognormvariate(np.log(_MEDIAN_WORDS), _SPREAD))))
        )
        for _ in range(_PAIRS)
    ]
    return Workload(scorer.encode(_QUERY, documents, max_document_tokens=None).encodings)


async def tune(
    spec: ModelSpec, settings: Settings, *, budget_s: float, on_step: Callable[[Step], None] = lambda _step: None
) -> Tuned:
    """Measure for about `budget_s` seconds, not counting loading.

    Raises:
        ConfigError: the model cannot be loaded by any engine; the message says why.
    """
    return await _Tuning(spec, settings, budget_s=budget_s, on_step=on_step).run()


class _Tuning:
    """Measure all candidates briefly, one engine at a time; then the best and the default alternately."""

    def __init__(
        self, spec: ModelSpec, settings: Settings, *, budget_s: float, on_step: Callable[[Step], None]
    ) -> None:
        self._spec = spec
        self._budget_s = budget_s
        self._on_step = on_step
        self._folder = model_folder(spec, settings)
        self._scorer = load_scorer(
            spec.scorer, ScorerSpec(folder=self._folder, max_length=spec.max_length, options=spec.options)
        )
        self._canary = golden_pairs(self._folder)
        self._workload = workload(self._scorer)
        self._measured_s = 0.0

    async def run(self) -> Tuned:
        before = CpuTimes.now()
        candidates = await self._first_round()
        if not candidates:
            raise ConfigError(f"no engine can serve {self._spec.name!r} here; the reasons are above")
        default = candidates[0]
        decision = choose(default, await self._final(default, candidates))
        ranked = sorted(candidates, key=lambda candidate: -candidate.speed)
        disturbed = disturbances(Interference.between(before, CpuTimes.now()), decision.noise)
        return Tuned(ranked, decision, self._profile(decision.chosen, default), disturbed)

    async def _first_round(self) -> list[Candidate]:
        planned = [
            (engine, layout)
            for engine in engines(self._spec)
            for layout in layouts(engine, self._spec, cores=available_cores())
        ]
        share_s = self._budget_s * _FIRST_ROUND_SHARE / (len(planned) * self._budgets_per_layout)
        candidates: list[Candidate] = []
        measured: set[tuple[str, int]] = set()
        for name, layout in planned:
            try:
                engine = self._load(_choice(name, layout, tokens=self._spec.batch_tokens or 16))
                _check_scores(engine, self._scorer, self._canary)
            except ConfigError as error:
                self._say(f"{name} is left out: {error}")
                continue
            if (engine.name, layout.workers) in measured:
                continue  # options that the layout leaves out were not set
            measured.add((engine.name, layout.workers))
            for tokens in self._budgets(engine):
                candidate = Candidate(_choice(name, layout, tokens=tokens))
                await self._measure(candidate, engine, seconds=share_s)
                candidates.append(candidate)
            del engine
            gc.collect()
        return candidates

    async def _final(self, default: Candidate, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        finalists = sorted(candidates, key=lambda candidate: -candidate.speed)[:_FINALISTS]
        if default not in finalists:
            finalists.append(default)
        share_s = self._budget_s * (1 - _FIRST_ROUND_SHARE) / (len(finalists) * _TURNS)
        loaded = [(finalist, self._load(finalist.choice)) for finalist in finalists]
        for finalist in finalists:
            finalist.speeds.clear()
        for _ in range(_TURNS):
            for finalist, engine in loaded:
                await self._measure(finalist, engine, seconds=share_s)
        return finalists

    @property
    def _budgets_per_layout(self) -> int:
        return 1 if self._spec.batch_tokens else len(_BUDGETS)

    def _budgets(self, engine: LogitsEngine) -> list[int]:
        """Budgets to try, the engine's default first."""
        if self._spec.batch_tokens:
            return [self._spec.batch_tokens]
        preferred = engine.preferred_batch.tokens
        return [preferred, *(round(preferred * factor) for factor in _BUDGETS if factor != 1.0)]

    def _load(self, choice: Choice) -> LogitsEngine:
        spec = tuned(self._spec, choice)
        return load_engine(
            spec.engine,
            EngineSpec(
                folder=self._folder,
                pad_id=self._scorer.pad_id,
                workers=spec.workers,
                trust_remote_code=spec.trust_remote_code,
                devices=spec.devices,
                options=spec.engine_options,
            ),
        )

    async def _measure(self, candidate: Candidate, engine: LogitsEngine, *, seconds: float) -> None:
        preferred = engine.preferred_batch
        limits = replace(
            preferred, tokens=candidate.choice.batch_tokens, pairs=self._spec.batch_pairs or preferred.pairs
        )
        batches = self._workload.batches(limits)
        tokens_per_s = await measure(engine, batches, seconds=seconds)
        candidate.speeds.append(tokens_per_s / self._workload.mean_tokens)
        self._measured_s += seconds
        self._say(f"{describe(candidate.choice)}: {candidate.speeds[-1]:.0f} pairs/s")

    def _say(self, text: str) -> None:
        self._on_step(Step(min(1.0, self._measured_s / self._budget_s), text))

    def _profile(self, best: Candidate, default: Candidate) -> Profile:
        return Profile(
            model=self._spec.name,
            content=model_content(self._spec, self._folder),
            written=datetime.now(UTC).isoformat(timespec="seconds"),
            pairs_per_s=round(best.speed, 1),
            default_pairs_per_s=round(default.speed, 1),
            choice=best.choice,
            machine=Machine.this(),
        )


async def measure(engine: LogitsEngine, batches: Sequence[Sequence[Encoding]], *, seconds: float) -> float:
    """Tokens per second without padding, with all workers of the engine busy, measured for about `seconds`.

    Up to a third of the time is for warm-up: every shape once, because engines compile kernels at first use.
    """
    with Worker(name="tune", threads=engine.workers) as worker:
        begun = perf_counter()
        await _score(engine, worker, iter(batches), until=begun + seconds / 3)
        started = perf_counter()
        tokens = await _score(engine, worker, cycle(batches), until=begun + seconds)
        return tokens / (perf_counter() - started)


async def _score(engine: LogitsEngine, worker: Worker, batches: Iterator[Sequence[Encoding]], *, until: float) -> int:
    """Keep all workers busy until the time is over or the batches are used up. Each scores at least one."""

    async def one_worker() -> int:
        tokens = 0
        for batch in batches:
            await worker.run(engine.run, batch)
            tokens += sum(len(encoding.ids) for encoding in batch)
            if perf_counter() > until:
                break
        return tokens

    return sum(await asyncio.gather(*(one_worker() for _ in range(engine.workers))))


def choose(default: Candidate, finalists: Sequence[Candidate]) -> Decision:
    """Compare the fastest with the default."""
    fastest = max(finalists, key=lambda candidate: candidate.speed)
    return Decision(default, fastest, noise=max(spread(default.speeds), spread(fastest.speeds)))


def describe(choice: Choice) -> str:
    threads = choice.engine_options.get("threads")
    each = f" x {_counted(int(threads), 'thread')}" if threads else ""
    without = "" if choice.engine_options.get("fused", True) else " without fused layers"
    return f"{choice.engine}{without}, {_counted(choice.workers, 'worker')}{each}, {choice.batch_tokens} tokens"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _choice(engine: str, layout: Layout, *, tokens: int) -> Choice:
    options: dict[str, int | bool] = {} if layout.threads is None else {"threads": layout.threads}
    if layout.fused is not None:
        options["fused"] = layout.fused
    return Choice(engine=engine, workers=layout.workers, batch_tokens=tokens, engine_options=options)


def _check_scores(engine: LogitsEngine, scorer: AnyPairScorer, canary: Canary) -> None:
    """Refuse an engine whose scores of the golden pairs differ from the float32 reference.

    Raises:
        ConfigError: a score differs by more than the tolerance, or is NaN.
    """
    for pair in canary.pairs:
        encoded = scorer.encode(pair.query, [pair.document], max_document_tokens=None)
        value = float(scorer.interpret(engine.run(encoded.encodings))[0])
        # written so that NaN is refused too
        if not abs(value - pair.logit) <= (np.inf if canary.tolerance is None else canary.tolerance):
            raise ConfigError(f"it scores a golden pair {value:.4f}, the reference is {pair.logit:.4f}")
