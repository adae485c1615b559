"""Turns a Hugging Face reranker into ONNX graphs, and measures how far each is from the torch original.

The graph comes from torch's own exporter (torch.export), whose dynamic shapes hold for every batch and length. float32
must agree with torch, or nothing is written that could be served; how far the others are is reported.

A classifier's graph computes of its last layer the one row that its head reads (tools/narrowing.py). A language model's
graph gives the last position's logits of the few tokens that its scorer reads, and nothing else.
"""

import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx
import torch
from onnxruntime.transformers.float16 import convert_float_to_float16
from transformers import AutoTokenizer, PreTrainedModel, masking_utils

from rerankd.domain import FloatArray
from rerankd.engines import load_engine
from rerankd.engines.base import EngineSpec
from rerankd.engines.onnx.engine import OUTPUT_TOKENS
from rerankd.engines.torch.causal import TorchCausalEngine
from rerankd.engines.torch.encoder import TorchEncoderEngine, name_padding, takes_token_types
from rerankd.engines.torch.head_rows import HeadRows
from rerankd.engines.torch.weights import read_weights
from rerankd.errors import ConfigError
from rerankd.recognition.kinds import ModelFiles, refuse_other_than_cross_encoder
from rerankd.scorers import LIST_SCORERS, load_list_scorer, load_scorer
from rerankd.scorers.base import ListScorer, PairScorer, ScorerSpec
from rerankd.tasks.encoding import Encoding
from rerankd.tools.narrowing import keep_first_row
from rerankd.tools.quantizing import quantize_per_token, quantize_weights

Precision = Literal["float32", "float16", "int8", "int8-weights"]

GRAPHS: Final[dict[Precision, str]] = {
    "float32": "model.onnx",
    "float16": "model.float16.onnx",
    "int8": "model.int8.onnx",
    "int8-weights": "model.int8-weights.onnx",
}
# How far a healthy graph's logits may be from the reference at load time: this many times the measured distance,
# because the golden pairs are a sample and another CPU rounds otherwise.
_TOLERANCE_FACTOR = 3.0
_LEAST_TOLERANCE = 1e-3
# A float32 graph that is further from torch computes something else. Relative to the largest logit.
_ROUNDING = 1e-3
# Protocol buffers hold 2 GiB at most; weights beyond this lie in a file beside the graph.
LARGEST_FILE: Final = int(1.8 * 2**30)
_FILES_BESIDE = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "config_sentence_transformers.json",
    # What says how the model's input is made, so that the new folder is read, or refused, as the first.
    "chat_template.jinja",
    "modules.json",
    "sentence_bert_config.json",
)

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
    """Distance of one graph's logits from torch float32 over the probe pairs, each alone and all in one batch.
    `largest_batch_effect` is the distance between these two.
    """

    precision: Precision
    file: str
    megabytes: float
    largest_difference: float
    mean_difference: float
    largest_batch_effect: float


def export_cross_encoder(
    source: Path,
    target: Path,
    *,
    precisions: Sequence[Precision],
    pairs: str | None = None,
    trust_remote_code: bool = False,
    largest_file: int = LARGEST_FILE,
    on_step: Callable[[str], None] = lambda _step: None,
) -> list[Parity]:
    """Write a servable folder: graphs, tokenizer, configuration, golden pairs and `parity.json`. `pairs` is an option
    of the scorer.

    Raises:
        ConfigError: the source is no sequence-classification model with safetensors weights and a fast tokenizer, or
            its graph does not compute what torch computes.
    """
    refuse_other_than_cross_encoder(ModelFiles.read(source))
    on_step("loading the torch model")
    model = read_weights("sequence classifier", source, attention="eager", trust_remote_code=trust_remote_code)
    target.mkdir(parents=True, exist_ok=True)
    _write_tokenizer_and_config(source, target)
    scorer = load_scorer("cross-encoder", ScorerSpec(folder=target, options=_options(model, pairs=pairs)))
    name_padding(model, scorer.pad_id)
    encodings = [
        scorer.encode(query, [document], max_document_tokens=None).encodings[0] for query, document in PROBE_PAIRS
    ]
    reference = _reference(model, encodings, pad_id=scorer.pad_id)

    checks = _Checks(reference=reference, encodings=encodings, pad_id=scorer.pad_id)
    parities = _write_graphs(
        lambda: _narrowed(classifier_graph(model)),
        target,
        checks,
        precisions=precisions,
        largest_file=largest_file,
        on_step=on_step,
    )
    _write_golden(target, reference, parities)
    return parities


def classifier_graph(model: PreTrainedModel) -> onnx.ModelProto:
    """A sequence classifier's graph as torch's exporter makes it, in float32."""
    return _export_graph(_LogitsOnly(model), takes_segments=takes_token_types(model))


def export_language_model(
    source: Path,
    target: Path,
    *,
    method: str,
    spec: ScorerSpec,
    precisions: Sequence[Precision],
    trust_remote_code: bool = False,
    on_step: Callable[[str], None] = lambda _step: None,
) -> list[Parity]:
    """Write a servable folder for a scorer that reads tokens, `yes-no` or `first`; `spec` is what it is loaded from,
    its folder aside.

    Raises:
        ConfigError: the source is no causal language model with safetensors weights and a fast tokenizer, the scorer
            does not suit it, or its graph does not compute what torch computes.
    """
    on_step("loading the torch model")
    model = read_weights("causal language model", source, attention="eager", trust_remote_code=trust_remote_code)
    target.mkdir(parents=True, exist_ok=True)
    _write_tokenizer_and_config(source, target)
    spec = replace(spec, folder=target)
    pairs = load_scorer(method, spec) if method not in LIST_SCORERS else None
    scorer = pairs or load_list_scorer(method, spec)
    encodings = _probe_prompts(scorer)
    reference = _causal_reference(model, encodings, scorer)
    parities = _write_graphs(
        lambda: _export_rows(model, scorer.output_tokens),
        target,
        _Checks(reference=reference, encodings=encodings, pad_id=scorer.pad_id, output_tokens=scorer.output_tokens),
        precisions=precisions,
        largest_file=LARGEST_FILE,
        on_step=on_step,
    )
    if pairs is not None:
        _write_golden(target, pairs.interpret(reference)[:, None], parities)
    return parities


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checks:
    """What a graph is compared with: torch's outputs for these encodings, each alone."""

    reference: FloatArray
    encodings: Sequence[Encoding]
    pad_id: int
    output_tokens: Sequence[int] = ()


def _write_graphs(
    make: Callable[[], onnx.ModelProto],
    target: Path,
    checks: _Checks,
    *,
    precisions: Sequence[Precision],
    largest_file: int,
    on_step: Callable[[str], None],
) -> list[Parity]:
    on_step("exporting float32")
    graph = target / GRAPHS["float32"]
    _save(make(), graph, largest_file=largest_file)
    _refuse_wrong(_measure(graph, "float32", checks), checks.reference, graph)
    parities = []
    for precision in precisions:
        on_step(f"making and checking {precision}")
        made = _convert(graph, precision, largest_file=largest_file)
        parities.append(_measure(made, precision, checks))
    if "float32" not in precisions:
        _delete(graph)
    (target / "parity.json").write_text(json.dumps([asdict(parity) for parity in parities], indent=2) + "\n")
    return parities


def _probe_prompts(scorer: PairScorer | ListScorer) -> list[Encoding]:
    """Prompts of one document each, or windows of all sizes over the probe pairs' documents."""
    if not isinstance(scorer, ListScorer):
        return [scorer.encode(query, [text], max_document_tokens=None).encodings[0] for query, text in PROBE_PAIRS]
    texts = [text for _, text in PROBE_PAIRS] * 3
    return [
        scorer.encode_window(query, texts[: min(count, scorer.plan.window)], max_document_tokens=None).encoding
        for count, (query, _) in enumerate(PROBE_PAIRS, start=1)
    ]


def _causal_reference(
    model: PreTrainedModel, encodings: Sequence[Encoding], scorer: PairScorer | ListScorer
) -> FloatArray:
    engine = TorchCausalEngine(
        model, output_tokens=scorer.output_tokens, name="reference", pad_id=scorer.pad_id, workers=1, prefixes=None
    )
    return np.concatenate([engine.run([encoding]) for encoding in encodings])


def _write_tokenizer_and_config(source: Path, target: Path) -> None:
    if source.resolve() != target.resolve():
        for name in _FILES_BESIDE:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
    if not (source / "tokenizer.json").is_file():
        try:
            AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(target)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise ConfigError(f"transformers cannot load the tokenizer in {source}: {error}") from error


def _options(model: PreTrainedModel, *, pairs: str | None) -> dict[str, Any]:
    """Parity is measured on all outputs; which one means relevant is the registry's business."""
    label = {"label": 0} if model.config.num_labels > 1 else {}
    return label if pairs is None else {**label, "pairs": pairs}


def _reference(model: PreTrainedModel, encodings: Sequence[Encoding], *, pad_id: int) -> FloatArray:
    """One pair at a time, without padding; shape [pairs, outputs]."""
    engine = TorchEncoderEngine(model, device=torch.device("cpu"), precision="float32", pad_id=pad_id, workers=1)
    return np.concatenate([engine.run([encoding]) for encoding in encodings])


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


class _RowsOnly(torch.nn.Module):
    """A causal language model that gives the logits of a few tokens behind the last one that is not padding."""

    def __init__(self, model: PreTrainedModel, output_tokens: Sequence[int]) -> None:
        super().__init__()
        self.decoder = model.base_model
        self.head = HeadRows(model, output_tokens)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        last = (attention_mask.sum(dim=1) - 1).view(-1, 1, 1).expand(-1, 1, hidden.shape[-1])
        return self.head.logits(hidden.gather(1, last).squeeze(1))


def _narrowed(graph: onnx.ModelProto) -> onnx.ModelProto:
    keep_first_row(graph)
    return graph


def _export_rows(model: PreTrainedModel, output_tokens: Sequence[int]) -> onnx.ModelProto:
    graph = _export_graph(_RowsOnly(model, output_tokens), takes_segments=False)
    onnx.helper.set_model_props(graph, {OUTPUT_TOKENS: json.dumps(list(output_tokens))})
    return graph


def _export_graph(module: torch.nn.Module, *, takes_segments: bool) -> onnx.ModelProto:
    shape = (2, 16)
    # A tensor of its own for each input: one that is passed twice becomes one input of the graph.
    samples = {"input_ids": torch.full(shape, 7), "attention_mask": torch.ones(shape, dtype=torch.int64)}
    if takes_segments:
        samples["token_type_ids"] = torch.zeros(shape, dtype=torch.int64)
    with _quiet(), _small_masks():
        program = torch.onnx.export(
            module.eval(),
            tuple(samples.values()),
            input_names=list(samples),
            output_names=["logits"],
            dynamo=True,
            dynamic_shapes=tuple({0: "batch", 1: "sequence"} for _ in samples),
            verbose=False,
        )
    assert program is not None  # noqa: S101 - it is None only for the exporter that dynamo=False chooses
    exported: onnx.ModelProto = program.model_proto
    return exported


@contextmanager
def _small_masks() -> Iterator[None]:
    """Let models make attention's mask of shape [batch, 1, 1, keys] where it hides padding and nothing else, instead of
    one that says the same for every query.
    """
    usual: Callable[..., torch.Tensor] = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS["eager"]

    def mask(
        *, mask_function: object, attention_mask: torch.Tensor | None = None, dtype: torch.dtype, **rest: object
    ) -> torch.Tensor:
        if mask_function is not masking_utils.bidirectional_mask_function or attention_mask is None:
            return usual(mask_function=mask_function, attention_mask=attention_mask, dtype=dtype, **rest)
        least = torch.finfo(dtype).min
        return torch.where(attention_mask[:, None, None, :], torch.zeros((), dtype=dtype), least)

    masking_utils.ALL_MASK_ATTENTION_FUNCTIONS["eager"] = mask
    try:
        yield
    finally:
        masking_utils.ALL_MASK_ATTENTION_FUNCTIONS["eager"] = usual


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to ourselves what torch's exporter says about itself: nothing of it is about the model."""
    talkers = [
        logging.getLogger("torch.onnx._internal.exporter._registration"),  # "torchvision is not installed. Skipping"
        logging.getLogger("onnxscript.optimizer._constant_folding"),  # "Skipping constant folding for op"
    ]
    levels = [talker.level for talker in talkers]
    for talker in talkers:
        talker.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*The axis name: .* will not be used", category=UserWarning)
        try:
            yield
        finally:
            for talker, level in zip(talkers, levels, strict=True):
                talker.setLevel(level)


def _convert(graph: Path, precision: Precision, *, largest_file: int) -> Path:
    made = graph.parent / GRAPHS[precision]
    if precision == "float16":
        # The exporter noted every type and shape; to infer them again fails on graphs over 2 GiB.
        half = convert_float_to_float16(onnx.load(graph), keep_io_types=True, disable_shape_infer=True)
        _save(half, made, largest_file=largest_file)
    elif precision == "int8":
        _save(quantize_per_token(onnx.load(graph)), made, largest_file=largest_file)
    elif precision == "int8-weights":
        _save(quantize_weights(onnx.load(graph)), made, largest_file=largest_file)
    return made


def _save(model: onnx.ModelProto, graph: Path, *, largest_file: int) -> None:
    """Write a graph without the stack traces that the exporter left in every node."""
    del model.graph.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
    _delete(graph)
    onnx.save(
        model,
        graph,
        save_as_external_data=sum(len(tensor.raw_data) for tensor in model.graph.initializer) > largest_file,
        location=_weights_beside(graph).name,
    )


def _weights_beside(graph: Path) -> Path:
    return graph.with_name(f"{graph.name}_data")


def _delete(graph: Path) -> None:
    graph.unlink(missing_ok=True)
    _weights_beside(graph).unlink(missing_ok=True)


def _measure(graph: Path, precision: Precision, checks: _Checks) -> Parity:
    spec = EngineSpec(
        folder=graph.parent,
        pad_id=checks.pad_id,
        output_tokens=checks.output_tokens,
        # on every machine the same
        options={"file": graph.name, "fused": False},
    )
    engine = load_engine("onnx", spec)
    alone = np.concatenate([engine.run([encoding]) for encoding in checks.encodings])
    together = engine.run(checks.encodings)
    reference = checks.reference
    difference = np.maximum(np.abs(alone - reference), np.abs(together - reference))
    files = [file for file in (graph, _weights_beside(graph)) if file.is_file()]
    return Parity(
        precision=precision,
        file=graph.name,
        megabytes=round(sum(file.stat().st_size for file in files) / 1e6, 1),
        largest_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        largest_batch_effect=float(np.abs(alone - together).max()),
    )


def _refuse_wrong(parity: Parity, reference: FloatArray, graph: Path) -> None:
    bound = _ROUNDING * max(1.0, float(np.abs(reference).max()))
    # in this form it refuses logits that are no numbers too
    if not parity.largest_difference <= bound:
        _delete(graph)
        raise ConfigError(
            "the exported graph does not compute what torch computes (logits differ by "
            f'{parity.largest_difference:.3g}); serve this model with engine = "torch-encoder"'
        )


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
