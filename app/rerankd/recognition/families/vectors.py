"""Models that give vectors: bi-encoders, late interaction, sparse weights; and encoders that were not trained to."""

from collections.abc import Sequence
from typing import Final

from rerankd.errors import ConfigError
from rerankd.recognition.embedders import read_prompts, read_similarity, refuse_other_than_embedder
from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.lengths import declared_length
from rerankd.recognition.modules import read_embedding_head
from rerankd.recognition.recognised import (
    TASK_ENGINES,
    Asked,
    Evidence,
    Family,
    Outcome,
    Recognised,
    Refused,
    architecture,
    modules,
    refused_family,
    repository,
)
from rerankd.recognition.weights import check_code

_VECTORS: Final = "use a cross-encoder, such as BAAI/bge-reranker-v2-m3 or cross-encoder/ms-marco-MiniLM-L6-v2"


def _saved_as(files: ModelFiles, *kinds: str) -> Evidence | None:
    """What config_sentence_transformers.json says of the kind; with modules.json and without a kind, an embedding
    model.
    """
    kind = str(files.sentence_transformers.get("model_type") or ("SentenceTransformer" if files.modules else ""))
    return Evidence("config_sentence_transformers.json", f"model_type = {kind!r}") if kind in kinds else None


def _bi_encoder(files: ModelFiles, asked: Asked) -> Outcome | None:
    """An embedding model of which modules.json says how its vectors are made."""
    sign = _saved_as(files, "SentenceTransformer") or architecture(files, "*Model")
    if sign is None:
        return None
    evidence = [sign, *modules(files)]
    try:
        refuse_other_than_embedder(files)
        head = read_embedding_head(files)
        said = {name: asked.options.get(f"{name}_prompt") for name in ("query", "document")}
        prompts = read_prompts(files, query=said["query"], document=said["document"])
        similarity = read_similarity(files)
        check_code(files.folder, trust_remote_code=asked.trust_remote_code, loader="AutoModel")
    except ConfigError as error:
        return Refused(family=_BI_ENCODERS, reason=str(error), evidence=evidence)
    return Recognised(
        family=_BI_ENCODERS,
        scorer="bi-encoder",
        head=f"a vector of {head.outputs} numbers ({' and '.join(head.poolings)} pooling), compared by {similarity}",
        activation="identity",
        input=f"query and document apart, behind the prompts {prompts.query!r} and {prompts.document!r}",
        max_length=declared_length(files),
        engines=TASK_ENGINES["embed"],
        options=dict(asked.options),
        evidence=evidence,
    )


_BI_ENCODERS: Final = "embedding models (bi-encoders)"

FAMILIES: Final[Sequence[Family]] = (
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
    Family(
        name=_BI_ENCODERS,
        repositories=[
            "sentence-transformers/all-MiniLM-L6-v2",
            "intfloat/e5-*",
            "BAAI/bge-*",
            "Qwen/Qwen3-Embedding-*",
        ],
        recognise=_bi_encoder,
        oracle="sentence-transformers: `SentenceTransformer.encode_query`, `encode_document` and `similarity`",
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
