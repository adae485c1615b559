"""Exports a Hugging Face reranker as ONNX graphs, and measures how far each is from torch.

The float32 graph must agree with torch, or nothing is written. How far the other precisions are is reported.

A classifier's graph computes only one row of its last layer, the one that its head reads (tools/narrowing.py). A
language model's graph returns the logits of the few tokens that its scorer reads, at the last position.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from transformers import AutoTokenizer, PreTrainedModel

from rerankd.domain import FloatArray
from rerankd.engines.base import EngineSpec
from rerankd.engines.torch.causal import TorchCausalEngine
from rerankd.engines.torch.encoder import TorchEncoderEngine, name_padding
from rerankd.engines.torch.weights import read_weights
from rerankd.errors import ConfigError
from rerankd.recognition.kinds import ModelFiles, refuse_other_than_cross_encoder
from rerankd.scorers import load_any_scorer, load_scorer
from rerankd.scorers.base import (
    AnyBlockScorer,
    AnyComparisonScorer,
    AnyListScorer,
    AnyPairScorer,
    AnyVectorScorer,
    Scorer,
    ScorerSpec,
)
from rerankd.tasks.classify import Classify
from rerankd.tasks.encoding import Encoding
from rerankd.tools.graph_files import GRAPHS, LARGEST_FILE, Precision, convert_graph, delete_graph, save_graph
from rerankd.tools.narrowing import keep_first_row
from rerankd.tools.parity import PROBE_PAIRS, Parity, Reference, measure_parity, refuse_wrong_graph, write_golden
from rerankd.tools.torch_graphs import classifier_graph, language_model_graph

_FILES_TO_COPY: Final = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "config_sentence_transformers.json",
    # how the model's input is made, so that the new folder is recognised, or refused, like the source
    "chat_template.jinja",
    "modules.json",
    "sentence_bert_config.json",
)


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
    reference = _classifier_reference(model, encodings, pad_id=scorer.pad_id)
    parities = _write_graphs(
        lambda: _narrowed(classifier_graph(model)),
        target,
        reference,
        precisions=precisions,
        largest_file=largest_file,
        on_step=on_step,
    )
    write_golden(target, reference.logits, parities)
    return parities


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
    """Write a servable folder for a scorer that reads tokens, `yes-no` or `first`. `spec` is the scorer's, apart from
    its folder.

    Raises:
        ConfigError: the source is no causal language model with safetensors weights and a fast tokenizer, the scorer
            does not fit it, or its graph does not compute what torch computes.
    """
    on_step("loading the torch model")
    model = read_weights("causal language model", source, attention="eager", trust_remote_code=trust_remote_code)
    target.mkdir(parents=True, exist_ok=True)
    _write_tokenizer_and_config(source, target)
    spec = replace(spec, folder=target)
    scorer = load_any_scorer(method, spec)
    prompts = scorer.by_kind(_ProbePrompts())
    tokens = EngineSpec(folder=target, pad_id=scorer.pad_id, task=scorer.task).output_tokens
    reference = _causal_reference(model, prompts.encodings, tokens, scorer)
    parities = _write_graphs(
        lambda: language_model_graph(model, tokens),
        target,
        reference,
        precisions=precisions,
        largest_file=LARGEST_FILE,
        on_step=on_step,
    )
    if prompts.interpret is not None:
        write_golden(target, prompts.interpret(reference.logits)[:, None], parities)
    return parities


def _write_graphs(
    make: Callable[[], onnx.ModelProto],
    target: Path,
    reference: Reference,
    *,
    precisions: Sequence[Precision],
    largest_file: int,
    on_step: Callable[[str], None],
) -> list[Parity]:
    on_step("exporting float32")
    graph = target / GRAPHS["float32"]
    save_graph(make(), graph, largest_file=largest_file)
    refuse_wrong_graph(measure_parity(graph, "float32", reference), reference, graph)
    parities = []
    for precision in precisions:
        on_step(f"converting to {precision} and checking it")
        converted = convert_graph(graph, precision, largest_file=largest_file)
        parities.append(measure_parity(converted, precision, reference))
    if "float32" not in precisions:
        delete_graph(graph)
    (target / "parity.json").write_text(json.dumps([asdict(parity) for parity in parities], indent=2) + "\n")
    return parities


@dataclass(frozen=True, slots=True)
class _Prompts:
    """What a scorer writes of the probe pairs, and what makes scores of their logits: for scorers of pairs."""

    encodings: Sequence[Encoding]
    interpret: Callable[[FloatArray], FloatArray] | None


class _ProbePrompts:
    """Prompts with one document each, or windows of all sizes over the documents of the probe pairs."""

    def pairs(self, scorer: AnyPairScorer, /) -> _Prompts:
        encoded = [scorer.encode(query, [text], max_document_tokens=None).encodings[0] for query, text in PROBE_PAIRS]
        return _Prompts(encoded, scorer.interpret)

    def lists(self, scorer: AnyListScorer, /) -> _Prompts:
        texts = [text for _, text in PROBE_PAIRS] * 3
        windows = [
            scorer.encode_window(query, texts[: min(count, scorer.plan.window)], max_document_tokens=None).encoding
            for count, (query, _) in enumerate(PROBE_PAIRS, start=1)
        ]
        return _Prompts(windows, None)

    def vectors(self, scorer: AnyVectorScorer, /) -> _Prompts:
        raise ConfigError(f"{scorer.fingerprint} compares vectors, and reads no tokens of a language model")

    def blocks(self, scorer: AnyBlockScorer, /) -> _Prompts:
        raise ConfigError(
            f"the task {scorer.task.name!r} cannot be exported; serve the model with engine 'torch-markers'"
        )

    def comparisons(self, scorer: AnyComparisonScorer, /) -> _Prompts:
        raise ConfigError(f"a scorer of comparisons cannot be exported ({scorer.task.name})")


def _causal_reference(
    model: PreTrainedModel, encodings: Sequence[Encoding], tokens: Sequence[int], scorer: Scorer
) -> Reference:
    engine = TorchCausalEngine(
        model, output_tokens=tokens, name="reference", pad_id=scorer.pad_id, workers=1, prefixes=None
    )
    logits = np.concatenate([engine.run([encoding]) for encoding in encodings])
    return Reference(logits=logits, encodings=encodings, pad_id=scorer.pad_id, task=scorer.task)


def _write_tokenizer_and_config(source: Path, target: Path) -> None:
    if source.resolve() != target.resolve():
        for name in _FILES_TO_COPY:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
    if not (source / "tokenizer.json").is_file():
        try:
            AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(target)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise ConfigError(f"transformers cannot load the tokenizer in {source}: {error}") from error


def _options(model: PreTrainedModel, *, pairs: str | None) -> dict[str, Any]:
    """Parity is measured on all outputs, so any label will do; the registry chooses the one that means relevant."""
    label = {"label": 0} if model.config.num_labels > 1 else {}
    return label if pairs is None else {**label, "pairs": pairs}


def _classifier_reference(model: PreTrainedModel, encodings: Sequence[Encoding], *, pad_id: int) -> Reference:
    """Logits of one pair at a time, without padding."""
    engine = TorchEncoderEngine(model, device=torch.device("cpu"), precision="float32", pad_id=pad_id, workers=1)
    logits = np.concatenate([engine.run([encoding]) for encoding in encodings])
    return Reference(logits=logits, encodings=encodings, pad_id=pad_id, task=Classify(outputs=logits.shape[1]))


def _narrowed(graph: onnx.ModelProto) -> onnx.ModelProto:
    keep_first_row(graph)
    return graph
