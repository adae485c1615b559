"""Turns a Hugging Face cross-encoder into ONNX graphs, and measures how far each is from the torch original.

The graph comes from torch's own exporter (torch.export), whose dynamic shapes hold for every batch and length. int8
quantises the weights of matrix products per channel and activations dynamically.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.float16 import convert_float_to_float16
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from app.domain import FloatArray
from app.engines import load_engine
from app.engines.base import EngineSpec
from app.errors import ConfigError
from app.scorers import load_scorer
from app.scorers.base import PairScorer, ScorerSpec

Precision = Literal["float32", "float16", "int8"]

GRAPHS: Final[dict[Precision, str]] = {
    "float32": "model.onnx",
    "float16": "model.float16.onnx",
    "int8": "model.int8.onnx",
}
# How far a healthy graph's logits may be from the reference at load time: this many times the measured distance,
# because the golden pairs are a sample and another processor rounds otherwise.
_TOLERANCE_FACTOR = 3.0
_LEAST_TOLERANCE = 1e-3
_FILES_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "config_sentence_transformers.json")

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
    """Distance of one graph's logits from torch float32 over the probe pairs."""

    precision: Precision
    file: str
    megabytes: float
    largest_difference: float
    mean_difference: float


def export_cross_encoder(
    source: Path,
    target: Path,
    *,
    precisions: Sequence[Precision],
    trust_remote_code: bool = False,
    on_step: Callable[[str], None] = lambda _step: None,
) -> list[Parity]:
    """Write a servable folder: graphs, tokenizer, configuration, golden pairs and `parity.json`.

    Raises:
        ConfigError: the source is no sequence-classification model with safetensors weights and a fast tokenizer.
    """
    on_step("loading the torch model")
    model = _load(source, trust_remote_code=trust_remote_code)
    target.mkdir(parents=True, exist_ok=True)
    _write_tokenizer_and_config(source, target, model)
    scorer = load_scorer("cross-encoder", ScorerSpec(folder=target, options=_label_option(model)))
    reference = _torch_logits(model, scorer)

    on_step("exporting float32")
    graph = target / GRAPHS["float32"]
    _export_graph(model, graph)
    parities = []
    for precision in precisions:
        on_step(f"making and checking {precision}")
        made = _convert(graph, precision)
        parities.append(_measure(made, precision, scorer, reference))
    if "float32" not in precisions:
        graph.unlink()
    _write_golden(target, reference, parities)
    (target / "parity.json").write_text(json.dumps([asdict(parity) for parity in parities], indent=2) + "\n")
    return parities


def _load(source: Path, *, trust_remote_code: bool) -> PreTrainedModel:
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            source,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            dtype=torch.float32,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ConfigError(f"transformers cannot load {source}: {error}") from error
    return model.eval()


def _write_tokenizer_and_config(source: Path, target: Path, model: PreTrainedModel) -> None:
    if (source / "tokenizer.json").is_file():
        shutil.copyfile(source / "tokenizer.json", target / "tokenizer.json")
    else:
        AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(target)
    for name in _FILES_BESIDE:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    model.config.save_pretrained(target)


def _label_option(model: PreTrainedModel) -> dict[str, int]:
    """Parity is measured on any one output; which one means relevant is the registry's business."""
    return {"label": 0} if model.config.num_labels > 1 else {}


class _LogitsOnly(torch.nn.Module):
    """The model with positional inputs and one output, as a graph has them."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        segments = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, **segments).logits
        return logits


def _export_graph(model: PreTrainedModel, graph: Path) -> None:
    names = ["input_ids", "attention_mask"]
    if getattr(model.config, "type_vocab_size", 0) > 1:
        names.append("token_type_ids")
    sample = torch.ones((2, 16), dtype=torch.int64)
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    torch.onnx.export(
        _LogitsOnly(model).eval(),
        tuple(sample for _ in names),
        graph,
        input_names=names,
        output_names=["logits"],
        dynamo=True,
        dynamic_shapes=tuple({0: batch, 1: sequence} for _ in names),
        external_data=_is_too_large_for_one_file(model),
        verbose=False,
    )


def _is_too_large_for_one_file(model: PreTrainedModel) -> bool:
    """Protocol buffers hold 2 GiB at most."""
    return bool(sum(parameter.numel() for parameter in model.parameters()) * 4 > 1.8 * 2**30)


def _convert(graph: Path, precision: Precision) -> Path:
    made = graph.parent / GRAPHS[precision]
    if precision == "float16":
        half = convert_float_to_float16(onnx.load(graph), keep_io_types=True)
        onnx.save(half, made)
    elif precision == "int8":
        quantize_dynamic(
            graph, made, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"]
        )
    return made


def _measure(graph: Path, precision: Precision, scorer: PairScorer, reference: FloatArray) -> Parity:
    engine = load_engine("onnx", EngineSpec(folder=graph.parent, pad_id=scorer.pad_id, options={"file": graph.name}))
    logits = np.concatenate(
        [
            engine.forward(scorer.encode(query, [document], max_document_tokens=None).encodings)
            for query, document in PROBE_PAIRS
        ]
    )
    difference = np.abs(logits - reference)
    return Parity(
        precision=precision,
        file=graph.name,
        megabytes=round(graph.stat().st_size / 1e6, 1),
        largest_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
    )


@torch.inference_mode()
def _torch_logits(model: PreTrainedModel, scorer: PairScorer) -> FloatArray:
    """The reference: one pair at a time, without padding; shape [pairs, outputs]."""
    takes_segments = getattr(model.config, "type_vocab_size", 0) > 1
    rows = []
    for query, document in PROBE_PAIRS:
        encoding = scorer.encode(query, [document], max_document_tokens=None).encodings[0]
        inputs = {"input_ids": torch.from_numpy(encoding.ids)[None]}
        if takes_segments:
            segments = np.arange(len(encoding.ids)) >= encoding.boundary
            inputs["token_type_ids"] = torch.from_numpy(segments.astype(np.int64))[None]
        rows.append(model(**inputs).logits[0].float().numpy())
    return np.stack(rows).astype(np.float32)


def _write_golden(target: Path, reference: FloatArray, parities: Sequence[Parity]) -> None:
    """Golden pairs for the canary; only for heads of one output, where a raw score is the logit itself."""
    if reference.shape[1] != 1:
        return
    widest = max((parity.largest_difference for parity in parities), default=0.0)
    golden = {
        "pairs": [
            {"query": query, "document": document, "logit": round(float(logit), 6)}
            for (query, document), logit in zip(PROBE_PAIRS, reference[:, 0], strict=True)
        ],
        "tolerance": max(_LEAST_TOLERANCE, _TOLERANCE_FACTOR * widest),
    }
    (target / "golden.json").write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
