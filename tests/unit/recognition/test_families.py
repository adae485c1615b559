"""What a folder is, by its small files alone: each family is recognised, or refused with what to use instead."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rerankd.engines import ENGINES
from rerankd.recognition.families import FAMILIES, recognise
from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.recognised import TASK_ENGINES, Asked, Recognised, Refused
from rerankd.scorers import BLOCK_SCORERS, COMPARISON_SCORERS, GROUP_SCORERS, LIST_SCORERS, SCORERS, VECTOR_SCORERS
from rerankd.scorers.templates import known_templates
from tests.tokenizer_folders import SHIPPED_TEMPLATES

TEMPLATES = known_templates([SHIPPED_TEMPLATES])
OWN_CODE = {"AutoModelForSequenceClassification": "modeling.Own"}
ROLES = "".join(
    "{% for m in messages if m.role == '" + role + "' %}{{ m.content }}\n{% endfor %}" for role in ("query", "document")
)
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}"
NEMOTRON = "nvidia/llama-nemotron-rerank-1b-v2"
REWARD = "reward models, which judge how helpful an answer is and not whether a document is relevant"
CHAIN = "sentence_transformers.models."


@dataclass(frozen=True)
class Case:
    """A folder by its config.json, the hub's name and further JSON files, and the family that it is of."""

    family: str
    config: Mapping[str, Any]
    repository: str = ""
    files: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def classifier(kind: str, model_type: str, **config: Any) -> dict[str, Any]:
    return {
        "architectures": [f"{kind}ForSequenceClassification"],
        "model_type": model_type,
        "id2label": {"0": "LABEL_0"},
        "max_position_embeddings": 512,
        **config,
    }


def language_model(kind: str = "Qwen3") -> dict[str, Any]:
    return {"architectures": [f"{kind}ForCausalLM"], "model_type": kind.lower(), "max_position_embeddings": 40_960}


def saved_as(kind: str, *modules: str) -> dict[str, Any]:
    chain = [
        {"idx": place, "name": str(place), "path": f"{place}_{name}" if place else "", "type": f"{CHAIN}{name}"}
        for place, name in enumerate(modules)
    ]
    return {"modules.json": chain, "config_sentence_transformers.json": {"model_type": kind}}


COST_WISE = {
    "architectures": ["CostWiseGemmaForCausalLM"],
    "model_type": "cost_wise_gemma",
    "layer_wise": True,
    "start_layer": 8,
    "layer_sep": 1,
    "num_hidden_layers": 42,
}
T5 = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}
MT5 = {"architectures": ["MT5ForConditionalGeneration"], "model_type": "mt5"}
JINA_M0 = {"architectures": ["JinaVLForRanking"], "model_type": "qwen2_vl"}
SERVED = [
    Case("BERT and ELECTRA cross-encoders", classifier("Bert", "bert")),
    Case("BERT and ELECTRA cross-encoders", classifier("Electra", "electra")),
    Case("RoBERTa and XLM-RoBERTa cross-encoders", classifier("XLMRoberta", "xlm-roberta")),
    Case("DeBERTa cross-encoders", classifier("DebertaV2", "deberta-v2")),
    Case("ModernBERT cross-encoders", classifier("ModernBert", "modernbert")),
    Case("other encoders of transformers with a classifier's head", classifier("Camembert", "camembert")),
    Case("monoBERT", classifier("Bert", "bert", id2label={"0": "a", "1": "b"}), "castorini/monobert-large-msmarco"),
    Case(
        "jina-reranker-v1",
        classifier("JinaBert", "bert", position_embedding_type="alibi", auto_map=OWN_CODE),
        files={"onnx/model.onnx": {}},
    ),
    Case("jina-reranker-v2", {**classifier("XLMRoberta", ""), "model_type": None}),
    Case("gte-multilingual-reranker", classifier("New", "new", auto_map=OWN_CODE)),
    Case("Provence", classifier("Provence", "Provence")),
    Case("XProvence", classifier("XProvence", "XProvence")),
    Case(
        "XProvence",
        {**classifier("", "xlm-roberta"), "architectures": ["XProvence"]},
    ),
    Case(
        "graphs with golden pairs, as `rerankd export` writes them",
        {"architectures": ["OwnCrossEncoder"], "model_type": "bert", "id2label": {"0": "a"}},
        files={"golden.json": {}, "model.int8.onnx": {}},
    ),
    Case(
        "language models with a classifier's head, trained on plain pairs",
        classifier("Qwen3", "qwen3"),
        options={"pairs": "plain"},
    ),
    Case("Qwen3-Reranker", language_model(), "Qwen/Qwen3-Reranker-0.6B"),
    Case("Qwen3-Reranker", language_model(), options={"template": "qwen3-reranker"}),
    Case("mxbai-rerank-v2", language_model("Qwen2"), "mixedbread-ai/mxbai-rerank-base-v2"),
    Case("bge-reranker-v2-gemma", language_model("Gemma"), "BAAI/bge-reranker-v2-gemma"),
    Case("zerank", language_model(), "zeroentropy/zerank-2"),
    Case("ctxl-rerank-v2", language_model(), "ContextualAI/ctxl-rerank-v2-instruct-multilingual-1b"),
    Case(
        "language models with a classifier's head and a prompt",
        classifier("Qwen3", "qwen3"),
        "tomaarsen/Qwen3-Reranker-0.6B-seq-cls",
    ),
    Case("nemotron rerankers", classifier("LlamaBidirectional", "llama_bidirec", auto_map=OWN_CODE), NEMOTRON),
    Case(
        "nemotron rerankers",
        classifier("LlamaBidirectional", "llama_bidirec"),
        options={"template": "nemotron-rerank"},
    ),
    Case(
        REWARD,
        classifier("Qwen3", "qwen3"),
        "Skywork/Skywork-Reward-V2-Qwen3-0.6B",
        files={"tokenizer_config.json": {"chat_template": CHAT}},
    ),
    Case(
        "judges with a chat template of their own",
        language_model(),
        files={"tokenizer_config.json": {"chat_template": ROLES}},
    ),
    Case("jina-reranker-v3", {"architectures": ["JinaForRanking"], "model_type": "qwen3"}),
    Case(
        "Qwen3-VL-Reranker",
        {"architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl"},
        "Qwen/Qwen3-VL-Reranker-2B",
    ),
    Case("jina-reranker-m0", JINA_M0),
    Case(
        "MonoQwen2-VL",
        {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl"},
        "lightonai/MonoQwen2-VL-v0.1",
    ),
    Case("FIRST", language_model("Mistral"), "castorini/first_mistral"),
    Case("RankZephyr", language_model("Mistral"), "castorini/rank_zephyr_7b_v1_full"),
    Case("Rank-R1", language_model("Qwen2"), "ielabgroup/Rank-R1-7B-v0.1"),
    Case(
        "RM-R1, which chooses the best of several answers",
        language_model("Qwen2"),
        "gaotang/RM-R1-Qwen2.5-Instruct-14B",
    ),
    Case(
        "RM-R1, which chooses the best of several answers",
        language_model("Qwen2"),
        "gaotang/RM-R1-DeepSeek-Distilled-Qwen-14B",
    ),
    Case("RankVicuna", language_model("Llama"), "castorini/rank_vicuna_7b_v1"),
    Case("ReasonRank", language_model("Qwen2"), "liuwenhan/reasonrank-32B"),
    Case("Rank-K, greedily", language_model("Qwen2"), "hltcoe/Rank-K-32B"),
    Case("Rank1", language_model("Qwen2"), "jhu-clsp/rank1-0.5b"),
    Case("ERank", language_model("Qwen3"), "Alibaba-NLP/ERank-4B"),
    Case("Retro*", language_model("Qwen3"), "ljw13/retro-star-qwen3-8b-0928"),
    Case("GroupRank", language_model("Qwen2"), "AQ-MedAI/Diver-GroupRank-32B"),
    Case("monoT5 and InRanker", T5, "castorini/monot5-3b-msmarco-10k"),
    Case("monoT5 and InRanker", T5, options={"template": "monot5"}),
    Case("mT5 on mMARCO", MT5, "unicamp-dl/mt5-base-en-pt-msmarco-v1"),
    Case("mT5 on mMARCO", MT5, "unicamp-dl/mt5-3B-mmarco-en-pt"),
    Case("PTT5 and monoPTT5 (Portuguese)", T5, "unicamp-dl/monoptt5-3b"),
    Case("layer-wise rerankers", COST_WISE),
    Case("duoT5", T5, "castorini/duot5-base-msmarco"),
    Case("RankT5 in PyTorch", T5, "Soyoung97/RankT5-large"),
]
_EMBEDDER: Mapping[str, Any] = {
    "config": {"architectures": ["BertModel"], "model_type": "bert"},
    "files": {
        **saved_as("SentenceTransformer", "Transformer", "Pooling", "Normalize"),
        "1_Pooling/config.json": {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True},
    },
}
MODULES = {
    "sentence_bert_config.json": {"transformer_task": "feature-extraction"},
    "1_Pooling/config.json": {"pooling_mode": "cls"},
    "2_Dense/config.json": {"in_features": 8, "out_features": 1, "module_output_name": "scores"},
}
SERVED += [
    Case(
        "modular cross-encoders (ettin)",
        {"architectures": ["ModernBertModel"], "model_type": "modernbert"},
        files={**saved_as("CrossEncoder", "Transformer", "Pooling", "Dense"), **MODULES},
    ),
    Case("ColBERT (Stanford's layout)", {"architectures": ["HF_ColBERT"], "model_type": "bert", "hidden_size": 8}),
    Case(
        "ColBERT (PyLate's layout, MultiVectorEncoder)",
        {"architectures": ["ModernBertModel"], "model_type": "modernbert"},
        files={
            **saved_as("ColBERT", "Transformer", "Dense"),
            "1_Dense/config.json": {
                "in_features": 8,
                "out_features": 4,
                "activation_function": "torch.nn.modules.linear.Identity",
            },
        },
    ),
    Case("E2Rank", language_model(), "Alibaba-NLP/E2Rank-0.6B"),
    Case("SPLADE", {"architectures": ["BertForMaskedLM"], "model_type": "bert"}, "naver/splade-v3"),
    Case(
        "SPLADE",
        {"architectures": ["BertForMaskedLM"], "model_type": "bert"},
        files={
            **saved_as("SparseEncoder", "MLMTransformer", "SpladePooling"),
            "1_SpladePooling/config.json": {"pooling_strategy": "max"},
            "sentence_bert_config.json": {"max_seq_length": 256, "do_lower_case": False},
        },
    ),
    Case("embedding models (bi-encoders)", **_EMBEDDER),
    Case("embedding models (bi-encoders)", language_model(), "Qwen/Qwen3-Embedding-0.6B", files=_EMBEDDER["files"]),
    Case(
        "embedding models (bi-encoders)",
        **_EMBEDDER,
        repository="intfloat/e5-base-v2",
        options={"query_prompt": "query: ", "document_prompt": "passage: "},
    ),
]
REFUSED = [
    Case("gte-multilingual-reranker", classifier("New", "new", logn_attention_scale=True)),
    Case("gte-multilingual-reranker", classifier("New", "new", pack_qkv=False)),
    Case("gte-multilingual-reranker", classifier("New", "new", rope_scaling={"type": "dynamic", "factor": 2.0})),
    Case("jina-reranker-v2", classifier("XLMRoberta", "", position_embedding_type="rotary")),
    Case("other rerankers of NVIDIA", classifier("MistralBidirectional", "mistral_bidirec")),
    Case(
        "language models with a classifier's head, trained on plain pairs",
        classifier("LlamaBidirectional", "llama_bidirec"),
    ),
    Case("nemotron rerankers", classifier("LlamaBidirectional", "llama_bidirec", pooling="attention"), NEMOTRON),
    Case("nemotron rerankers", classifier("LlamaBidirectional", "llama_bidirec", temperature=0), NEMOTRON),
    Case(REWARD, classifier("Qwen3", "qwen3"), "Skywork/Skywork-Reward-V2-Qwen3-0.6B"),
    Case(
        "modular cross-encoders (ettin)",
        {"architectures": ["ModernBertModel"], "model_type": "modernbert"},
        files=saved_as("CrossEncoder", "Transformer", "Pooling", "WordWeights", "Dense"),
    ),
    Case("language models with a classifier's head, trained on plain pairs", classifier("Qwen3", "qwen3")),
    Case("jina-reranker-v3", {"architectures": ["JinaForRanking"], "model_type": "qwen2"}),
    Case("MonoQwen2-VL", {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl"}),
    Case(
        "jina-reranker-m0",
        {"architectures": ["JinaVLForRanking"], "model_type": "qwen2_vl"},
        options={"template": "mine"},
    ),
    Case("other language models", language_model("Qwen2"), "jinaai/jina-reranker-m0"),
    Case(
        "other models of several media",
        {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl"},
    ),
    Case(
        "Qwen3-VL-Reranker",
        {"architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl"},
    ),
    Case("layer-wise rerankers", language_model("MiniCPM"), "BAAI/bge-reranker-v2-minicpm-layerwise"),
    Case("layer-wise rerankers", {**COST_WISE, "layer_wise": False}),
    Case("layer-wise rerankers", {**COST_WISE, "start_layer": None}),
    Case("layer-wise rerankers", {"architectures": ["CostWiseQwenForCausalLM"], "model_type": "qwen3"}),
    Case("other language models", language_model(), options={"template": "nemotron-rerank"}),
    Case("other language models", language_model()),
    Case(
        "ColBERT (PyLate's layout, MultiVectorEncoder)",
        {"architectures": ["ModernBertModel"], "model_type": "modernbert"},
        files=saved_as("ColBERT", "Transformer", "Dense", "HierarchicalTokenPooling"),
    ),
    Case(
        "SPLADE",
        {"architectures": ["BertForMaskedLM"], "model_type": "bert"},
        files=saved_as("SparseEncoder", "Router"),
    ),
    Case(
        "embedding models (bi-encoders)",
        {"architectures": ["BertModel"], "model_type": "bert"},
        files=saved_as("SentenceTransformer", "Transformer", "Pooling", "WordWeights"),
    ),
    Case("embedding models (bi-encoders)", **_EMBEDDER, repository="intfloat/e5-base-v2"),
    Case(
        "embedding models (bi-encoders)",
        {"architectures": ["T5EncoderModel"], "model_type": "t5", "is_encoder_decoder": True},
        files=_EMBEDDER["files"],
    ),
    Case(
        "embedding models (bi-encoders)",
        _EMBEDDER["config"],
        files={**_EMBEDDER["files"], "config_sentence_transformers.json": {"prompts": {"clustering": "topic: "}}},
    ),
    Case(
        "embedding models (bi-encoders)",
        _EMBEDDER["config"],
        files={**_EMBEDDER["files"], "config_sentence_transformers.json": {"similarity_fn_name": "hamming"}},
    ),
    Case("embedding models (bi-encoders)", {"architectures": ["BertModel"], "model_type": "bert"}),
    Case("masked and pretrained models", {"architectures": ["BertForMaskedLM"], "model_type": "bert"}),
    Case("LiT5, ListT5 and other models that fuse in the decoder", T5, "Soyoung97/ListT5-base"),
    Case("other encoder-decoders", T5),
    Case("monoT5 and InRanker", T5, "castorini/monot5-base-msmarco", files={"spiece.model": {}}),
    Case("other encoder-decoders", T5, "google/flan-t5-base"),
    Case("other encoder-decoders", {"architectures": ["UMT5ForConditionalGeneration"], "model_type": "umt5"}),
    Case("", {"architectures": ["SomethingNew"], "model_type": "novel"}),
]
# They are no folders.
SERVICES = {name for name in (family.name for family in FAMILIES) if "Cohere" in name or "GGUF" in name}


def recognised(case: Case, folder: Path) -> Recognised | Refused:
    for name, content in {"config.json": case.config, **case.files}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    files = ModelFiles.read(folder, repository=case.repository)
    return recognise(files, Asked(options=case.options, templates=TEMPLATES))


@pytest.mark.parametrize("case", SERVED, ids=lambda case: case.family)
def test_a_family_that_is_served_is_recognised(case: Case, tmp_path: Path) -> None:
    found = recognised(case, tmp_path)
    assert isinstance(found, Recognised), str(found)
    assert found.family == case.family
    assert found.scorer in {
        *SCORERS,
        *LIST_SCORERS,
        *GROUP_SCORERS,
        *VECTOR_SCORERS,
        *BLOCK_SCORERS,
        *COMPARISON_SCORERS,
    }
    assert found.engines
    assert found.evidence
    assert not any("name ''" in evidence.says for evidence in found.evidence)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.family or "unknown")
def test_a_family_that_is_not_served_is_refused_with_a_way_out(case: Case, tmp_path: Path) -> None:
    found = recognised(case, tmp_path)
    assert isinstance(found, Refused), str(found)
    assert found.family == case.family
    assert [word for word in ("use ", "serve", "name", "options") if word in str(found)]


def test_every_family_is_recognised_by_a_test() -> None:
    tested = {case.family for case in (*SERVED, *REFUSED)}
    own = {f"{kind} with a template of your own" for kind in ("language models", "encoder-decoders")}
    assert {family.name for family in FAMILIES} - tested - SERVICES == own


def test_a_refused_family_says_what_to_use_instead() -> None:
    for family in FAMILIES:
        assert bool(family.oracle) != bool(family.refused), family.name
        assert all(family.refused or ["no refusal"]), family.name


@pytest.mark.parametrize(("task", "engines"), TASK_ENGINES.items())
def test_the_engines_of_a_task_are_those_that_run_it(task: str, engines: Sequence[str]) -> None:
    assert set(engines) == {name for name, kind in ENGINES.items() if task in kind.tasks}


def test_the_length_is_the_smallest_that_a_file_names(tmp_path: Path) -> None:
    config = classifier("XLMRoberta", "xlm-roberta", max_position_embeddings=514, pad_token_id=1)
    case = Case("", config, files={"tokenizer_config.json": {"model_max_length": 8192}})
    found = recognised(case, tmp_path)
    assert isinstance(found, Recognised)
    assert found.max_length == 512


def test_an_authors_own_class_is_served_by_its_graph_alone(tmp_path: Path) -> None:
    config = classifier("Bert", "bert", auto_map={"AutoModelForSequenceClassification": "modeling.Own"})
    assert "modeling.Own" in str(recognised(Case("", config), tmp_path))
    found = recognised(Case("", config, files={"model.onnx": {}}), tmp_path)
    assert isinstance(found, Recognised)
    assert "torch-encoder" not in found.engines


@pytest.mark.parametrize(
    "config",
    [
        classifier("New", "new", logn_attention_scale=True),
        classifier("XLMRoberta", "", position_embedding_type="rotary"),
    ],
    ids=["gte", "jina-reranker-v2"],
)
def test_what_a_native_class_does_not_compute_is_served_by_its_graph_alone(
    config: dict[str, Any], tmp_path: Path
) -> None:
    found = recognised(Case("", config, files={"onnx/model.onnx": {}}), tmp_path)
    assert isinstance(found, Recognised), str(found)
    assert "torch-encoder" not in found.engines


def test_an_exported_language_model_is_no_classifier(tmp_path: Path) -> None:
    config = {"architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl"}
    files: dict[str, Any] = {"golden.json": {}, "parity.json": {}, "model.onnx": {}}
    found = recognised(Case("", config, files=files, options={"template": "qwen3-vl-reranker"}), tmp_path)
    assert isinstance(found, Recognised), str(found)
    assert found.scorer == "yes-no"


EXPORTED: dict[str, Any] = {"golden.json": {}, "parity.json": {}, "model.onnx": {}}


def export_file(scorer: str, **options: Any) -> dict[str, Any]:
    return {**EXPORTED, "rerankd.json": {"scorer": scorer, "options": options}}


def test_an_exported_folder_says_itself_how_it_is_served(tmp_path: Path) -> None:
    config = classifier("LlamaBidirectional", "llama_bidirec")
    files = export_file("prompted-classifier", template="nemotron-rerank")
    found = recognised(Case("", config, files=files), tmp_path)
    assert isinstance(found, Recognised), str(found)
    assert (found.family, found.template) == ("nemotron rerankers", "nemotron-rerank")
    assert found.evidence[-1].file == "rerankd.json"
    assert "onnx" in found.engines


def test_the_operators_options_win_over_those_of_an_export(tmp_path: Path) -> None:
    config = classifier("Bert", "bert", id2label={"0": "a", "1": "b"})
    files = export_file("cross-encoder", label=1)
    heads = []
    for place, options in enumerate(({}, {"label": 0})):
        (tmp_path / str(place)).mkdir()
        found = recognised(Case("", config, files=files, options=options), tmp_path / str(place))
        assert isinstance(found, Recognised), str(found)
        heads.append(found.options)
    assert heads == [{"label": 1}, {"label": 0}]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            {"scorer": "yes-no", "options": {}},
            "made for scorer 'yes-no'.*served with 'cross-encoder'.*export the model",
        ),
        ({"scorer": "cross-encoder"}, "says scorer, not scorer and options; export the model again"),
        ({"scorer": "cross-encoder", "options": []}, "options is .*must be an object"),
    ],
)
def test_an_export_of_something_else_is_refused(said: dict[str, Any], reason: str, tmp_path: Path) -> None:
    case = Case("", classifier("Bert", "bert"), files={**EXPORTED, "rerankd.json": said})
    found = recognised(case, tmp_path)
    assert isinstance(found, Refused)
    assert re.search(reason, str(found)), str(found)


@pytest.mark.parametrize("label", ["1", [1], 2])
def test_a_label_that_the_head_does_not_have_is_refused(label: object, tmp_path: Path) -> None:
    config = classifier("Bert", "bert", id2label={"0": "bad", "1": "good"})
    found = recognised(Case("", config, files=export_file("cross-encoder", label=label)), tmp_path)
    assert isinstance(found, Refused)
    assert "with N from 0 to 1" in str(found)


def test_a_modular_models_graph_is_only_served_if_it_is_our_export(tmp_path: Path) -> None:
    config = {"architectures": ["ModernBertModel"], "model_type": "modernbert"}
    dense = {"in_features": 8, "out_features": 1, "module_output_name": "scores"}
    said = {
        **saved_as("CrossEncoder", "Transformer", "Pooling", "Dense"),
        "1_Pooling/config.json": {"embedding_dimension": 8, "pooling_mode": "cls"},
        "2_Dense/config.json": {**dense, "activation_function": "torch.nn.modules.linear.Identity"},
    }
    for place, (files, engines) in enumerate(
        (({"onnx/model.onnx": {}}, {"torch-encoder"}), (EXPORTED, {"onnx", "openvino", "torch-encoder"}))
    ):
        (tmp_path / str(place)).mkdir()
        found = recognised(Case("", config, files={**said, **files}), tmp_path / str(place))
        assert isinstance(found, Recognised), str(found)
        assert set(found.engines) == engines


@pytest.mark.parametrize("kind", ["XProvence", ""])
def test_a_models_length_is_that_of_the_class_that_computes_it(kind: str, tmp_path: Path) -> None:
    config = classifier(kind or "XLMRoberta", kind, max_position_embeddings=1026, pad_token_id=1)
    found = recognised(Case("", config), tmp_path)
    assert isinstance(found, Recognised), str(found)
    assert found.max_length == 1024


@pytest.mark.parametrize(("named", "activation"), [("Identity", "identity"), ("Sigmoid", "sigmoid"), (None, "sigmoid")])
def test_a_judges_activation_is_its_files(tmp_path: Path, named: str | None, activation: str) -> None:
    said = {"activation_fn": f"torch.nn.modules.linear.{named}"} if named else {}
    files = {"config_sentence_transformers.json": said}
    found = recognised(Case("", language_model(), "Qwen/Qwen3-Reranker-4B", files), tmp_path)
    assert isinstance(found, Recognised)
    assert found.activation == activation


def test_a_downloaded_folder_is_known_by_its_repository(tmp_path: Path) -> None:
    folder = tmp_path / "models--Qwen--Qwen3-Reranker-0.6B" / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    found = recognised(Case("", language_model()), folder)
    assert isinstance(found, Recognised)
    assert found.template == "qwen3-reranker"
