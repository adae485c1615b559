"""Model folders that look well and are not: each is scored as sentence-transformers scores it, or refused by name."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerankd.config.settings import Settings
from rerankd.domain import FloatArray, RerankRequest
from rerankd.errors import ModelNotReady
from rerankd.serving.assembly import running_service
from rerankd.telemetry.observer import Silent
from tests.registry_files import write_registry
from tests.tiny_causal import build_jina_v3
from tests.tiny_models import CORPUS, MAX_LENGTH, TINY_BERT, build_bert, build_gte

Poison = Callable[[Path], object]

QUERY = "Où est la CAPITALE de Österreich, 東京 or France?"
DOCUMENTS = ["y", *CORPUS[:4], CORPUS[7], CORPUS[8], " ".join(CORPUS)]
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """A healthy folder, what is done to it, how it is served, and what must come of it: `refused` is what the reason
    says; without it the scores must be sentence-transformers' own.
    """

    name: str
    poison: Poison
    base: str = "bert"
    engine: str = "torch-encoder"
    model: Mapping[str, Any] = field(default_factory=dict)
    refused: Sequence[str] = ()


def changed(name: str, **changes: Any) -> Poison:
    """Sets keys of a JSON file; None takes one out."""

    def poison(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text()) if path.exists() else {}
        content |= changes
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))

    return poison


def written(name: str, content: object) -> Poison:
    def poison(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())

    return poison


def removed(*names: str) -> Poison:
    def poison(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return poison


def renamed(old: str, new: str) -> Poison:
    return lambda folder: (folder / old).rename(folder / new)


def cut(name: str, part: float) -> Poison:
    def poison(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * part)])

    return poison


def both(*poisons: Poison) -> Poison:
    def poison(folder: Path) -> None:
        for one in poisons:
            one(folder)

    return poison


def tensors(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Poison:
    """Changes the weights."""

    def poison(folder: Path) -> None:
        from safetensors.numpy import load_file, save_file  # noqa: PLC0415 - comes with torch

        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})

    return poison


def tokenizer_json(change: Callable[[dict[str, Any]], object]) -> Poison:
    def poison(folder: Path) -> None:
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return poison


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0\nsize 90405214\n"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
BERT = {"tokenizer_class": "BertTokenizer"}
ROBERTA = {"tokenizer_class": "RobertaTokenizer"}
ROLES = (
    "{% for m in messages if m['role'] == 'query' %}<|im_start|>Query: {{ m['content'] }}{% endfor %}"
    "{% for m in messages if m['role'] == 'document' %} Document: {{ m['content'] }}<|im_end|>{% endfor %}"
)
TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
TEXT_ONLY: Mapping[str, Any] = {
    "transformer_task": "sequence-classification",
    "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    "module_output_name": "scores",
}


def modules(*types: str) -> Poison:
    chain = [{"idx": place, "name": str(place), "path": f"{place}_{kind}" if place else "", "type": f"st.{kind}"}
             for place, kind in enumerate(types)]  # fmt: skip
    return written("modules.json", chain)


def saved_as(kind: str, **transformer: Any) -> Poison:
    """As sentence-transformers saves a model of one module."""
    return both(
        written("modules.json", [TRANSFORMER]),
        written("sentence_bert_config.json", {**TEXT_ONLY, **transformer}),
        written("config_sentence_transformers.json", {"model_type": kind}),
    )


def other_settings(**said: Any) -> Poison:
    return changed("tokenizer_config.json", **said)


FILES = [
    Case("weights-are-a-pointer", written(WEIGHTS, LFS), refused=[WEIGHTS, "git lfs pull"]),
    Case("config-is-a-pointer", written("config.json", LFS), refused=["config.json", "git lfs pull"]),
    Case("tokenizer-is-a-pointer", written("tokenizer.json", LFS), refused=["tokenizer.json", "git lfs pull"]),
    Case("weights-are-empty", written(WEIGHTS, b""), refused=[WEIGHTS, "is empty"]),
    Case("config-is-empty", written("config.json", b""), refused=["config.json", "is empty"]),
    Case("tokenizer-is-empty", written("tokenizer.json", b""), refused=["tokenizer.json", "is empty"]),
    Case("weights-are-cut-off", cut(WEIGHTS, 0.7), refused=[WEIGHTS, "cut off", "download it again"]),
    Case("header-is-cut-off", cut(WEIGHTS, 0.01), refused=[WEIGHTS, "cut off", "header"]),
    Case("weights-are-a-web-page", written(WEIGHTS, b"<html>" * 99), refused=[WEIGHTS, "not a safetensors file"]),
    Case("tokenizer-is-cut-off", cut("tokenizer.json", 0.5), refused=["tokenizer.json", "download or save it again"]),
    Case("config-is-no-json", written("config.json", b"model_type: bert"), refused=["config.json", "not valid JSON"]),
    Case("config-is-a-list", written("config.json", []), refused=["config.json", "not a JSON object"]),
    Case("config-is-nested", written("config.json", b"[" * 200_000), refused=["config.json", "not valid JSON"]),
    Case("config-is-utf-16", written("config.json", "{}".encode("utf-16")), refused=["config.json", "not valid JSON"]),
    Case("labels-are-a-list", changed("config.json", id2label=["a"]), refused=["config.json", "id2label", "object"]),
    Case("pad-is-a-text", changed("config.json", pad_token_id="[PAD]"), refused=["pad_token_id", "whole number"]),
    Case(
        "weights-are-pickled",
        renamed(WEIGHTS, "pytorch_model.bin"),
        refused=["pytorch_model.bin", "pickled", "save_pretrained"],
    ),
    Case("weights-are-for-llama-cpp", renamed(WEIGHTS, "model-q4.gguf"), refused=["model-q4.gguf", "llama.cpp"]),
    Case("weights-are-onnx", renamed(WEIGHTS, "model.onnx"), refused=["model.onnx", 'engine = "onnx"']),
    Case("weights-are-missing", removed(WEIGHTS), refused=["no weights in"]),
    Case("index-is-missing", renamed(WEIGHTS, "model-00001-of-00002.safetensors"), refused=["00001-of-00002", INDEX]),
    Case(
        "shard-is-missing",
        both(removed(WEIGHTS), written(INDEX, {"weight_map": {"a": "model-00001-of-00002.safetensors"}})),
        refused=[INDEX, "00001-of-00002", "download"],
    ),
    Case(
        "shard-is-a-pointer",
        both(written(INDEX, {"weight_map": {"a": "b.safetensors"}}), written("b.safetensors", LFS), removed(WEIGHTS)),
        refused=["b.safetensors", "git lfs pull"],
    ),
    Case(
        "adapter-alone",
        both(removed(WEIGHTS, "config.json"), written("adapter_config.json", {"base_model_name_or_path": "org/base"})),
        refused=["adapter (LoRA)", "org/base", "merge"],
    ),
    Case("graph-is-a-pointer", written("model.onnx", LFS), engine="onnx", refused=["model.onnx", "git lfs pull"]),
    Case("graph-is-empty", written("model.onnx", b""), engine="onnx", refused=["model.onnx", "is empty"]),
    Case(
        "graph-is-outside",
        lambda _: None,
        engine="onnx",
        model={"engine_options": {"file": "../model.onnx"}},
        refused=["../model.onnx", "inside"],
    ),
]
KINDS = [
    Case("embedding-model", changed("config.json", architectures=["BertModel"]), refused=["BertModel", "bi-encoder"]),
    Case(
        "language-model",
        changed("config.json", architectures=["Qwen3ForCausalLM"]),
        refused=["Qwen3ForCausalLM", "yes-no"],
    ),
    Case(
        "encoder-decoder",
        changed("config.json", architectures=["T5ForConditionalGeneration"]),
        refused=["T5", "encoder-decoder"],
    ),
    Case("splade", changed("config.json", architectures=["BertForMaskedLM"]), refused=["BertForMaskedLM", "SPLADE"]),
    Case("colbert", changed("config.json", architectures=["HF_ColBERT"]), refused=["HF_ColBERT", "ColBERT"]),
    Case("bi-encoder-of-modules", modules("Transformer", "Pooling", "Normalize"), refused=["Pooling", "bi-encoder"]),
    Case(
        "modular-cross-encoder",
        both(
            modules("Transformer", "Pooling", "Dense", "LayerNorm", "Dense"),
            written("config_sentence_transformers.json", {"model_type": "CrossEncoder"}),
        ),
        refused=["1_Pooling", "config.json"],
    ),
    Case(
        "modular-cross-encoder-with-other-modules",
        both(
            modules("Transformer", "Pooling", "Dense", "Normalize"),
            written("config_sentence_transformers.json", {"model_type": "CrossEncoder"}),
        ),
        refused=["Transformer -> Pooling -> Dense -> Normalize", "modular cross-encoder"],
    ),
    Case(
        "head-of-a-module-is-a-pointer",
        written("2_Dense/model.safetensors", LFS),
        base="modular",
        refused=["2_Dense", "git lfs pull"],
    ),
    Case(
        "head-of-a-module-is-missing",
        removed("2_Dense/model.safetensors"),
        base="modular",
        refused=["2_Dense", "not there"],
    ),
    Case(
        "activation-of-a-module-is-unknown",
        changed("2_Dense/config.json", activation_function="own.code.Wild"),
        base="modular",
        refused=["2_Dense", "own.code.Wild"],
    ),
    Case(
        "pooling-of-a-module-is-unknown",
        changed("1_Pooling/config.json", pooling_mode="attention"),
        base="modular",
        refused=["1_Pooling", "attention"],
    ),
    Case(
        "pooling-of-an-old-save",
        changed("1_Pooling/config.json", pooling_mode=..., pooling_mode_cls_token=True),
        base="modular",
    ),
    Case(
        "module-has-other-weights",
        lambda folder: shutil.copy(folder / "4_Dense/model.safetensors", folder / "2_Dense/model.safetensors"),
        base="modular",
        refused=["2_Dense", "does not fit"],
    ),
    Case(
        "modules-in-another-order",
        changed("2_Dense/config.json", module_output_name="scores"),
        base="modular",
        refused=["2_Dense", "'scores'"],
    ),
    Case("answer-tokens", modules("Transformer", "LogitScore"), refused=["LogitScore", "yes-no"]),
    Case("sparse-encoder", saved_as("SparseEncoder"), refused=["SparseEncoder", "SPLADE"]),
    Case(
        "module-elsewhere",
        written("modules.json", [{**TRANSFORMER, "path": "0_Transformer"}]),
        refused=["0_Transformer", "path"],
    ),
    Case(
        "code-of-its-own",
        changed("config.json", auto_map={"AutoModelForSequenceClassification": "modeling.Own"}),
        refused=["auto_map", "modeling.Own", "trust_remote_code"],
    ),
    Case(
        "code-elsewhere",
        changed("config.json", auto_map={"AutoModelForSequenceClassification": "org/code--modeling.Own"}),
        model={"trust_remote_code": True},
        refused=["org/code", "beside config.json"],
    ),
    Case(
        "tokenizer-code",
        other_settings(auto_map={"AutoTokenizer": ["t.Own", None]}),
        refused=["tokenizer_config.json", "t.Own"],
    ),
    Case(
        "second-head",
        tensors(lambda all_: {**all_, "second.weight": np.ones((2, 2), np.float32)}),
        refused=["second.weight"],
    ),
    Case(
        "no-head",
        tensors(lambda all_: {k: v for k, v in all_.items() if "classifier" not in k}),
        refused=["classifier"],
    ),
    Case("left-over-pretraining", tensors(lambda all_: {**all_, "cls.predictions.bias": np.ones(3, np.float32)})),
    Case(
        "nothing-between-in-an-encoder",
        tokenizer_json(lambda content: content.update(post_processor=None)),
        refused=["tokenizer.json puts nothing between", "post_processor"],
    ),
    Case(
        "another-models-tokenizer",
        changed("config.json", vocab_size=40),
        refused=["tokenizer.json", "vocab_size = 40", "another model"],
    ),
    Case(
        "more-labels-than-the-head",
        changed("config.json", id2label={"0": "a", "1": "b"}),
        model={"options": {"label": 1}},
        refused=["classifier"],
    ),
    Case(
        "longer-than-the-graph",
        both(
            removed("golden.json"),
            changed("config.json", max_position_embeddings=512),
            changed("tokenizer_config.json", model_max_length=512),
        ),
        base="bert-onnx",
        engine="onnx",
        model={"engine_options": {"file": "model.onnx"}},
        refused=["512 tokens", "failed"],
    ),
    Case("no-model-type", changed("config.json", model_type=...), refused=["model_type"]),
]
READING = [
    Case(
        "roles",
        lambda f: (f / "chat_template.jinja").write_text(ROLES),
        base="qwen3-classifier",
        refused=["chat_template.jinja", "pairs"],
    ),
    Case(
        "roles-in-the-config",
        other_settings(chat_template=ROLES),
        base="qwen3-classifier",
        refused=["chat_template", "pairs"],
    ),
    Case(
        "roles-of-an-encoder", lambda f: (f / "chat_template.jinja").write_text(ROLES), refused=["chat_template.jinja"]
    ),
    Case(
        "roles-saved",
        both(
            saved_as("CrossEncoder", modality_config={**TEXT_ONLY["modality_config"], "message": {}}),
            lambda f: (f / "chat_template.jinja").write_text(ROLES),
        ),
        refused=["modality_config"],
    ),
    Case("nothing-between", lambda _: None, base="qwen3-classifier", refused=["nothing between", 'pairs = "plain"']),
    Case("plain-pairs", lambda _: None, base="qwen3-classifier", model={"options": {"pairs": "plain"}}),
    Case(
        "no-pad-in-the-config",
        changed("config.json", pad_token_id=None),
        base="qwen3-classifier",
        model={"options": {"pairs": "plain"}},
    ),
    Case(
        "no-pad-at-all",
        both(changed("config.json", pad_token_id=None), other_settings(pad_token=...)),
        base="qwen3-classifier",
        model={"options": {"pairs": "plain"}},
        refused=["padding token", "pad_token"],
    ),
    Case("saved-by-sentence-transformers", saved_as("CrossEncoder")),
    Case("shorter", saved_as("CrossEncoder", max_seq_length=96)),
    Case("lower-case-first", both(saved_as("CrossEncoder", do_lower_case=True)), base="modernbert"),
    Case(
        "text-options",
        saved_as("CrossEncoder", processing_kwargs={"text": {"max_length": 9}}),
        refused=["processing_kwargs"],
    ),
    Case("unknown-key", saved_as("CrossEncoder", mirror=True), refused=["sentence_bert_config.json", "mirror"]),
    Case(
        "default-prompt",
        both(
            saved_as("CrossEncoder"),
            changed("config_sentence_transformers.json", prompts={"a": "Judge: "}, default_prompt_name="a"),
        ),
        refused=["default prompt 'a'"],
    ),
    Case(
        "cut-left-by-the-tokenizer",
        tokenizer_json(
            lambda content: content.update(
                truncation={"direction": "Left", "max_length": 128, "strategy": "LongestFirst", "stride": 0}
            )
        ),
        refused=["truncation.direction", "left"],
    ),
    Case("cut-left", other_settings(truncation_side="left"), refused=["truncation_side", "left"]),
    Case("cased", other_settings(**BERT, do_lower_case=False)),
    Case("usual-case", both(other_settings(**BERT), tokenizer_json(lambda t: t["normalizer"].update(lowercase=False)))),
    Case("accents", other_settings(**BERT, do_lower_case=True, strip_accents=False)),
    Case("chinese", other_settings(**BERT, do_lower_case=True, tokenize_chinese_chars=False)),
    Case("case-of-a-plain-class", other_settings(do_lower_case=False)),
    Case(
        "other-normaliser",
        both(
            other_settings(**BERT, do_lower_case=True), tokenizer_json(lambda t: t.update(normalizer={"type": "NFC"}))
        ),
        refused=["do_lower_case", "tokenizer.json"],
    ),
    Case(
        "prefix-space",
        other_settings(add_prefix_space=True, **ROBERTA, bos_token="[CLS]", eos_token="[SEP]"),
        base="roberta",
    ),
    Case(
        "no-prefix-space",
        both(
            other_settings(**ROBERTA, bos_token="[CLS]", eos_token="[SEP]"),
            tokenizer_json(lambda t: t["pre_tokenizer"].update(add_prefix_space=True)),
        ),
        base="roberta",
    ),
    Case(
        "deberta-case",
        other_settings(tokenizer_class="DebertaV2Tokenizer", do_lower_case=True),
        base="deberta",
        refused=["do_lower_case"],
    ),
    Case("split-specials", other_settings(split_special_tokens=True)),
    Case(
        "other-ids",
        other_settings(added_tokens_decoder={"9": {"content": "[SEP]", "special": True}}),
        refused=["'[SEP]'", "id 9"],
    ),
    Case("other-first-token", other_settings(**BERT, cls_token="[MASK]"), refused=["cls_token", "[MASK]"]),
    Case("no-such-token", other_settings(sep_token="<sep>"), refused=["sep_token", "<sep>"]),
    Case("first-token-switched-off", other_settings(add_bos_token=False, bos_token="[CLS]"), refused=["add_bos_token"]),
]
# A language model with answer tokens, whose prompt is its chat template.
AUTO = {"scorer": "auto", "engine": "auto"}
PROMPTS = [
    Case("judge", lambda _: None, base="judge", model=AUTO),
    Case(
        "judge-without-its-template",
        removed("chat_template.jinja"),
        base="judge",
        model=AUTO,
        refused=["no chat template"],
    ),
    Case(
        "judge-with-a-chat-models-template",
        written("chat_template.jinja", b"{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"),
        base="judge",
        model=AUTO,
        refused=["chat_template.jinja", "roles"],
    ),
    Case(
        "judge-that-cuts-its-texts",
        written("chat_template.jinja", b"{% for m in messages %}{{ m.content[:40] }}|{% endfor %}"),
        base="judge",
        model=AUTO,
        refused=["chat_template.jinja", "changes the texts"],
    ),
    Case(
        "judge-with-another-ending",
        changed("sentence_bert_config.json", processing_kwargs={"chat_template": {"ending": " so?"}}),
        base="judge",
        model=AUTO,
    ),
    Case(
        "judge-with-options-for-texts",
        changed("sentence_bert_config.json", processing_kwargs={"text": {"max_length": 9}}),
        base="judge",
        model=AUTO,
        refused=["processing_kwargs"],
    ),
    Case(
        "judge-with-an-instruction",
        changed("config_sentence_transformers.json", prompts={"a": "Judge."}, default_prompt_name="a"),
        base="judge",
        model=AUTO,
    ),
    Case(
        "judge-of-raw-logits",
        changed("config_sentence_transformers.json", activation_fn="torch.nn.modules.linear.Identity"),
        base="judge",
        model=AUTO,
    ),
    Case(
        "judge-of-one-token",
        changed("1_LogitScore/config.json", false_token_id=None),
        base="judge",
        model=AUTO,
    ),
    Case(
        "judge-of-a-token-that-is-none",
        changed("1_LogitScore/config.json", true_token_id=10**6),
        base="judge",
        model=AUTO,
        refused=["1000000"],
    ),
]
# Models of their authors' own code.
OWN_CODE = [
    Case(
        "gte-with-scaled-attention",
        changed("config.json", logn_attention_scale=True),
        base="gte",
        refused=["logn_attention_scale is True", "only False is computed"],
    ),
    Case(
        "jina-v3-without-its-projector",
        tensors(lambda all_of: {name: one for name, one in all_of.items() if not name.startswith("projector")}),
        base="jina-v3",
        model=AUTO,
        refused=["no projector that fits"],
    ),
    Case(
        "jina-v3-without-its-window",
        changed("config.json", layer_types=["sliding_attention", "full_attention"]),
        base="jina-v3",
        model=AUTO,
        refused=["layer_types", "use_sliding_window"],
    ),
    Case(
        "jina-v3-as-a-language-model",
        lambda _: None,
        base="jina-v3",
        engine="torch-causal",
        model={"scorer": "yes-no", "options": {"template": "qwen3-reranker"}},
        refused=["JinaForRanking", "needs a causal language model"],
    ),
]
ALL = [*FILES, *KINDS, *READING, *PROMPTS, *OWN_CODE]


async def test_the_outputs_of_several_labels_mean_what_the_config_says(
    built: Callable[..., Path], torch_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    import torch  # noqa: PLC0415 - only slow tests have torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: PLC0415

    torch_folder("bert")  # torch on one thread
    source = built("bert-3-torch", lambda folder: build_bert(folder, num_labels=3))
    tokens = AutoTokenizer.from_pretrained(source)([QUERY] * len(DOCUMENTS), DOCUMENTS, padding=True, truncation=True,
                                                   max_length=MAX_LENGTH, return_tensors="pt")  # fmt: skip
    with torch.inference_mode():
        logits = AutoModelForSequenceClassification.from_pretrained(source)(**tokens).logits
    meanings = {
        "single_label_classification": logits.softmax(dim=-1)[:, 1],
        "multi_label_classification": logits.sigmoid()[:, 1],
        "regression": logits[:, 1],
    }
    orders = set()
    for problem, expected in meanings.items():
        folder = Path(shutil.copytree(source, tmp_path / problem / "model"))
        changed("config.json", problem_type=problem)(folder)
        case = Case(problem, lambda _: None, model={"options": {"label": 1}})
        scores = await _serve(folder, case, folder.parent)
        assert not isinstance(scores, str), scores
        np.testing.assert_allclose(scores, expected.numpy(), atol=TOLERANCE)
        orders.add(tuple(np.argsort(-expected.numpy())))
    assert len(orders) > 1
    changed("config.json", problem_type="ranking")(folder)
    assert "problem_type" in str(await _serve(folder, case, folder.parent))


async def test_an_embedding_models_graph_is_no_head_of_many_labels(tiny_model: Path, tmp_path: Path) -> None:
    import onnx  # noqa: PLC0415 - only here
    from onnx import helper  # noqa: PLC0415

    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    graph = onnx.load(folder / "model.onnx")
    logits = graph.graph.output[0].name
    graph.graph.node.append(helper.make_node("Concat", [logits] * 32, ["sentence_embedding"], axis=1))
    del graph.graph.output[:]
    graph.graph.output.append(helper.make_tensor_value_info("sentence_embedding", onnx.TensorProto.FLOAT, ["b", 32]))
    onnx.save(graph, folder / "model.onnx")
    changed("config.json", id2label=..., num_labels=...)(folder)
    case = Case("embedding-graph", lambda _: None, engine="onnx", model={"options": {"label": 1}})
    reason = str(await _serve(folder, case, tmp_path))
    assert "32 outputs" in reason
    assert "embedding model" in reason


def build_qwen3_classifier(folder: Path) -> None:
    """A decoder with a classifier's head."""
    from transformers import Qwen3Config, Qwen3ForSequenceClassification  # noqa: PLC0415 - only slow tests have torch

    from tests.tiny_causal import QWEN_MARKUP, byte_level_tokenizer  # noqa: PLC0415
    from tests.tiny_models import _save_model, _save_tokenizer  # noqa: PLC0415

    tokenizer = byte_level_tokenizer(QWEN_MARKUP)
    _save_tokenizer(tokenizer, folder, pad="<|endoftext|>", inputs=("input_ids", "attention_mask"))
    config = Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=MAX_LENGTH * 2,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        initializer_range=0.3,
        pad_token_id=tokenizer.token_to_id("<|endoftext|>"),
        num_labels=1,
    )
    _save_model(Qwen3ForSequenceClassification, config, folder)


def build_modular(folder: Path, *, pooling: str = "cls", residual: bool = False) -> None:
    """An encoder and its head in modules, as sentence-transformers saves them."""
    import torch  # noqa: PLC0415 - only slow tests have torch
    from sentence_transformers import CrossEncoder  # noqa: PLC0415
    from sentence_transformers.base.modules import Dense, Transformer  # noqa: PLC0415
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling  # noqa: PLC0415
    from transformers import ModernBertModel  # noqa: PLC0415

    from tests.tiny_models import build_modernbert  # noqa: PLC0415

    plain = build_modernbert(folder / "plain")
    ModernBertModel.from_pretrained(plain).save_pretrained(plain)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        chain = [
            Transformer(str(plain), transformer_task="feature-extraction"),
            Pooling(32, pooling_mode=pooling),
            Dense(32, 32, bias=False, activation_function=torch.nn.GELU(), use_residual=residual),
            LayerNorm(32),
            Dense(32, 1, activation_function=torch.nn.Identity(), module_output_name="scores"),
        ]
    encoder = CrossEncoder(modules=chain, device="cpu", activation_fn=torch.nn.Identity())
    encoder.save(str(folder))
    shutil.rmtree(plain)


def build_roberta(folder: Path) -> None:
    """Byte-level BPE, `[CLS] a [SEP] [SEP] b [SEP]`."""
    from tokenizers import processors  # noqa: PLC0415
    from transformers import RobertaConfig, RobertaForSequenceClassification  # noqa: PLC0415 - only slow tests have torch

    from tests.tiny_models import _SIZES, _save_model, _save_tokenizer, byte_level_tokenizer  # noqa: PLC0415

    tokenizer = byte_level_tokenizer()
    cls_id, sep_id, pad_id = (tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]", "[PAD]"))
    tokenizer.post_processor = processors.RobertaProcessing(("[SEP]", sep_id), ("[CLS]", cls_id), True, False)
    _save_tokenizer(tokenizer, folder, pad="[PAD]", inputs=("input_ids", "attention_mask"))
    config = RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=MAX_LENGTH + pad_id + 1,
        type_vocab_size=1,
        pad_token_id=pad_id,
        bos_token_id=cls_id,
        eos_token_id=sep_id,
        num_labels=1,
        **_SIZES,
    )
    _save_model(RobertaForSequenceClassification, config, folder)


@pytest.fixture(scope="session")
def healthy(torch_folder: Callable[[str], Path], built: Callable[..., Path]) -> Callable[[str], Path]:
    from tests.integration.test_families import judge  # noqa: PLC0415 - it imports this file

    others: dict[str, Callable[[Path], object]] = {
        "judge": judge(),
        "bert-onnx": lambda folder: shutil.copytree(TINY_BERT, folder, dirs_exist_ok=True),
        "qwen3-classifier": build_qwen3_classifier,
        "modular": build_modular,
        "roberta": build_roberta,
        "gte": build_gte,
        "jina-v3": build_jina_v3,
    }
    return lambda base: built(f"{base}-torch", others[base]) if base in others else torch_folder(base)


def test_there_are_many() -> None:
    assert len(ALL) >= 60
    assert len({case.name for case in ALL}) == len(ALL)


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
async def test_a_poisoned_folder_is_refused_by_name_or_scored_right(
    case: Case, healthy: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(healthy(case.base), tmp_path / "model"))
    case.poison(folder)
    outcome = await _serve(folder, case, tmp_path)
    if case.refused:
        assert isinstance(outcome, str), f"it was served, with {outcome}"
        assert [said for said in case.refused if said not in outcome] == [], outcome
    else:
        assert not isinstance(outcome, str), outcome
        np.testing.assert_allclose(outcome, _expected(folder), atol=TOLERANCE)


async def _serve(folder: Path, case: Case, tmp_path: Path) -> FloatArray | str:
    """Relevance scores in the order of the documents, or why there are none."""
    registry = write_registry(tmp_path, [{"name": "m", "path": folder, "engine": case.engine, **case.model}])
    async with running_service(Settings(registry=registry, cache_url="none://"), Silent()) as service:
        try:
            await service.model_named("m").settled()
        except ModelNotReady:
            return service.model_named("m").reason
        result = await service.rerank(RerankRequest(query=QUERY, documents=DOCUMENTS))
    scores = np.zeros(len(DOCUMENTS), dtype=np.float32)
    for one in result.results:
        scores[one.index] = one.relevance_score
    return scores


def _expected(folder: Path) -> FloatArray:
    from sentence_transformers import CrossEncoder  # noqa: PLC0415 - imports torch

    encoder = CrossEncoder(str(folder), device="cpu")
    # One by one: padding must not be what both agree in.
    scores = [encoder.predict([(QUERY, text)], show_progress_bar=False)[0] for text in DOCUMENTS]
    return np.asarray(scores, dtype=np.float32)
