"""Models that give vectors: bi-encoders, late interaction, sparse weights; and encoders that were not trained to."""

from collections.abc import Sequence
from typing import Final

from rerankd.errors import ConfigError
from rerankd.recognition.embedders import Prompts, read_prompts, read_similarity, refuse_other_than_embedder
from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.late_interaction import read_late_interaction
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
from rerankd.recognition.splade import read_splade
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
        input=_input(prompts),
        max_length=declared_length(files),
        engines=TASK_ENGINES["embed"],
        options=dict(asked.options),
        evidence=evidence,
    )


def _listwise(files: ModelFiles, asked: Asked) -> Outcome | None:
    """An embedding model whose files do not say so."""
    sign = repository(files, "Alibaba-NLP/E2Rank-*")
    if sign is None or not files.is_decoder:
        return None
    return Recognised(
        family=_E2RANK,
        scorer="listwise-embedding",
        head="the last token's vector, compared by dot",
        activation="identity",
        input="a query with the first documents in one prompt; each document",
        max_length=declared_length(files),
        engines=["torch-encoder"],
        options=dict(asked.options),
        evidence=[sign],
    )


def _late_interaction(files: ModelFiles, asked: Asked, family: str, sign: Evidence | None) -> Outcome | None:
    """A model that gives a vector for each token."""
    if sign is None:
        return None
    evidence = [sign, *modules(files)]
    try:
        found = read_late_interaction(files)
        check_code(files.folder, trust_remote_code=asked.trust_remote_code, loader="AutoModel")
    except ConfigError as error:
        return Refused(family=family, reason=str(error), way_out=_VECTORS, evidence=evidence)
    return Recognised(
        family=family,
        scorer="late-interaction",
        head=f"a vector of {found.width} numbers for each token, compared by {found.similarity}",
        activation="identity",
        input=_input(found.prompts),
        max_length=found.document_length or declared_length(files),
        engines=TASK_ENGINES["embed_tokens"],
        options=dict(asked.options),
        evidence=evidence,
    )


def _input(prompts: Prompts) -> str:
    if not prompts.query and not prompts.document:
        return "query and document apart"
    return f"query and document apart, behind the prompts {prompts.query!r} and {prompts.document!r}"


def _stanford(files: ModelFiles, asked: Asked) -> Outcome | None:
    return _late_interaction(files, asked, _STANFORD, architecture(files, "HF_ColBERT"))


def _multi_vector(files: ModelFiles, asked: Asked) -> Outcome | None:
    return _late_interaction(files, asked, _MULTI_VECTOR, _saved_as(files, "ColBERT", "MultiVectorEncoder"))


def _splade(files: ModelFiles, asked: Asked) -> Outcome | None:
    """A masked language model whose logits are weights of words."""
    sign = (
        _saved_as(files, "SparseEncoder")
        or (architecture(files, "*ForMaskedLM") if "SpladePooling" in files.chain else None)
        or repository(files, "naver/splade*")
    )
    if sign is None:
        return None
    evidence = [sign, *modules(files)]
    try:
        pooling = read_splade(files)
        check_code(files.folder, trust_remote_code=asked.trust_remote_code, loader="AutoModelForMaskedLM")
    except ConfigError as error:
        return Refused(family=_SPLADE, reason=str(error), way_out=_VECTORS, evidence=evidence)
    return Recognised(
        family=_SPLADE,
        scorer="splade",
        head=f"weights of the vocabulary's words ({pooling.strategy} pooling), compared by their dot product",
        activation="identity",
        input="query and document apart",
        max_length=declared_length(files),
        engines=TASK_ENGINES["weigh_words"],
        options=dict(asked.options),
        evidence=evidence,
    )


_E2RANK: Final = "E2Rank"
_BI_ENCODERS: Final = "embedding models (bi-encoders)"
_STANFORD: Final = "ColBERT (Stanford's layout)"
_MULTI_VECTOR: Final = "ColBERT (PyLate's layout, MultiVectorEncoder)"
_SPLADE: Final = "SPLADE"
_MAX_SIM: Final = "sentence-transformers: `MultiVectorEncoder.encode_query`, `encode_document` and `similarity`"

FAMILIES: Final[Sequence[Family]] = (
    Family(
        name=_STANFORD,
        repositories=["colbert-ir/colbertv2.0", "answerdotai/answerai-colbert-small-v1"],
        recognise=_stanford,
        oracle=_MAX_SIM,
    ),
    Family(
        name=_MULTI_VECTOR,
        repositories=["lightonai/GTE-ModernColBERT-v1"],
        recognise=_multi_vector,
        oracle=_MAX_SIM,
    ),
    Family(
        name=_SPLADE,
        repositories=["naver/splade-v3", "naver/splade-cocondenser-ensembledistil"],
        recognise=_splade,
        oracle="sentence-transformers: `SparseEncoder.encode_query`, `encode_document` and `similarity`",
    ),
    Family(
        name=_E2RANK,
        repositories=["Alibaba-NLP/E2Rank-0.6B", "Alibaba-NLP/E2Rank-4B", "Alibaba-NLP/E2Rank-8B"],
        recognise=_listwise,
        oracle="transformers: the authors' eval.py, transcribed",
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
