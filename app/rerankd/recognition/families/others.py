"""Models that give vectors, and services elsewhere: known, and not served as folders yet."""

from collections.abc import Sequence
from typing import Final

from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.recognised import (
    Asked,
    Evidence,
    Family,
    Outcome,
    architecture,
    refused_family,
    repository,
)

_VECTORS: Final = "use a cross-encoder, such as BAAI/bge-reranker-v2-m3 or cross-encoder/ms-marco-MiniLM-L6-v2"


def _saved_as(files: ModelFiles, *kinds: str) -> Evidence | None:
    """What config_sentence_transformers.json says of the kind; with modules.json and without a kind, an embedding
    model.
    """
    kind = str(files.sentence_transformers.get("model_type") or ("SentenceTransformer" if files.modules else ""))
    return Evidence("config_sentence_transformers.json", f"model_type = {kind!r}") if kind in kinds else None


def _never(_: ModelFiles, __: Asked) -> Outcome | None:
    """A service is no folder."""
    return None


def _remote(name: str, *, because: str, instead: str) -> Family:
    return Family(name=name, repositories=["none"], recognise=_never, refused=(because, instead))


VECTORS: Final[Sequence[Family]] = (
    refused_family(
        "ColBERT (Stanford's layout)",
        ["colbert-ir/colbertv2.0", "answerdotai/answerai-colbert-small-v1", "jinaai/jina-colbert-v2"],
        lambda files: architecture(files, "HF_ColBERT"),
        because="it gives a vector for each token, which no engine returns yet",
        instead=_VECTORS,
    ),
    refused_family(
        "ColBERT (PyLate's layout, MultiVectorEncoder)",
        ["lightonai/GTE-ModernColBERT-v1"],
        lambda files: _saved_as(files, "ColBERT", "MultiVectorEncoder"),
        because="it gives a vector for each token, which no engine returns yet",
        instead=_VECTORS,
    ),
    refused_family(
        "SPLADE",
        ["naver/splade-v3", "naver/splade-cocondenser-ensembledistil"],
        lambda files: (
            _saved_as(files, "SparseEncoder")
            or (architecture(files, "*ForMaskedLM") if "SpladePooling" in files.chain else None)
            or repository(files, "naver/splade*")
        ),
        because="it gives weights of words, no scores of pairs",
        instead=_VECTORS,
    ),
    refused_family(
        "embedding models (bi-encoders)",
        ["sentence-transformers/all-MiniLM-L6-v2", "intfloat/e5-*", "BAAI/bge-m3", "Qwen/Qwen3-Embedding-*"],
        lambda files: _saved_as(files, "SentenceTransformer") or architecture(files, "*Model"),
        because="it gives vectors, no scores of pairs",
        instead=_VECTORS,
    ),
    refused_family(
        "masked and pretrained models",
        ["bert-base-uncased and others before their training for ranking"],
        lambda files: architecture(
            files, "*ForMaskedLM", "*ForPreTraining", "*ForTokenClassification", "*ForQuestionAnswering"
        ),
        because="it has no head that scores a pair",
        instead=_VECTORS,
    ),
)
SERVICES: Final[Sequence[Family]] = (
    _remote(
        "Cohere, Jina, Voyage, TEI, vLLM, NIM and other rerank services",
        because="no engine calls another rerank service yet",
        instead="call the service itself; `rerankd` answers its clients with a model of your own",
    ),
    _remote(
        "llama.cpp and other GGUF files",
        because="its weights are read by llama.cpp only",
        instead="serve the repository that the GGUF file was made from",
    ),
)
