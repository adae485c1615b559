"""Recorded passes: which are recorded, and that replaying them gives what computing them gives.

What records here computes again at every replay, on the CPU: only `CudaRecorder` needs a GPU.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerankd.engines import load_engine
from rerankd.engines.base import EngineSpec
from rerankd.errors import ConfigError, OutOfMemory
from rerankd.tasks.encoding import Encoding

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from rerankd.engines.torch import graphs as cuda_graphs  # noqa: E402
from rerankd.engines.torch.encoder import TorchEncoderEngine  # noqa: E402
from rerankd.engines.torch.graphs import Graphs, Record, Replay  # noqa: E402

pytestmark = pytest.mark.slow

_ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Processor:
    """Records by remembering what to compute."""

    def __init__(self) -> None:
        self.recorded = 0

    def __call__(self, compute: Callable[[], Any]) -> tuple[Any, Replay]:
        self.recorded += 1
        logits = compute()
        return logits, lambda: logits.copy_(compute())


class Refusing:
    """A model that waits for the device, say."""

    def __init__(self, error: Exception) -> None:
        self.asked = 0
        self._error = error

    def __call__(self, _compute: Callable[[], Any]) -> tuple[Any, Replay]:
        self.asked += 1
        raise self._error


def load(folder: Path, record: Record | None = None) -> TorchEncoderEngine:
    engine = load_engine("torch-encoder", EngineSpec(folder=folder, pad_id=1, options={"device": "cpu"}))
    assert isinstance(engine, TorchEncoderEngine)
    if record is not None:
        engine._graphs = engine._recorded_by(record)
    return engine


def batches(count: int, *, seed: int = 0) -> list[list[Encoding]]:
    """Of one to twenty sequences of five to hundred tokens."""
    rng = np.random.default_rng(seed)
    return [
        [Encoding(rng.integers(5, 60, length), 3) for length in rng.integers(5, 101, rng.integers(1, 21))]
        for _ in range(count)
    ]


@pytest.mark.parametrize("family", ["bert", "xlmr", "modernbert"])
def test_replayed_passes_score_like_computed_ones(torch_folder: Callable[[str], Path], family: str) -> None:
    folder = torch_folder(family)
    recorder = Processor()
    plain, recorded = load(folder), load(folder, recorder)
    for batch in batches(40):
        np.testing.assert_allclose(recorded.run(batch), plain.run(batch), atol=1e-5)
    assert 1 < recorder.recorded <= 6 * 4


def test_a_shape_is_recorded_once_and_what_came_before_does_not_matter(tiny_bert: Path) -> None:
    recorder = Processor()
    engine = load(tiny_bert, recorder)
    long, short = ([Encoding(np.arange(5, 5 + length), 3)] * 5 for length in (60, 34))
    first = engine.run(short)
    engine.run(long)
    np.testing.assert_array_equal(engine.run(short), first)
    assert recorder.recorded == 1


def test_threads_do_not_write_into_each_others_passes(tiny_bert: Path) -> None:
    plain, recorded = load(tiny_bert), load(tiny_bert, Processor())
    many = batches(60, seed=1)
    with ThreadPoolExecutor(4) as pool:
        for batch, logits in zip(many, pool.map(recorded.run, many), strict=True):
            np.testing.assert_allclose(logits, plain.run(batch), atol=1e-5)


def test_a_large_batch_is_computed(tiny_bert: Path) -> None:
    recorder = Processor()
    engine = load(tiny_bert, recorder)
    large = [Encoding(np.arange(5, 105), 3)] * 200
    np.testing.assert_allclose(engine.run(large), load(tiny_bert).run(large), atol=1e-5)
    assert recorder.recorded == 0


def test_a_model_that_cannot_be_recorded_is_computed(tiny_bert: Path, caplog: pytest.LogCaptureFixture) -> None:
    refusing = Refusing(RuntimeError("operation not permitted when stream is capturing"))
    engine, plain = load(tiny_bert, refusing), load(tiny_bert)
    for batch in batches(3):
        np.testing.assert_array_equal(engine.run(batch), plain.run(batch))
    assert refusing.asked == 1
    assert [record.message for record in caplog.records] == [
        "the model's passes cannot be recorded as CUDA graphs; serving without"
    ]


def test_too_little_memory_for_a_recording_is_too_little_memory(tiny_bert: Path) -> None:
    engine = load(tiny_bert, Refusing(torch.OutOfMemoryError("CUDA out of memory")))
    for _ in range(2):
        with pytest.raises(OutOfMemory, match="CUDA out of memory"):
            engine.run(batches(1)[0])


def test_shapes_are_few_and_no_longer_than_the_model_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def lay_out(encodings: Sequence[Encoding], length: int) -> dict[str, np.ndarray]:
        seen.append((len(encodings), length))
        return {"attention_mask": np.ones((len(encodings), length), dtype=np.int64)}

    recorder = Processor()
    graphs = Graphs(
        lay_out, lambda inputs: inputs["attention_mask"].sum(1), recorder, device=torch.device("cpu"), max_length=100
    )
    for rows, length in [(1, 1), (3, 33), (9, 64), (5, 97), (8, 100)]:
        logits = graphs.logits([Encoding(np.arange(length), 1)] * rows)
        assert logits is not None
        assert logits.tolist() == [seen[-1][1]] * rows
    assert seen == [(1, 32), (3, 64), (9, 64), (5, 97), (8, 100)]
    assert recorder.recorded == 5
    monkeypatch.setattr(cuda_graphs, "_MAX_SHAPES", 5)
    assert graphs.logits([Encoding(np.arange(40), 1)] * 30) is None
    assert graphs.logits([Encoding(np.arange(40), 1)] * 4) is not None


@pytest.mark.parametrize("options", [{"device": "cpu"}, {"device": "cpu", "packed": True}])
def test_graphs_are_for_padded_passes_on_a_gpu(tiny_bert: Path, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="cuda_graphs = true records padded passes on a GPU"):
        load_engine("torch-encoder", EngineSpec(folder=tiny_bert, pad_id=0, options={**options, "cuda_graphs": True}))


@_ON_GPU
@pytest.mark.parametrize("family", ["bert", "xlmr", "modernbert"])
def test_graphs_on_a_gpu_score_like_computed_passes(torch_folder: Callable[[str], Path], family: str) -> None:
    options = {"device": "cuda", "precision": "float32"}
    plain, recorded = (
        load_engine("torch-encoder", EngineSpec(folder=torch_folder(family), pad_id=1, options={**options, **more}))
        for more in ({}, {"cuda_graphs": True})
    )
    for batch in batches(40):
        np.testing.assert_allclose(recorded.run(batch), plain.run(batch), atol=1e-3)
