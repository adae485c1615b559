"""Compares ways to run an int8 graph in OpenVINO: the table of docs/adr/0006.

python -m loadtest.openvino_quantization [--model models/minilm-qa] [--rounds 5]

One thread, variants alternate, CPU time, so that a busy machine hardly matters. "From alone" is over the measured
pairs.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import numpy as np
import openvino as ov

from rerankd.domain import FloatArray
from rerankd.engines import load_engine
from rerankd.engines.base import BatchLimits, EngineSpec, pad
from rerankd.engines.openvino import _remove_quantization, rounded_length
from rerankd.scorers import load_scorer
from rerankd.scorers.base import AnyPairScorer, ScorerSpec
from rerankd.tasks.encoding import Encoding
from rerankd.tools.tuning import workload

Forward = Callable[[Sequence[Encoding]], FloatArray]


def openvino(graph: Path, *, precision: ov.Type, group: int, pad_id: int) -> Forward:
    """The graph on one thread, without its own quantization."""
    core = ov.Core()
    model = core.read_model(graph)
    _remove_quantization(model)
    properties: dict[str, Any] = {
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": 1,
        "INFERENCE_PRECISION_HINT": precision,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": group,
    }
    compiled = core.compile_model(model, "CPU", properties)
    request = compiled.create_infer_request()
    names = {port.get_any_name() for port in compiled.inputs}

    def forward(encodings: Sequence[Encoding]) -> FloatArray:
        length = rounded_length(max(len(encoding.ids) for encoding in encodings))
        batch = pad(encodings, pad_id=pad_id, length=length)
        return np.array(request.infer({name: getattr(batch, name) for name in names})[0], dtype=np.float32)

    return forward


def variants(folder: Path, *, pad_id: int) -> dict[str, tuple[Forward, int]]:
    """Each variant with its batch budget in tokens. The first is the baseline."""
    graph = folder / "model.int8.onnx"
    runtime = load_engine("onnx", EngineSpec(folder=folder, pad_id=pad_id, workers=1, options={"file": graph.name}))
    found: dict[str, tuple[Forward, int]] = {"ONNX Runtime": (runtime.run, 512)}
    for precision, name in ((ov.Type.bf16, "bfloat16"), (ov.Type.f32, "float32")):
        for group in (32, 128, 384, 768) if name == "bfloat16" else (384,):
            inside = openvino(graph, precision=precision, group=group, pad_id=pad_id)
            found[f"inside, groups of {group}, {name}"] = inside, 1024
    return found


def golden_distance(forward: Forward, scorer: AnyPairScorer, folder: Path) -> float:
    """The largest distance from the float32 logits."""
    pairs = json.loads((folder / "golden.json").read_text(encoding="utf-8"))["pairs"]
    encodings = [scorer.encode(p["query"], [p["document"]], max_document_tokens=None).encodings[0] for p in pairs]
    logits = np.concatenate([forward([encoding]) for encoding in encodings])[:, 0]
    return float(np.abs(logits - [pair["logit"] for pair in pairs]).max())


def batch_effect(forward: Forward, batches: Sequence[Sequence[Encoding]]) -> float:
    """The largest distance between a pair alone and in its batch."""
    return max(
        float(np.abs(forward(batch) - np.concatenate([forward([one]) for one in batch])).max()) for batch in batches
    )


def cpu_seconds(forward: Forward, batches: Sequence[Sequence[Encoding]]) -> float:
    started = process_time()
    for batch in batches:
        forward(batch)
    return process_time() - started


def main() -> None:
    """Print a row for each variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/minilm-qa"))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    scorer = load_scorer("cross-encoder", ScorerSpec(folder=arguments.model))
    work = workload(scorer)
    found = variants(arguments.model, pad_id=scorer.pad_id)
    batches = {name: work.batches(BatchLimits(tokens=tokens, pairs=64)) for name, (_, tokens) in found.items()}
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for measured in range(arguments.rounds + 1):
        for name, (forward, _) in found.items():
            spent = cpu_seconds(forward, batches[name])
            if measured:
                seconds[name].append(spent)
    base = median(next(iter(seconds.values())))
    print("| variant | pairs per CPU second | from float32 | from alone |\n|---|---|---|---|")
    for name, (forward, _) in found.items():
        effect = batch_effect(forward, batches[name][:2])
        distance = golden_distance(forward, scorer, arguments.model)
        print(f"| {name} | {base / median(seconds[name]):.2f} | {distance:.3f} | {effect:.3f} |", flush=True)


if __name__ == "__main__":
    main()
