"""Measures how far the logits of exported graphs are from torch, and writes golden pairs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from rerankd.domain import FloatArray
from rerankd.engines import load_engine
from rerankd.engines.base import EngineSpec
from rerankd.errors import ConfigError
from rerankd.tasks.base import Task
from rerankd.tasks.encoding import Encoding
from rerankd.tools.graph_files import Precision, delete_graph, graph_files

# The tolerance of golden pairs is this many times the measured distance: the pairs are a sample, and another CPU rounds
# differently.
_TOLERANCE_FACTOR: Final = 3.0
_MIN_TOLERANCE: Final = 1e-3
# A float32 graph that is further from torch, relative to the largest logit, computes something else.
_MAX_FLOAT32_DIFFERENCE: Final = 1e-3

PROBE_PAIRS: Final[tuple[tuple[str, str], ...]] = (
    ("what is the capital of france", "Paris is the capital and largest city of France."),
    ("what is the capital of france", "Berlin is the capital of Germany."),
    ("how do vaccines work", "A vaccine trains the immune system to recognise a pathogen before it meets it."),
    ("how do vaccines work", "The stock market closed higher on Tuesday."),
    ("größte Stadt Österreichs", "Wien ist mit fast zwei Millionen Einwohnern die größte Stadt Österreichs."),
    ("日本の首都はどこですか", "東京は日本の首都です。"),
    ("python list sort", "list.sort() sorts in place; sorted() returns a new list."),
    ("x", "y"),
    ("symptoms of dehydration", "Thirst, dark urine, dizziness and tiredness. " * 40),
    ("who wrote Hamlet?", "Hamlet 🎭 is a tragedy by William Shakespeare, written about 1600."),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How far one graph's logits are from torch float32, over the probe pairs, alone and in one batch.
    `largest_batch_effect` is the difference between alone and in one batch.
    """

    precision: Precision
    file: str
    megabytes: float
    largest_difference: float
    mean_difference: float
    largest_batch_effect: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What graphs are compared with: torch's outputs for these encodings, each alone, shape [encodings, outputs]."""

    logits: FloatArray
    encodings: Sequence[Encoding]
    pad_id: int
    task: Task[Any]


def measure_parity(graph: Path, precision: Precision, reference: Reference) -> Parity:
    """Run a graph and compare its logits."""
    spec = EngineSpec(
        folder=graph.parent,
        pad_id=reference.pad_id,
        task=reference.task,
        # the same on every machine
        options={"file": graph.name, "fused": False},
    )
    engine = load_engine("onnx", spec)
    alone = np.concatenate([engine.run([encoding]) for encoding in reference.encodings])
    together = engine.run(reference.encodings)
    difference = np.maximum(np.abs(alone - reference.logits), np.abs(together - reference.logits))
    return Parity(
        precision=precision,
        file=graph.name,
        megabytes=round(sum(file.stat().st_size for file in graph_files(graph)) / 1e6, 1),
        largest_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        largest_batch_effect=float(np.abs(alone - together).max()),
    )


def refuse_wrong_graph(parity: Parity, reference: Reference, graph: Path) -> None:
    """Delete a float32 graph that does not agree with torch.

    Raises:
        ConfigError: it does not agree.
    """
    bound = _MAX_FLOAT32_DIFFERENCE * max(1.0, float(np.abs(reference.logits).max()))
    # written so that NaN is refused too
    if not parity.largest_difference <= bound:
        delete_graph(graph)
        raise ConfigError(
            "the exported graph does not compute what torch computes (logits differ by "
            f'{parity.largest_difference:.3g}); serve this model with engine = "torch-encoder"'
        )


def write_golden(target: Path, logits: FloatArray, parities: Sequence[Parity]) -> None:
    """Write golden pairs, for models with one output only, whose raw score is the logit itself."""
    if logits.shape[1] != 1:
        return
    widest = max((parity.largest_difference for parity in parities), default=0.0)
    golden = {
        "pairs": [
            {"query": query, "document": document, "logit": round(float(logit), 6)}
            for (query, document), logit in zip(PROBE_PAIRS, logits[:, 0], strict=True)
        ],
        "tolerance": max(_MIN_TOLERANCE, _TOLERANCE_FACTOR * widest),
    }
    (target / "golden.json").write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
