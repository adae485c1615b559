"""Tiny random models that give vectors, as sentence-transformers saves them, and what its own classes make of texts."""

import shutil
from collections.abc import Sequence
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


def plain_encoder(folder: Path, family: str) -> Path:
    """An encoder without a head."""
    from transformers import AutoModel  # noqa: PLC0415 - only slow tests have torch

    (CAUSAL_FAMILIES if family in CAUSAL_FAMILIES else FAMILIES)[family](folder)
    AutoModel.from_pretrained(folder).save_pretrained(folder)
    return folder
