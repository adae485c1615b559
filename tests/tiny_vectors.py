"""Tiny random models that give vectors, as sentence-transformers saves them, and what its own classes make of texts."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rerankd.domain import FloatArray
from tests.tiny_causal import CAUSAL_FAMILIES
from tests.tiny_models import FAMILIES


def bi_encoder(
    folder: Path,
    *,
    family: str = "bert",
    pooling: object = "mean",
    dense: int = 0,
    include_prompt: bool = True,
    **settings: Any,
) -> Path:
    """Transformer, Pooling, and Dense (`dense` wide) or Normalize. `settings` are SentenceTransformer's."""
    import torch  # noqa: PLC0415 - only slow tests have torch
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - imports torch
    from sentence_transformers.base.modules import Dense, Normalize, Transformer  # noqa: PLC0415
    from sentence_transformers.sentence_transformer.modules import Pooling  # noqa: PLC0415

    plain = plain_encoder(folder / "plain", family)
    pooled: Any = Pooling(32, pooling_mode=pooling, include_prompt=include_prompt)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        behind = [Dense(pooled.pooling_output_dimension, dense)] if dense else [Normalize()]
    model = SentenceTransformer(modules=[Transformer(str(plain)), pooled, *behind], device="cpu", **settings)
    model.save(str(folder))
    shutil.rmtree(plain)
    return folder


def bi_encoder_scores(folder: Path, query: str, documents: Sequence[str], *, passage: str | None = None) -> FloatArray:
    """`passage`: the name of the prompt of documents, where it is not `document`."""
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - imports torch

    model = SentenceTransformer(str(folder), device="cpu")
    vector = model.encode_query(query)
    # One by one: padding must not be what both agree in.
    texts = [model.encode_document(text, prompt_name=passage) for text in documents]
    return np.array([float(model.similarity(vector, text)) for text in texts], dtype=np.float32)


def bi_encoder_vectors(folder: Path, documents: Sequence[str]) -> FloatArray:
    """The vector of each document, shape [documents, width]."""
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - imports torch

    model = SentenceTransformer(str(folder), device="cpu")
    return np.stack([model.encode_document(text) for text in documents]).astype(np.float32)


def plain_encoder(folder: Path, family: str) -> Path:
    """An encoder without a head."""
    from transformers import AutoModel  # noqa: PLC0415 - only slow tests have torch

    (CAUSAL_FAMILIES if family in CAUSAL_FAMILIES else FAMILIES)[family](folder)
    AutoModel.from_pretrained(folder).save_pretrained(folder)
    return folder


def multi_vector(folder: Path, *, family: str = "bert", layout: str = "multi-vector", **settings: Any) -> Path:
    """A late-interaction model, in one of the three layouts. `settings` go where the layout keeps them."""
    plain = plain_encoder(folder / "plain", family)
    if layout != "stanford":
        _with_marker_tokens(plain)
    build = {"multi-vector": _save_multi_vector, "pylate": _save_pylate, "stanford": _save_stanford}[layout]
    build(plain, folder, settings)
    shutil.rmtree(plain)
    return folder


def multi_vector_scores(folder: Path, query: str, documents: Sequence[str]) -> FloatArray:
    from sentence_transformers import MultiVectorEncoder  # noqa: PLC0415 - imports torch

    model = MultiVectorEncoder(str(folder), device="cpu")
    asked = model.encode_query(query)
    scores = [float(model.similarity([asked], [model.encode_document(text)])[0, 0]) for text in documents]
    return np.array(scores, dtype=np.float32)


def _with_marker_tokens(folder: Path) -> None:
    """Give the tokenizer a mask token by name, and markers with a space behind them, as PyLate does."""
    from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415 - only slow tests have torch

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    tokenizer.add_tokens(["[Q] ", "[D] "])
    tokenizer.save_pretrained(folder)
    model = AutoModel.from_pretrained(folder)
    _seeded(lambda: model.resize_token_embeddings(len(tokenizer), mean_resizing=False))
    model.save_pretrained(folder)


def _save_multi_vector(plain: Path, folder: Path, settings: dict[str, Any]) -> None:
    from sentence_transformers import MultiVectorEncoder  # noqa: PLC0415 - imports torch
    from sentence_transformers.base.modules import Dense, Normalize, Transformer  # noqa: PLC0415
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask  # noqa: PLC0415
    from torch import nn  # noqa: PLC0415

    lengths = {
        key: settings.pop(key) for key in ("query_length", "document_length", "query_expansion") if key in settings
    }
    mask = {key: settings.pop(key) for key in ("skiplist_words", "skiplist_tasks") if key in settings}
    project = _seeded(
        lambda: Dense(32, 16, bias=False, activation_function=nn.Identity(), module_input_name="token_embeddings")
    )
    chain = [
        Transformer(str(plain), **lengths),
        project,
        MultiVectorMask(**mask),
        Normalize(module_input_name="token_embeddings"),
    ]
    MultiVectorEncoder(modules=chain, device="cpu", **settings).save(str(folder))


def _save_pylate(plain: Path, folder: Path, settings: dict[str, Any]) -> None:
    import torch  # noqa: PLC0415 - only slow tests have torch
    from safetensors.torch import save_file  # noqa: PLC0415

    for path in plain.iterdir():
        shutil.copy(path, folder)
    said = {"model_type": "ColBERT", "query_prefix": "[Q] ", "document_prefix": "[D] ", **settings}
    _write(folder / "config_sentence_transformers.json", said)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": 100, "do_lower_case": False})
    chain = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"},
    ]
    _write(folder / "modules.json", chain)
    (folder / "1_Dense").mkdir()
    activation = "torch.nn.modules.linear.Identity"
    _write(
        folder / "1_Dense" / "config.json",
        {"in_features": 32, "out_features": 16, "bias": False, "activation_function": activation},
    )
    save_file({"linear.weight": _seeded(lambda: torch.randn(16, 32))}, folder / "1_Dense" / "model.safetensors")


def _save_stanford(plain: Path, folder: Path, settings: dict[str, Any]) -> None:
    import torch  # noqa: PLC0415 - only slow tests have torch
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    for path in plain.iterdir():
        shutil.copy(path, folder)
    weights = {f"bert.{name}": tensor for name, tensor in load_file(plain / "model.safetensors").items()}
    weights["linear.weight"] = _seeded(lambda: torch.randn(16, 32))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((plain / "config.json").read_text()) | {"architectures": ["HF_ColBERT"]}
    _write(folder / "config.json", config)
    tokenizer = json.loads((plain / "tokenizer_config.json").read_text()) | {"mask_token": "[MASK]"}
    _write(folder / "tokenizer_config.json", tokenizer)
    # Words of the tiny vocabulary, in the place of [unused0] and [unused1].
    _write(folder / "artifact.metadata", {"dim": 16, "query_token_id": "##0", "doc_token_id": "##1", **settings})


def sparse_encoder(folder: Path, *, pooling: Mapping[str, Any]) -> Path:
    """A masked language model and SpladePooling."""
    from sentence_transformers import SparseEncoder  # noqa: PLC0415 - imports torch
    from sentence_transformers.base.modules import Transformer  # noqa: PLC0415
    from sentence_transformers.sparse_encoder.modules import SpladePooling  # noqa: PLC0415
    from transformers import BertConfig, BertForMaskedLM  # noqa: PLC0415

    plain = FAMILIES["bert"](folder / "plain")
    config = BertConfig.from_pretrained(plain)
    config.initializer_range = 0.1
    model = _seeded(lambda: BertForMaskedLM(config))
    # So that most words have no weight.
    model.cls.predictions.bias.data.fill_(-1.0)
    model.save_pretrained(plain)
    SparseEncoder(
        modules=[Transformer(str(plain), transformer_task="fill-mask"), SpladePooling(**pooling)], device="cpu"
    ).save(str(folder))
    shutil.rmtree(plain)
    return folder


def sparse_scores(folder: Path, query: str, documents: Sequence[str]) -> FloatArray:
    from sentence_transformers import SparseEncoder  # noqa: PLC0415 - imports torch

    model = SparseEncoder(str(folder), device="cpu")
    asked = model.encode_query(query)
    scores = [float(model.similarity(asked, model.encode_document(text))) for text in documents]
    return np.array(scores, dtype=np.float32)


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _seeded(make: Callable[[], Any]) -> Any:
    import torch  # noqa: PLC0415 - only slow tests have torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()
