"""What changes a score is part of cache keys: every option of every engine and scorer is, or is said not to matter."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from pydantic import BaseModel

from rerankd.config.registry import ModelSpec
from rerankd.config.settings import Settings
from rerankd.engines import ENGINES, load_engine
from rerankd.engines.base import EngineSpec
from rerankd.engines.fingerprint import WITHOUT_EFFECT, engine_fingerprint
from rerankd.engines.onnx.engine import OnnxOptions
from rerankd.engines.openvino import OpenVinoOptions
from rerankd.engines.remote.endpoint import EndpointOptions
from rerankd.engines.remote.service import ServiceOptions
from rerankd.scorers import (
    BLOCK_SCORERS,
    COMPARISON_SCORERS,
    GROUP_SCORERS,
    LIST_SCORERS,
    SCORERS,
    VECTOR_SCORERS,
    load_any_scorer,
    load_scorer,
)
from rerankd.scorers.attention import AttentionOptions
from rerankd.scorers.base import ScorerSpec
from rerankd.scorers.bi_encoder import BiEncoderOptions
from rerankd.scorers.cross_encoder import CrossEncoderOptions
from rerankd.scorers.first import FirstOptions
from rerankd.scorers.generative import GenerativeOptions
from rerankd.scorers.graded import GradedOptions
from rerankd.scorers.groupwise import GroupwiseOptions
from rerankd.scorers.last_but_not_late import LastButNotLateOptions
from rerankd.scorers.late_interaction import LateInteractionOptions
from rerankd.scorers.listwise_embedding import ListwiseEmbeddingOptions
from rerankd.scorers.pairwise import PairwiseOptions
from rerankd.scorers.prompted_classifier import PromptedClassifierOptions
from rerankd.scorers.pruning import PruningOptions
from rerankd.scorers.reasoning import ReasoningOptions
from rerankd.scorers.remote import RemoteOptions
from rerankd.scorers.splade import SpladeOptions
from rerankd.scorers.vision_language import VisionLanguageOptions
from rerankd.scorers.yes_no import YesNoOptions
from rerankd.serving.assembly import load_parts
from rerankd.tasks.encoding import Encoding
from tests.fakes import ArithmeticEngine
from tests.tiny_models import TINY_BERT
from tests.tokenizer_folders import SHIPPED_TEMPLATES, tokenizer_folder

# They count for the protocol `openai` alone.
_PROMPT: Final = ("system", "user", "instruction", "yes", "no")
# Two values of each option by scorer; a text instead: it changes no raw score, because of that.
_SCORER_OPTIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "cross-encoder": {
        "activation": "it maps raw scores, which are what is cached",
        "label": [1, 2],
        "pairs": "a model that can be loaded without it is read the same way with it",
    },
    "pruning": {
        "activation": "it maps raw scores, which are what is cached",
        "label": "its head has one output",
        "pairs": "a model that can be loaded without it is read the same way with it",
        "threshold": "what is cached are the tokens' probabilities, whatever they are compared with",
    },
    "yes-no": {
        "activation": "it maps raw scores, which are what is cached",
        "instruction": ["Judge.", "Judge well."],
        "ratings": [{"no": 0, "yes": 1}, {"no": 0, "yes": 2}],
        "template": ["qwen3-reranker", "mxbai-rerank-v2"],
    },
    "prompted-classifier": {
        "activation": "it maps raw scores, which are what is cached",
        "instruction": ["Judge.", "Judge well."],
        "label": [1, 2],
        "template": ["qwen3-reranker", "mxbai-rerank-v2"],
    },
    "first": {
        "depth": [50, 60],
        "identifiers": ["alphabetical", "numeric"],
        "read": ["bracket", "prompt"],
        "both_orders": [True, False],
        "rounds": [3, 4],
        "schedule": ["sliding", "tournament"],
        "settle": [3, 4],
        "stride": [2, 3],
        "template": ["first-qwen3", "first-qwen"],
        "window": [8, 9],
    },
    "attention": {
        "best_last": [True, False],
        "both_orders": [True, False],
        "depth": [50, 60],
        "identifiers": ["alphabetical", "numeric"],
        "rounds": [3, 4],
        "schedule": ["sliding", "tournament"],
        "settle": [3, 4],
        "stride": [2, 3],
        "template": ["icr-llama-3", "icr-mistral"],
        "window": [8, 9],
    },
    "reasoning": {
        "activation": "it maps raw scores, which are what is cached",
        "answer_tokens": [100, 300],
        "instruction": ["Judge.", "Judge well."],
        "template": "only one template is shipped for it",
    },
    "graded": {
        "answer_tokens": [100, 300],
        "criteria": "it changes the prompt, and goes with a template that shows it",
        "instruction": ["Judge.", "Judge well."],
        "samples": [2, 3],
        "temperature": [0.5, 1.0],
        "template": ["erank", "retro-star"],
    },
    "groupwise": {
        "answer_tokens": [100, 300],
        "group": [5, 6],
        "passes": [1, 3],
        "temperature": [0.5, 1.0],
        "template": ["group-rank", "group-rank-chat"],
    },
    "generative": {
        "answer_tokens": [100, 300],
        "depth": [50, 60],
        "identifiers": ["alphabetical", "numeric"],
        "both_orders": [True, False],
        "rounds": [3, 4],
        "schedule": ["sliding", "tournament"],
        "settle": [3, 4],
        "stride": [2, 3],
        "template": ["rank-zephyr", "rankgpt"],
        "window": [8, 9],
    },
    "vision-language": {
        "activation": "it maps raw scores, which are what is cached",
        "instruction": ["Judge.", "Judge well."],
        "kept_image_mb": "only how many images stay in memory",
        "most_pixels": [100_000, 200_000],
        "template": ["qwen3-vl-reranker", "jina-reranker-m0"],
    },
    "listwise-embedding": {
        "documents": [5, 6],
        "instruction": ["Judge.", "Judge well."],
        "stored": ["float32", "float16"],
    },
    "late-interaction": {"stored": ["float32", "float16"]},
    "splade": {"stored": ["float32", "float16"]},
    "bi-encoder": {
        "document_prompt": ["passage: ", "document: "],
        "query_prompt": ["query: ", "question: "],
        "stored": ["float32", "float16"],
    },
    "last-but-not-late": {
        "block": [8, 9],
        "document_tokens": [100, 200],
        "instruction": ["Judge.", "Judge well."],
        "query_tokens": [100, 200],
    },
    "remote": {
        "protocol": ["vllm", "openai"],
        "scores": ["relevance", "logit"],
        **{option: [f"{option} 1 {{query}}{{document}}", f"{option} 2 {{query}}{{document}}"] for option in _PROMPT},
    },
    "pairwise": {
        **dict.fromkeys(
            ("both_orders", "depth", "rounds", "schedule", "settle"),
            "a comparison is the same whatever else is compared",
        ),
        "template": "only one is shipped, and its text is part of the key",
    },
}
_BASE: Final[Mapping[str, Mapping[str, Any]]] = {
    "cross-encoder": {"label": 0},
    "yes-no": {"template": "qwen3-reranker"},
    "prompted-classifier": {"template": "qwen3-reranker", "label": 0},
    "first": {"template": "first-qwen3", "window": 6, "identifiers": "alphabetical"},
    "attention": {"template": "icr-chatml", "window": 6},
    "generative": {"template": "rank-zephyr", "window": 6},
    "graded": {"template": "retro-star", "answer_tokens": 50},
    "groupwise": {"template": "group-rank", "answer_tokens": 50},
    "bi-encoder": {},
    "listwise-embedding": {},
    "late-interaction": {},
    "splade": {},
    "last-but-not-late": {},
    "pairwise": {"template": "duot5"},
    "reasoning": {"template": "rank1", "answer_tokens": 50},
    "remote": {"protocol": "vllm"},
    "vision-language": {"template": "qwen3-vl-reranker"},
}
_SCORER_SHAPES: Final[Mapping[str, type[BaseModel]]] = {
    "cross-encoder": CrossEncoderOptions,
    "pruning": PruningOptions,
    "attention": AttentionOptions,
    "yes-no": YesNoOptions,
    "prompted-classifier": PromptedClassifierOptions,
    "first": FirstOptions,
    "bi-encoder": BiEncoderOptions,
    "listwise-embedding": ListwiseEmbeddingOptions,
    "late-interaction": LateInteractionOptions,
    "splade": SpladeOptions,
    "last-but-not-late": LastButNotLateOptions,
    "pairwise": PairwiseOptions,
    "generative": GenerativeOptions,
    "graded": GradedOptions,
    "groupwise": GroupwiseOptions,
    "reasoning": ReasoningOptions,
    "remote": RemoteOptions,
    "vision-language": VisionLanguageOptions,
}


def engine_shapes() -> Mapping[str, type[BaseModel]]:
    from rerankd.engines.torch.causal import TorchCausalOptions  # noqa: PLC0415 - imports torch
    from rerankd.engines.torch.encoder import TorchEncoderOptions  # noqa: PLC0415
    from rerankd.engines.torch.generate import TorchGenerateOptions  # noqa: PLC0415
    from rerankd.engines.torch.seq2seq import TorchSeq2SeqOptions  # noqa: PLC0415
    from rerankd.engines.torch.vision import TorchVisionOptions  # noqa: PLC0415
    from rerankd.engines.torch.weights import LargeWeightsOptions, WeightsOptions  # noqa: PLC0415

    return {
        "onnx": OnnxOptions,
        "openvino": OpenVinoOptions,
        "torch-encoder": TorchEncoderOptions,
        "torch-causal": TorchCausalOptions,
        "torch-seq2seq": TorchSeq2SeqOptions,
        "torch-markers": WeightsOptions,
        "torch-vision": TorchVisionOptions,
        "torch-attention": LargeWeightsOptions,
        "torch-vectors": WeightsOptions,
        "torch-generate": TorchGenerateOptions,
        "endpoint": EndpointOptions,
        "remote": ServiceOptions,
    }


@pytest.mark.slow
def test_every_option_of_every_engine_changes_the_key_or_is_said_to_change_no_score() -> None:
    shapes = engine_shapes()
    assert set(shapes) == set(ENGINES) >= set(WITHOUT_EFFECT)
    for name, shape in shapes.items():
        without = WITHOUT_EFFECT.get(name, {})
        assert set(without) <= set(shape.model_fields), name
        for option in shape.model_fields:
            keys = {
                engine_fingerprint(
                    name, ArithmeticEngine(), EngineSpec(folder=Path(), pad_id=0, options={option: value})
                )
                for value in (1, 2)
            }
            if option in without:
                assert len(keys) == 1, (name, option)
                assert len(without[option].split()) > 3, (name, option)
            else:
                assert len(keys) == 2, (name, option)


@pytest.mark.parametrize("name", list(_SCORER_SHAPES))
def test_every_option_of_every_scorer_changes_the_key_or_is_said_to_change_no_score(name: str, tmp_path: Path) -> None:
    kinds = (SCORERS, LIST_SCORERS, GROUP_SCORERS, VECTOR_SCORERS, BLOCK_SCORERS, COMPARISON_SCORERS)
    assert set(_SCORER_SHAPES) == {name for kind in kinds for name in kind}
    assert set(_SCORER_OPTIONS[name]) == set(_SCORER_SHAPES[name].model_fields)
    tokenizers = {"last-but-not-late": "jina-v3", "reasoning": "rank1", "vision-language": "qwen3-vl"}
    folder = tokenizer_folder(tmp_path, tokenizers.get(name, "qwen3"))
    if name == "cross-encoder":
        folder = _three_labels(TINY_BERT, tmp_path / "bert")
    if name == "listwise-embedding":
        folder = _three_labels(folder, tmp_path / "embedder", architectures=["Qwen3ForCausalLM"], hidden_size=8)
    if name == "prompted-classifier":
        folder = _three_labels(folder, tmp_path / "classifier", architectures=["Qwen3ForSequenceClassification"])

    if name == "bi-encoder":
        (folder / "modules.json").write_text(
            json.dumps(
                [{"type": f"a.{name}", "path": place} for name, place in (("Transformer", ""), ("Pooling", "1"))]
            )
        )
        (folder / "1").mkdir()
        (folder / "1" / "config.json").write_text(json.dumps({"word_embedding_dimension": 8}))

    changes = {"late-interaction": ["HF_ColBERT"], "splade": ["BertForMaskedLM"]}.get(name)
    if changes:
        folder = _three_labels(TINY_BERT, tmp_path / "vectors", architectures=changes)
        settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"mask_token": "[MASK]"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))

    def key(options: Mapping[str, Any]) -> str:
        base = {"protocol": "openai"} if name == "remote" and set(options) <= set(_PROMPT) else _BASE[name]
        spec = ScorerSpec(folder=folder, templates=[SHIPPED_TEMPLATES], options={**base, **options})
        return load_any_scorer(name, spec).fingerprint

    for option, values in _SCORER_OPTIONS[name].items():
        if not isinstance(values, str):
            assert len({key({option: value}) for value in values}) == 2, option
    lengths = [ScorerSpec(folder=folder, templates=[SHIPPED_TEMPLATES], options=_BASE[name], max_length=length)
               for length in (100, 110)] if name == "cross-encoder" else []  # fmt: skip
    assert len({load_scorer(name, spec).fingerprint for spec in lengths}) == len(lengths)


def _three_labels(source: Path, folder: Path, **changes: Any) -> Path:
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": "a", "1": "b", "2": "c"}}))
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"engine_options": {"graph_optimization": "none"}},
        {"engine": "openvino", "engine_options": {"precision": "float32"}},
        {"max_length": 64},
        {"revision": "2"},
    ],
)
def test_a_loaded_models_key_has_what_changes_its_scores(tiny_model: Path, changes: dict[str, Any]) -> None:
    plain = load_parts(ModelSpec(name="m", path=str(tiny_model)), Settings()).fingerprint
    assert load_parts(ModelSpec(name="m", path=str(tiny_model)), Settings()).fingerprint == plain
    assert load_parts(ModelSpec(name="m", path=str(tiny_model), **changes), Settings()).fingerprint != plain


@pytest.mark.parametrize("options", [{"threads": 2}, {"io_binding": True}, {"fused": False}, {"device": "cpu"}])
def test_options_without_effect_have_none(tiny_model: Path, options: dict[str, Any]) -> None:
    encodings = [Encoding(np.arange(5, 5 + length), length // 2) for length in (9, 30, 100)]
    plain, other = (
        load_engine("onnx", EngineSpec(folder=tiny_model, pad_id=0, options=given)).run(encodings)
        for given in ({}, options)
    )
    np.testing.assert_allclose(other, plain, atol=1e-6)
