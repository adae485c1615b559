"""What is measured, and what is chosen of it."""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerankd.config.registry import ModelSpec
from rerankd.domain import FloatArray
from rerankd.engines.base import BatchLimits
from rerankd.scorers import load_scorer
from rerankd.scorers.base import ScorerSpec
from rerankd.serving.profiles import Choice
from rerankd.tasks.encoding import Encoding
from rerankd.tools.tuning import Candidate, Layout, Workload, choose, engines, layouts, measure, workload


def spec(**keys: Any) -> ModelSpec:
    return ModelSpec(name="tiny", path="tiny", **keys)


def candidate(*speeds: float) -> Candidate:
    return Candidate(Choice(engine="onnx", workers=1, batch_tokens=512), list(speeds))


@pytest.mark.parametrize(
    ("engine", "keys", "cores", "expected"),
    [
        ("onnx", {}, 1, [(1, 1), (1, 1, False)]),
        ("onnx", {}, 2, [(2, 1), (2, 1, False), (1, 2)]),
        ("onnx", {"engine_options": {"fused": False}}, 2, [(2, 1), (1, 2)]),
        ("openvino", {}, 6, [(6, 1), (3, 2), (2, 3), (1, 6)]),
        ("onnx", {"workers": 3}, 8, [(3, 1)]),
        ("onnx", {"engine_options": {"threads": 4}}, 8, [(2, 4)]),
        ("onnx", {"engine_options": {"threads": 4}}, 2, [(1, 4)]),
        ("onnx", {"engine_options": {"device": "cuda"}}, 8, [(1, None)]),
        ("onnx", {"devices": ["cuda:0", "cuda:1"]}, 8, [(1, None)]),
        ("torch-encoder", {}, 8, [(1, None)]),
        ("torch-encoder", {"workers": 2}, 8, [(2, None)]),
    ],
)
def test_layouts_use_all_cores_and_the_default_comes_first(
    engine: str, keys: dict[str, Any], cores: int, expected: list[tuple[Any, ...]]
) -> None:
    assert layouts(engine, spec(**keys), cores=cores) == [Layout(*layout) for layout in expected]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"engine": "onnx"}, "onnx"),
        ({"engine": "torch-encoder"}, "torch-encoder"),
        ({"devices": ["cuda:0", "cuda:1"]}, "onnx"),
    ],
)
def test_an_engine_that_the_registry_settles_is_the_only_one(keys: dict[str, Any], expected: str) -> None:
    assert engines(spec(**keys)) == [expected]


def test_an_open_engine_is_compared_with_those_that_are_installed() -> None:
    pytest.importorskip("openvino")
    assert engines(spec()) == ["onnx", "openvino"]


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [([100, 150], 150), ([100, 102], 100), ([100, 90], 100), ([100], 100), ([100, 120, 140], 140)],
)
def test_the_default_stays_unless_another_is_clearly_faster(speeds: list[float], expected: float) -> None:
    finalists = [candidate(speed) for speed in speeds]
    assert choose(finalists[0], finalists).chosen.speed == expected


def test_one_lucky_turn_decides_nothing() -> None:
    default, lucky = candidate(100, 101, 99), candidate(100, 900, 98)
    assert choose(default, [default, lucky]).chosen is default


def test_a_gain_below_the_noise_is_not_kept() -> None:
    """1.10 times as fast, on a machine where the same thing measured again is up to 1.4 times as fast."""
    default, faster = candidate(100, 85, 119, 90, 110), candidate(110, 95, 130, 92, 121)
    decision = choose(default, [default, faster])
    assert decision.gain == pytest.approx(1.1)
    assert decision.noise > decision.gain
    assert decision.chosen is default
    assert decision.doubtful


def test_the_same_gain_is_kept_where_turns_agree() -> None:
    default, faster = candidate(100, 101, 99, 100, 60), candidate(110, 111, 109, 110, 109)
    decision = choose(default, [default, faster])
    assert decision.chosen is faster
    assert not decision.doubtful


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(("max_tokens", "max_pairs"), [(1, 1), (64, 4), (64, 64), (10_000, 3), (10_000, 1000)])
def test_batches_hold_every_pair_once_within_the_budget(max_tokens: int, max_pairs: int, padded: bool) -> None:
    lengths = np.random.default_rng(0).integers(1, 40, 50)
    pairs = [Encoding(np.arange(length), 0) for length in lengths]
    batches = Workload(pairs).batches(BatchLimits(tokens=max_tokens, pairs=max_pairs, padded=padded))
    assert sorted(len(pair.ids) for batch in batches for pair in batch) == sorted(lengths)
    for batch in batches:
        own = [len(pair.ids) for pair in batch]
        area = len(own) * max(own) if padded else sum(own)
        assert len(batch) == 1 or (area <= max_tokens and len(batch) <= max_pairs)


def test_pairs_are_as_long_as_passages_are(tiny_model: Path) -> None:
    pairs = workload(load_scorer("cross-encoder", ScorerSpec(folder=tiny_model)))
    lengths = [len(encoding.ids) for encoding in pairs.encodings]
    assert len(set(lengths)) > 10
    assert pairs.mean_tokens == pytest.approx(np.mean(lengths))


class CountingEngine:
    """Takes 2 ms a batch, and knows how many of its workers were busy at once."""

    name = "counting"
    preferred_batch = BatchLimits(tokens=64, pairs=8)

    def __init__(self, *, workers: int) -> None:
        self.workers = workers
        self.busy = self.most_busy = self.calls = 0
        self._lock = threading.Lock()

    def run(self, encodings: Sequence[Encoding]) -> FloatArray:
        with self._lock:
            self.calls += 1
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        threading.Event().wait(0.002)
        with self._lock:
            self.busy -= 1
        return np.zeros((len(encodings), 1), dtype=np.float32)


@pytest.mark.parametrize("workers", [1, 3])
async def test_all_workers_are_kept_busy_and_tokens_are_counted(workers: int) -> None:
    engine = CountingEngine(workers=workers)
    batches = [[Encoding(np.arange(10), 0)]] * 20
    tokens_per_s = await asyncio.wait_for(measure(engine, batches, seconds=0.3), timeout=5)
    assert engine.most_busy == workers
    assert 0 < tokens_per_s <= workers * 10 / 0.002
    assert engine.calls > workers
