"""Compares parallel schedules of windows with the sliding one: 100 documents in windows of 20.

    python -m loadtest.schedules [--rounds 3] [--requests 4] [--output FILE]

The service in process, without a cache, with two tiny random language models on the CPU:

- "thin": 24 narrow layers and passages of a word: what a forward pass costs is mostly the pass itself, as it is for a
  few windows on an accelerator. Schedules gain by needing fewer passes one after another.
- "wide": 2 layers and passages of twelve words: a pass costs what its tokens cost. Schedules gain by reading fewer
  tokens, and no schedule that reads every document once can gain more than 1.8 here: sliding reads 180, and there are
  100.

Beside each ratio stand both bounds as they were measured: tokens read and forward passes made a request, sliding's
divided by the other's. Needs torch and transformers.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random
from statistics import median
from typing import Final

from loadtest.claims import Claim, conclude, run
from rerankd.config.settings import Settings
from rerankd.domain import RerankRequest, ScoreOptions, WindowWishes
from rerankd.serving.assembly import running_service
from rerankd.serving.service import RerankService
from tests.fakes import RecordingObserver
from tests.registry_files import write_registry
from tests.tiny_causal import build_llama
from tests.tiny_models import CORPUS

SCHEDULES: Final = ("sliding", "tournament", "top-down")
CLIENTS: Final = (1, 8)
DOCUMENTS: Final = 100
# At 8 clients: over what sliding does, where passes cost; and of what the tokens allow, where tokens cost.
LEAST_GAIN: Final = 2.0
LEAST_SHARE: Final = 0.8

_SHORT_WORDS: Final = ("the", "of", "is", "in", "to", "and", "on", "by", "it", "at", "or")
_LONG_WORDS: Final = tuple(" ".join(CORPUS[:6]).split())
_SHORT_TEMPLATE: Final = """
method = "first"
chat = "{user}"
user = "{query}\\n{passages}Best: "
identifiers = "alphabetical"
"""


@dataclass(frozen=True, slots=True)
class Regime:
    """A model's shape and its batch budget, its prompt, and what passages are made of."""

    template: str
    batch_tokens: int
    passage_words: int
    vocabulary: tuple[str, ...]
    sizes: Mapping[str, int]


REGIMES: Final[Mapping[str, Regime]] = {
    "thin": Regime(
        "short",
        16_384,
        1,
        _SHORT_WORDS,
        {
            "num_hidden_layers": 24,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "head_dim": 16,
        },
    ),
    "wide": Regime("first-llama-3", 4096, 12, _LONG_WORDS, {}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What one block of requests took, per request; `latency_s` is the median."""

    latency_s: float
    requests_per_s: float
    cpu_s: float
    tokens: float
    passes: float


class Bench:
    def __init__(self, service: RerankService, observer: RecordingObserver) -> None:
        self._service = service
        self._observer = observer
        self._random = Random(0)

    async def block(self, name: str, schedule: str, *, clients: int, requests: int) -> Block:
        """Each client sends its next request when the last is answered."""
        self._observer.facts.clear()
        count = clients * requests
        started, cpu_started = time.perf_counter(), time.process_time()
        answered = await asyncio.gather(*(self._client(name, schedule, requests) for _ in range(clients)))
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
        return Block(
            latency_s=median(latency_s for client in answered for latency_s, _ in client),
            requests_per_s=count / seconds,
            cpu_s=cpu_s / count,
            tokens=sum(tokens for client in answered for _, tokens in client) / count,
            passes=len(self._observer.named("batch_scored")) / count,
        )

    async def _client(self, name: str, schedule: str, requests: int) -> list[tuple[float, int]]:
        """Seconds and tokens of each request."""
        answered = []
        for _ in range(requests):
            request = self._request(name, schedule)
            sent = time.perf_counter()
            result = await self._service.rerank(request)
            answered.append((time.perf_counter() - sent, result.tokens))
        return answered

    def _request(self, name: str, schedule: str) -> RerankRequest:
        regime = REGIMES[name]
        return RerankRequest(
            query=self._text(4, regime),
            documents=[self._text(regime.passage_words, regime) for _ in range(DOCUMENTS)],
            model=name,
            options=ScoreOptions(windows=WindowWishes(schedule=schedule)),
        )

    def _text(self, words: int, regime: Regime) -> str:
        return " ".join(self._random.choices(regime.vocabulary, k=words))


@asynccontextmanager
async def running_bench(folder: Path) -> AsyncIterator[Bench]:
    """Both models, made in `folder` and served without a cache."""
    observer = RecordingObserver()
    async with running_service(Settings(registry=_registry(folder), cache_url="none://"), observer) as service:
        for model in service.models:
            await model.settled()
        yield Bench(service, observer)


async def measure(
    folder: Path, names: Sequence[str], *, rounds: int, requests: int
) -> tuple[list[Claim], dict[str, str]]:
    """The claims, and a line about every schedule in every regime with every number of clients."""
    claims: list[Claim] = []
    lines: dict[str, str] = {}
    async with running_bench(folder) as bench:
        for name in names:
            for clients in CLIENTS:
                blocks = await _in_turns(bench, name, clients=clients, rounds=rounds, requests=requests)
                medians = {schedule: _median(found) for schedule, found in blocks.items()}
                lines |= {
                    f"{name}, {clients} at once, {schedule}": _line(block, medians["sliding"])
                    for schedule, block in medians.items()
                }
                if clients > 1:
                    claims.append(_claim(name, clients, medians["tournament"], medians["sliding"]))
    return claims, lines


async def _in_turns(
    bench: Bench, name: str, *, clients: int, rounds: int, requests: int
) -> Mapping[str, Sequence[Block]]:
    """All schedules, one block each a round; a block before the first only warms up."""
    blocks: dict[str, list[Block]] = {schedule: [] for schedule in SCHEDULES}
    await bench.block(name, SCHEDULES[0], clients=clients, requests=1)
    for number in range(rounds):
        for schedule in SCHEDULES if number % 2 == 0 else SCHEDULES[::-1]:
            blocks[schedule].append(await bench.block(name, schedule, clients=clients, requests=requests))
    return blocks


def _median(blocks: Sequence[Block]) -> Block:
    return Block(**{one.name: median(getattr(block, one.name) for block in blocks) for one in fields(Block)})


def _line(block: Block, sliding: Block) -> str:
    return (
        f"p50 {1000 * block.latency_s:.0f} ms, {block.requests_per_s:.2f} requests/s, {block.tokens:.0f} tokens and "
        f"{block.passes:.2f} passes a request; gains over sliding: p50 {sliding.latency_s / block.latency_s:.2f}, "
        f"requests/s {block.requests_per_s / sliding.requests_per_s:.2f}, CPU time "
        f"{sliding.cpu_s / block.cpu_s:.2f}; bounds: tokens {sliding.tokens / block.tokens:.2f}, "
        f"passes {sliding.passes / block.passes:.2f}"
    )


def _claim(name: str, clients: int, block: Block, sliding: Block) -> Claim:
    what, gain = f"{name}, {clients} at once: tournament / sliding, requests/s", block.requests_per_s
    limit = LEAST_GAIN if name == "thin" else LEAST_SHARE * sliding.tokens / block.tokens
    return Claim(what, gain / sliding.requests_per_s, ">=", round(limit, 2))


def _registry(folder: Path) -> Path:
    (folder / "templates").mkdir()
    (folder / "templates" / "short.toml").write_text(_SHORT_TEMPLATE, encoding="utf-8")
    return write_registry(
        folder,
        [
            {
                "name": name,
                "path": build_llama(folder / name, **regime.sizes),
                "scorer": "first",
                "engine": "torch-causal",
                "engine_options": {"device": "cpu"},
                "batch_tokens": regime.batch_tokens,
                "options": {"template": regime.template, "window": 20, "depth": DOCUMENTS},
            }
            for name, regime in REGIMES.items()
        ],
    )


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--regimes", nargs="+", choices=list(REGIMES), default=list(REGIMES))
    options.add_argument("--rounds", type=int, default=3, help="blocks of each schedule; default: 3")
    options.add_argument("--requests", type=int, default=4, help="of each client in a block; default: 4")
    options.add_argument("--output", type=Path, help="a JSON file to write")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measuring = measure(Path(folder), arguments.regimes, rounds=arguments.rounds, requests=arguments.requests)
        claims, lines = run(measuring)
    return conclude(claims, arguments, lines)


if __name__ == "__main__":
    sys.exit(main())
