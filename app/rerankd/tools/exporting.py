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
from typing import Final, cast

import numpy as np
import onnx
import torch
from transformers import AutoTokenizer, PreTrainedModel

from rerankd.domain import FloatArray
from rerankd.engines.base import EngineSpec
from rerankd.engines.torch.causal import TorchCausalEngine
from rerankd.engines.torch.encoder import TorchEncoderEngine, name_padding
from rerankd.engines.torch.modular import modular_model
from rerankd.engines.torch.weights import Kind, read_weights
from rerankd.errors import ConfigError
from rerankd.recognition.exported import Exported
from rerankd.recognition.kinds import ModelFiles, refuse_other_than_cross_encoder
from rerankd.recognition.modules import check_layers, read_modular_head
from rerankd.recognition.recognised import PARITY_FILE
from rerankd.scorers import load_any_scorer, load_scorer
from rerankd.scorers.base import (
    AnyBlockScorer,
    AnyComparisonScorer,
    AnyGroupScorer,
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


def export_classifier(  # noqa: PLR0913 - what `rerankd export` is told
    source: Path,
    target: Path,
    *,
    method: str = "cross-encoder",
    spec: ScorerSpec | None = None,
    precisions: Sequence[Precision],
    trust_remote_code: bool = False,
    largest_file: int = LARGEST_FILE,
    on_step: Callable[[str], None] = lambda _step: None,
) -> list[Parity]:
    """Write a servable folder for a scorer that reads the logits of a head, `cross-encoder` or `prompted-classifier`:
    graphs, tokenizer, configuration, golden pairs and `parity.json`. `spec` is the scorer's, apart from its folder.

    Raises:
        ConfigError: the source is no classifier with safetensors weights and a fast tokenizer, nobody says how it reads
            a pair, or its graph does not compute what torch computes.
    """
    files = ModelFiles.read(source)
    refuse_other_than_cross_encoder(files)
    on_step("loading the torch model")
    model, outputs = _classifier(files, trust_remote_code=trust_remote_code)
    spec = _prepared(spec or ScorerSpec(folder=source), files, target, method=method)
    # Parity is measured on all outputs, so any label will do; the registry chooses the one that means relevant.
    options = spec.options if outputs == 1 else {"label": 0, **spec.options}
    scorer = load_scorer(method, replace(spec, options=options))
    name_padding(model, scorer.pad_id)
    prompts = _ProbePrompts().pairs(scorer)
    reference = _classifier_reference(model, prompts.encodings, pad_id=scorer.pad_id)
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
    spec = _prepared(spec, ModelFiles.read(source), target, method=method)
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
    (target / PARITY_FILE).write_text(json.dumps([asdict(parity) for parity in parities], indent=2) + "\n")
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

    def groups(self, scorer: AnyGroupScorer, /) -> _Prompts:
        raise ConfigError(f"a scorer of groups cannot be exported ({scorer.task.name})")

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


def _classifier(files: ModelFiles, *, trust_remote_code: bool) -> tuple[PreTrainedModel, int]:
    """A classifier of transformers, or an encoder with a head in modules of its own, and how many outputs it has."""
    head = read_modular_head(files)
    if head is None:
        kind: Kind = "sequence classifier"
        model = read_weights(kind, files.folder, attention="eager", trust_remote_code=trust_remote_code)
        return model, model.config.num_labels
    check_layers(head.layers)
    encoder = read_weights("encoder", files.folder, attention="eager", trust_remote_code=trust_remote_code)
    return cast("PreTrainedModel", modular_model(encoder, head)), head.outputs


def _prepared(spec: ScorerSpec, files: ModelFiles, target: Path, *, method: str) -> ScorerSpec:
    """The scorer's spec for the target folder, once that holds everything but graphs."""
    target.mkdir(parents=True, exist_ok=True)
    _write_tokenizer_and_config(files, target)
    Exported(scorer=method, options=spec.options).write(target)
    return replace(spec, folder=target)


def _write_tokenizer_and_config(files: ModelFiles, target: Path) -> None:
    source = files.folder
    if source.resolve() != target.resolve():
        for name in (*_FILES_TO_COPY, *(f"{folder}/config.json" for folder in _module_folders(files))):
            if (source / name).is_file():
                (target / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(source / name, target / name)
    if not (source / "tokenizer.json").is_file():
        try:
            AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(target)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise ConfigError(f"transformers cannot load the tokenizer in {source}: {error}") from error


def _module_folders(files: ModelFiles) -> list[str]:
    """Of those modules that lie in a folder of the model's own."""
    paths = (str(module.get("path", "")) for module in files.modules or ())
    return [path for path in paths if path not in ("", ".", "..") and Path(path).name == path]


def _classifier_reference(model: PreTrainedModel, encodings: Sequence[Encoding], *, pad_id: int) -> Reference:
    """Logits of one pair at a time, without padding."""
    engine = TorchEncoderEngine(model, device=torch.device("cpu"), precision="float32", pad_id=pad_id, workers=1)
    logits = np.concatenate([engine.run([encoding]) for encoding in encodings])
    return Reference(logits=logits, encodings=encodings, pad_id=pad_id, task=Classify(outputs=logits.shape[1]))


def _narrowed(graph: onnx.ModelProto) -> onnx.ModelProto:
    keep_first_row(graph)
    return graph
