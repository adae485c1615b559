"""What single-token listwise reranking saves, on one machine in one run, with random weights of known shapes.

    python -m loadtest.gpu.first [--device cuda] [--json FILE] [--markdown FILE]      # under ten minutes
    python -m loadtest.gpu.first --shapes tiny --device cpu                          # the same ratios on a CPU

For each shape, with 1 and with several queries at once:

1. reading one window of 20 passages with a single prefill, against generating the whole list with the same weights,
   prompts and batch;
2. ranking 100 passages by the sliding schedule, against the parallel ones: windows of all queries advance together,
   and the windows of one round share forward passes;
3. judging 100 short passages one by one (yes/no) with the prompt's beginning computed once, against computing it for
   every passage.

Sides alternate and medians are compared. Needs torch, transformers and pydantic; nothing of the web service.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Final, TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedModel, Qwen3Config
from transformers.utils import logging as transformers_logging

from rerankd.engines.base import Engine
from rerankd.engines.torch.causal import TorchCausalEngine
from rerankd.engines.torch.generate import TorchGenerateEngine
from rerankd.engines.torch.prefixes import PrefixStore
from rerankd.pipeline.windows import SCHEDULES, Schedule
from rerankd.scorers.base import ScorerSpec
from rerankd.scorers.first import First
from rerankd.scorers.yes_no import YesNo
from rerankd.tasks.encoding import Encoding
from rerankd.tasks.generate import Prompt
from tests.tiny_causal import QWEN_MARKUP, byte_level_tokenizer
from tests.tiny_models import CORPUS

T = TypeVar("T", Encoding, Prompt)
R = TypeVar("R")

_WINDOW: Final = 20
_CANDIDATES: Final = 100
_STRIDE: Final = 10
_MAX_LENGTH: Final = 8192
_TEMPLATES: Final = Path(__file__).resolve().parents[2] / "models" / "templates"
_ROUNDING: Final = {"cpu": 1e-3, "cuda": 0.5}


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's dimensions, the words of a passage, and how many tokens a forward pass may hold."""

    kind: type
    config: Mapping[str, Any]
    words: int
    pass_tokens: int


SHAPES: Final[Mapping[str, Shape]] = {
    "tiny": Shape(
        LlamaConfig,
        {
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 512,
            "vocab_size": 4096,
        },
        words=12,
        pass_tokens=8192,
    ),
    "qwen3-0.6b": Shape(
        Qwen3Config,
        {
            "hidden_size": 1024,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 3072,
            "vocab_size": 151_936,
            "tie_word_embeddings": True,
        },
        words=40,
        pass_tokens=65_536,
    ),
    "mistral-7b": Shape(
        MistralConfig,
        {
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 14_336,
            "vocab_size": 32_768,
            "sliding_window": None,
        },
        words=40,
        pass_tokens=65_536,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two ways to do the same work, medians of wall seconds; `ratio` is slow / fast."""

    shape: str
    what: str
    queries: int
    slow: str
    fast: str
    slow_s: float
    fast_s: float
    ratio: float
    note: str


class Bench:
    """One model with its tokenizer, in every role."""

    def __init__(self, name: str, shape: Shape, *, device: torch.device, folder: Path) -> None:
        self.name = name
        self.shape = shape
        self.device = device
        self._random = Random(0)
        tokenizer = _write_tokenizer(folder)
        options = {"template": "first-qwen3", "window": _WINDOW, "stride": _STRIDE}
        self.first = First.load(ScorerSpec(folder=folder, templates=[_TEMPLATES], options=options))
        judge = {"template": "qwen3-reranker"}
        self.judge = YesNo.load(ScorerSpec(folder=folder, templates=[_TEMPLATES], options=judge))
        self.list_tokens = len(tokenizer.encode(" > ".join(f"[{chr(65 + place)}]" for place in range(_WINDOW))).ids)
        self.model = _random_model(shape, device)

    def reader(self, scorer: First | YesNo, *, share: bool) -> TorchCausalEngine:
        return TorchCausalEngine(
            self.model,
            output_tokens=scorer.task.tokens,
            name="bench",
            pad_id=0,
            workers=1,
            prefixes=PrefixStore(max_tokens=65_536) if share else None,
        )

    def writer(self) -> TorchGenerateEngine:
        return TorchGenerateEngine(self.model, str, max_new_tokens=self.list_tokens, name="bench", pad_id=0, workers=1)

    def query(self) -> str:
        return self._text(8)

    def passages(self, count: int, *, words: int | None = None) -> list[str]:
        return [self._text(words or self.shape.words) for _ in range(count)]

    def _text(self, words: int) -> str:
        known = " ".join(CORPUS[:6]).split()
        return " ".join(self._random.choice(known) for _ in range(words))


def single_token(bench: Bench, *, queries: int, repeats: int) -> Comparison:
    reader, writer = bench.reader(bench.first, share=False), bench.writer()

    def prompts() -> list[Encoding]:
        return [
            bench.first.encode_window(bench.query(), bench.passages(_WINDOW), max_document_tokens=None).encoding
            for _ in range(queries)
        ]

    slow_s, fast_s = _alternate(
        prompts,
        lambda encodings: in_passes(
            writer, [Prompt(one.ids, bench.list_tokens) for one in encodings], bench.shape.pass_tokens
        ),
        lambda encodings: in_passes(reader, encodings, bench.shape.pass_tokens),
        repeats=repeats,
    )
    note = f"{len(prompts()[0].ids)} tokens read, {bench.list_tokens} written or 1 read off"
    return _comparison(bench, "a window of 20", queries, ("generated list", slow_s), ("single token", fast_s), note)


def schedules(bench: Bench, fast: str, *, queries: int, repeats: int) -> Comparison:
    passes: dict[str, int] = {}

    def rank(name: str) -> Callable[[list[tuple[str, list[str]]]], None]:
        def run(requests: list[tuple[str, list[str]]]) -> None:
            engine = bench.reader(bench.first, share=True)
            passes[name] = rank_all(bench.first, engine, requests, name, bench.shape.pass_tokens)

        return run

    slow_s, fast_s = _alternate(
        lambda: [(bench.query(), bench.passages(_CANDIDATES)) for _ in range(queries)],
        rank("sliding"),
        rank(fast),
        repeats=repeats,
    )
    note = f"serial rounds {passes['sliding']} and {passes[fast]}"
    return _comparison(bench, "100 passages", queries, ("sliding", slow_s), (fast, fast_s), note)


def shared_prefixes(bench: Bench, *, queries: int, repeats: int) -> Comparison:
    alone, shared = bench.reader(bench.judge, share=False), bench.reader(bench.judge, share=True)

    def pairs() -> list[Encoding]:
        return [
            encoding
            for _ in range(queries)
            for encoding in bench.judge.encode(
                bench.query(), bench.passages(_CANDIDATES, words=10), max_document_tokens=None
            ).encodings
        ]

    probe = pairs()[:30]
    difference = float(np.abs(alone.run(probe) - shared.run(probe)).max())
    assert difference < _ROUNDING[bench.device.type], difference
    slow_s, fast_s = _alternate(
        pairs,
        lambda encodings: in_passes(alone, encodings, bench.shape.pass_tokens),
        lambda encodings: in_passes(shared, encodings, bench.shape.pass_tokens),
        repeats=repeats,
    )
    encoding = probe[0]
    note = f"{encoding.boundary} of {len(encoding.ids)} tokens shared; scores differ by {difference:.1e} at most"
    return _comparison(bench, "100 short passages, yes/no", queries, ("computed", slow_s), ("shared", fast_s), note)


def rank_all(
    scorer: First,
    engine: TorchCausalEngine,
    requests: Sequence[tuple[str, Sequence[str]]],
    name: str,
    pass_tokens: int,
) -> int:
    """Rank requests in step with one another; returns the number of serial rounds."""
    running = [_Request(scorer, query, texts, SCHEDULES[name]) for query, texts in requests]
    rounds = 0
    while any(request.windows for request in running):
        rounds += 1
        encodings = [encoding for request in running for encoding in request.encodings()]
        outputs = in_passes(engine, encodings, pass_tokens)
        for request in running:
            request.receive(outputs)
    assert all(sorted(request.order) == list(range(_CANDIDATES)) for request in running)
    return rounds


class _Request:
    """One query's way through its schedule."""

    def __init__(self, scorer: First, query: str, texts: Sequence[str], schedule: Callable[..., Schedule]) -> None:
        self._scorer = scorer
        self._query = query
        self._texts = texts
        self.order: list[int] = []
        candidates = list(range(len(texts)))
        self._schedule = schedule(candidates, window=_WINDOW, stride=_STRIDE, settle=_WINDOW - _STRIDE)
        self.windows: list[list[int]] = next(self._schedule)

    def encodings(self) -> list[Encoding]:
        return [
            self._scorer.encode_window(
                self._query, [self._texts[place] for place in window], max_document_tokens=None
            ).encoding
            for window in self.windows
        ]

    def receive(self, outputs: Iterator[np.ndarray]) -> None:
        if not self.windows:
            return
        orders = [
            [window[place] for place in np.argsort(-next(outputs)[: len(window)], kind="stable")]
            for window in self.windows
        ]
        try:
            self.windows = self._schedule.send(orders)
        except StopIteration as end:
            self.order, self.windows = end.value, []


def in_passes(engine: Engine[T, Iterable[R]], payloads: Sequence[T], pass_tokens: int) -> Iterator[R]:
    """The results of all payloads, in order: sorted by length into passes of at most this many padded tokens."""
    lengths = [len(payload.ids) for payload in payloads]
    order = sorted(range(len(payloads)), key=lambda place: -lengths[place])
    results: dict[int, R] = {}
    while order:
        size = max(1, pass_tokens // lengths[order[0]])
        batch, order = order[:size], order[size:]
        results.update(zip(batch, engine.run([payloads[place] for place in batch]), strict=True))
    return iter([results[place] for place in range(len(payloads))])


def _alternate(
    prepare: Callable[[], Any], slow: Callable[[Any], object], fast: Callable[[Any], object], *, repeats: int
) -> tuple[float, float]:
    """Median seconds of both sides over the same work, which is new each time; the first round only warms up."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 1):
        work = prepare()
        for side, call in enumerate((slow, fast)):
            started = time.perf_counter()
            call(work)
            seconds[side].append(time.perf_counter() - started)
    return median(seconds[0][1:]), median(seconds[1][1:])


def _comparison(
    bench: Bench, what: str, queries: int, slow: tuple[str, float], fast: tuple[str, float], note: str
) -> Comparison:
    return Comparison(
        shape=bench.name,
        what=what,
        queries=queries,
        slow=slow[0],
        fast=fast[0],
        slow_s=round(slow[1], 4),
        fast_s=round(fast[1], 4),
        ratio=round(slow[1] / fast[1], 2),
        note=note,
    )


def _write_tokenizer(folder: Path) -> Tokenizer:
    tokenizer = byte_level_tokenizer(QWEN_MARKUP, plain=("<think>", "</think>"))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": _MAX_LENGTH, "pad_token_id": 0}))
    return tokenizer


def _random_model(shape: Shape, device: torch.device) -> PreTrainedModel:
    transformers_logging.set_verbosity_error()
    config = shape.kind(max_position_embeddings=_MAX_LENGTH, pad_token_id=0, **shape.config)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    # Nothing ends a list early: all lists are written whole.
    model.generation_config.eos_token_id = None
    return model


def run(names: Sequence[str], *, device: torch.device, counts: Sequence[int], repeats: int) -> Iterator[Comparison]:
    for name in names:
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            bench = Bench(name, SHAPES[name], device=device, folder=Path(folder))
            for queries in counts:
                yield single_token(bench, queries=queries, repeats=repeats)
                yield schedules(bench, "tournament", queries=queries, repeats=repeats)
                yield schedules(bench, "top-down", queries=queries, repeats=repeats)
                yield shared_prefixes(bench, queries=queries, repeats=repeats)
            del bench
        if device.type == "cuda":
            torch.cuda.empty_cache()


def markdown(comparisons: Sequence[Comparison], machine: str) -> str:
    lines = [
        f"Measured on {machine}, {datetime.now(UTC):%Y-%m-%d}; random weights.",
        "",
        "| shape | work | queries | slow | fast | slow s | fast s | ratio | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.shape} | {one.what} | {one.queries} | {one.slow} | {one.fast} | {one.slow_s:.3f} | {one.fast_s:.3f} "
        f"| {one.ratio:.2f} | {one.note} |"
        for one in comparisons
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["qwen3-0.6b", "mistral-7b"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 16], help="queries at once")
    parser.add_argument("--repeats", type=int, default=2, help="after one that only warms up")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "a CPU"
    comparisons = []
    for comparison in run(arguments.shapes, device=device, counts=arguments.queries, repeats=arguments.repeats):
        comparisons.append(comparison)
        print(f"{comparison.shape:12} {comparison.what:28} x{comparison.queries:<3} {comparison.slow:14} / "
              f"{comparison.fast:12} = {comparison.ratio:5.2f}   {comparison.note}", flush=True)  # fmt: skip
    if arguments.json:
        report = {"machine": machine, "torch": torch.__version__, "comparisons": [asdict(one) for one in comparisons]}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if arguments.markdown:
        arguments.markdown.write_text(markdown(comparisons, machine), encoding="utf-8")


if __name__ == "__main__":
    main()
