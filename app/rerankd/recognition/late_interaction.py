"""Reads late-interaction models (ColBERT), in the three layouts that their authors' libraries write.

Stanford's ColBERT keeps its settings in `artifact.metadata` and its projection beside the encoder's weights. PyLate
keeps them at the top of config_sentence_transformers.json. sentence-transformers 6 (MultiVectorEncoder) keeps them with
each module. Settings of the first two mean here what sentence-transformers 6 makes of them.
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast, get_args

from rerankd.errors import ConfigError
from rerankd.recognition.embedders import Prompts
from rerankd.recognition.files import number_of, read_json, read_optional_json, table_of, texts_of
from rerankd.recognition.kinds import ModelFiles, refuse_other_root, refuse_unknown_settings
from rerankd.recognition.modules import HeadLayer, Normalize, read_token_layers

MaxSim = Literal["maxsim", "meanmaxsim"]
_SETTINGS: Final = "config_sentence_transformers.json"
_METADATA: Final = "artifact.metadata"
_WIDTH: Final = 128
_QUERY_LENGTH: Final = 32
_DOCUMENT_LENGTH: Final = 180
_KINDS: Final = ("ColBERT", "MultiVectorEncoder")


@dataclass(frozen=True, slots=True, kw_only=True)
class Expansion:
    """Queries are filled up to `length` with a token, which is scored: the mask token, or the one that is named. They
    are cut to that length too, unless it is only the `least`. Other tokens read the filling if it is `attended`.
    """

    length: int
    least: bool = False
    attended: bool = False
    token: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LateInteraction:
    """`markers` are prompts that must become one token. Lengths are in tokens, None: as long as the model reads.
    `skipped` words are not compared in texts of the roles `skips`.
    """

    layers: Sequence[HeadLayer | Normalize]
    width: int
    prompts: Prompts
    markers: Sequence[str] = ()
    query_length: int | None = None
    document_length: int | None = None
    expansion: Expansion | None = None
    skipped: Sequence[str] = ()
    skips: Sequence[str] = ("document",)
    similarity: MaxSim = "maxsim"


def is_stanford(files: ModelFiles) -> bool:
    """Whether Stanford's code saved it."""
    return files.architecture == "HF_ColBERT"


def read_late_interaction(files: ModelFiles) -> LateInteraction:
    """What the folder says, in any of the layouts.

    Raises:
        ConfigError: it is no late-interaction model, or says something that is not computed here.
    """
    if is_stanford(files):
        return _stanford(files)
    kind = files.sentence_transformers.get("model_type")
    if kind not in _KINDS:
        raise ConfigError(f"{files.folder}: no file says that this is a late-interaction model (ColBERT)")
    refuse_other_root(files)
    if files.renders_pairs is not None:
        raise ConfigError(
            f"{files.folder}: by {files.renders_pairs} it reads texts in a chat template; serve another model"
        )
    return _pylate(files) if kind == "ColBERT" else _multi_vector(files)


def _stanford(files: ModelFiles) -> LateInteraction:
    said = read_optional_json(files.folder / _METADATA)
    weights = files.folder / "model.safetensors"
    width = number_of(said, "dim", of=_METADATA) or _WIDTH
    inputs = number_of(files.config, "hidden_size", of=files.folder / "config.json") or 0
    markers = [f"{said.get(key) or usual} " for key, usual in
               (("query_token_id", "[unused0]"), ("doc_token_id", "[unused1]"))]  # fmt: skip
    return LateInteraction(
        layers=[HeadLayer(weights=weights, inputs=inputs, outputs=width, bias=False, shared=True), Normalize()],
        width=width,
        prompts=Prompts(*markers),
        markers=markers,
        document_length=number_of(said, "doc_maxlen", of=_METADATA),
        expansion=Expansion(
            length=number_of(said, "query_maxlen", of=_METADATA) or _QUERY_LENGTH,
            attended=bool(said.get("attend_to_mask_tokens")),
        ),
        skipped=list(string.punctuation) if said.get("mask_punctuation", True) else (),
    )


def _pylate(files: ModelFiles) -> LateInteraction:
    said = files.sentence_transformers
    refuse_unknown_settings(files, task="feature-extraction", prompted=True)
    layers, width = read_token_layers(files)
    prefixes = [str(said.get(key) or "") for key in ("query_prefix", "document_prefix")]
    prompts = table_of(said, "prompts", of=_SETTINGS)
    texts = [
        prefix + str(prompts.get(role) or "").removeprefix(prefix)
        for prefix, role in zip(prefixes, ("query", "document"), strict=True)
    ]
    length = number_of(said, "query_length", of=_SETTINGS) or _QUERY_LENGTH
    attended = bool(said.get("attend_to_expansion_tokens", said.get("attend_to_mask_tokens")))
    expands = said.get("do_query_expansion") is not False
    return LateInteraction(
        layers=layers if any(isinstance(layer, Normalize) for layer in layers) else [*layers, Normalize()],
        width=width,
        prompts=Prompts(*texts),
        markers=prefixes,
        query_length=length,
        document_length=number_of(said, "document_length", of=_SETTINGS) or _DOCUMENT_LENGTH,
        expansion=Expansion(length=length, attended=attended) if expands else None,
        skipped=texts_of(said, "skiplist_words", of=_SETTINGS)
        if said.get("skiplist_words") is not None
        else list(string.punctuation),
        similarity=_similarity(files),
    )


def _multi_vector(files: ModelFiles) -> LateInteraction:
    said = files.transformer
    lengths = ("query_length", "document_length", "query_expansion")
    refuse_unknown_settings(files, task="feature-extraction", prompted=True, applied=lengths)
    layers, width = read_token_layers(files)
    mask = _mask(files)
    prompts = table_of(files.sentence_transformers, "prompts", of=_SETTINGS)
    query_length, document_length = (number_of(said, key, of="sentence_bert_config.json") for key in lengths[:2])
    return LateInteraction(
        layers=layers,
        width=width,
        prompts=Prompts(str(prompts.get("query") or ""), str(prompts.get("document") or "")),
        query_length=query_length,
        document_length=document_length,
        expansion=_expansion(said.get("query_expansion")),
        skipped=texts_of(mask, "skiplist_words", of="MultiVectorMask"),
        skips=texts_of(mask, "skiplist_tasks", of="MultiVectorMask") or ("document",),
        similarity=_similarity(files),
    )


def _mask(files: ModelFiles) -> Mapping[str, Any]:
    """The config of the module that says which tokens are compared."""
    for name, module in zip(files.chain, files.modules or (), strict=True):
        if name == "MultiVectorMask":
            config = read_json(files.folder / str(module.get("path", "")) / "config.json")
            if config.get("keep_only_token_ids"):
                raise ConfigError(f"{files.folder}: keep_only_token_ids keeps images only; serve a model of texts")
            return config
    return {}


def _expansion(said: object) -> Expansion | None:
    if not said:
        return None
    if not isinstance(said, dict) or said.get("strategy") not in ("fixed", "min"):
        raise ConfigError(f"sentence_bert_config.json: query_expansion = {said!r:.80} is not computed here")
    length = number_of(said, "length", of="sentence_bert_config.json: query_expansion") or _QUERY_LENGTH
    return Expansion(
        length=length, least=said["strategy"] == "min", attended=bool(said.get("attend")), token=said.get("token")
    )


def _similarity(files: ModelFiles) -> MaxSim:
    named = files.sentence_transformers.get("similarity_fn_name")
    # PyLate writes "cosine" or "MaxSim" there, and always computes MaxSim.
    return cast("MaxSim", named) if named in get_args(MaxSim) else "maxsim"
