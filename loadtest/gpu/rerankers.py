"""The sides of the comparison, all in this process: our pipeline in several variants, and sentence-transformers'
`predict`.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import torch
from sentence_transformers import CrossEncoder

from rerankd.batching.batcher import Batcher
from rerankd.batching.passes import ThreadPasses
from rerankd.batching.planner import BatchPlanner
from rerankd.concurrency.sharing import SharedWorker
from rerankd.concurrency.worker import Worker, available_cores
from rerankd.domain import FloatArray, ScoreOptions
from rerankd.engines import load_engine
from rerankd.engines.base import EngineSpec
from rerankd.pipeline.pointwise import PointwiseStage
from rerankd.scorers import load_scorer
from rerankd.scorers.base import ScorerSpec
from rerankd.tasks.encoding import Encoding
from rerankd.telemetry.observer import Silent

_UNLIMITED = 10**12
_PREDICT_BATCH = 64


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to serve a model with our engine."""

    options: Mapping[str, bool] = field(default_factory=dict)
    workers: int = 1


# Two workers: one batch is copied and laid out beside the computation of another.
VARIANTS: Final[Mapping[str, Variant]] = {
    "padded": Variant(),
    "packed": Variant({"packed": True}),
    "packed, 2 workers": Variant({"packed": True}, workers=2),
    "CUDA graphs": Variant({"cuda_graphs": True}),
    "compiled": Variant({"compile": True}),
}


class Reranker(Protocol):
    name: str

    async def score(self, query: str, documents: Sequence[str]) -> FloatArray:
        """Raw scores, shape [documents]; may be called for many requests at a time."""


class Ours:
    """Tokenizing, batcher and torch engine as the service has them, without HTTP and cache."""

    def __init__(self, stage: PointwiseStage[Encoding, FloatArray], *, name: str) -> None:
        self._stage = stage
        self.name = name

    async def score(self, query: str, documents: Sequence[str]) -> FloatArray:
        return (await self._stage.score(query, documents, ScoreOptions())).values


@asynccontextmanager
async def open_ours(folder: Path, name: str, *, device: str, precision: str) -> AsyncIterator[Ours]:
    """Load a model again, as the variant of that name."""
    variant = VARIANTS[name]
    scorer = load_scorer("cross-encoder", ScorerSpec(folder=folder))
    options = {"device": device, "precision": precision, **variant.options}
    engine = load_engine(
        "torch-encoder",
        EngineSpec(folder=folder, pad_id=scorer.pad_id, workers=variant.workers, options=options),
    )
    planner = BatchPlanner(
        max_batch_tokens=engine.preferred_batch.tokens,
        max_batch_pairs=engine.preferred_batch.pairs,
        workers=engine.workers,
        padded=engine.preferred_batch.padded,
        rounded_length=engine.preferred_batch.rounded_length,
    )
    with (
        Worker(name="infer", threads=engine.workers) as inference,
        SharedWorker.open(name="tokenize", threads=available_cores()) as tokenizing,
    ):
        batcher = Batcher(
            planner, ThreadPasses(engine.run, inference), max_waiting_tokens=_UNLIMITED, model="gpu", observer=Silent()
        )
        serving = asyncio.create_task(batcher.run())
        try:
            yield Ours(PointwiseStage(scorer, batcher, tokenizing), name=f"rerankd, {name}")
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


class Theirs:
    """`CrossEncoder.predict`, one request at a time: it is not made for concurrent calls."""

    name = "sentence-transformers"

    def __init__(self, folder: Path, *, device: str, precision: str) -> None:
        kwargs = {"dtype": getattr(torch, precision)}
        self._model = CrossEncoder(str(folder), device=device, model_kwargs=kwargs, max_length=512)
        self._one_at_a_time = asyncio.Lock()

    async def score(self, query: str, documents: Sequence[str]) -> FloatArray:
        async with self._one_at_a_time:
            return await asyncio.to_thread(self.predict, [(query, document) for document in documents])

    def predict(self, pairs: Sequence[tuple[str, str]]) -> FloatArray:
        """All pairs in one call, which sorts them by length and cuts them into batches."""
        scores = self._model.predict(
            list(pairs), batch_size=_PREDICT_BATCH, activation_fn=torch.nn.Identity(), show_progress_bar=False
        )
        return np.asarray(scores, dtype=np.float32)
