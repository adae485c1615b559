"""Finds the maximum length of a model in its files."""

from collections.abc import Mapping
from typing import Any, Final

from rerankd.recognition.files import number_of
from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.native import native_form

# Tokenizer configs write "no limit" as a number like 10**30.
_NO_LIMIT: Final = 10**9
# Positions of these models start after the padding id, so two are never used.
_OFFSET_POSITIONS: Final = {
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}
_ROBERTA_PAD_ID: Final = 1


def declared_length(files: ModelFiles) -> int | None:
    """Tokens that the model can read: the smaller of what its tokenizer and its position table allow; None: no file
    says anything, as those of Gemma 3 from 4B on do not.
    """
    native = native_form(files)
    config = files.config if native is None else native.config
    limits = []
    # Models that see pictures too keep what is said of their language model in a part of its own.
    positions = config.get("max_position_embeddings") or _text_config(files).get("max_position_embeddings")
    if isinstance(positions, int) and positions > 0:
        limits.append(positions - _unused_positions(config))
    # sentence-transformers puts its own in the place of the tokenizer's.
    stated = number_of(files.transformer, "max_seq_length", of="sentence_bert_config.json")
    declared = files.tokenizer_config.get("model_max_length") if stated is None else stated
    if isinstance(declared, int | float) and 0 < declared < _NO_LIMIT:
        limits.append(int(declared))
    return min(limits, default=None)


def _text_config(files: ModelFiles) -> Mapping[str, Any]:
    nested = files.config.get("text_config")
    return nested if isinstance(nested, dict) else {}


def _unused_positions(config: Mapping[str, Any]) -> int:
    architectures = config.get("architectures")
    named = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    # A config without a type, as those of models with code of their own, names the class all the same.
    offset = str(config["model_type"]) in _OFFSET_POSITIONS if config.get("model_type") else "Roberta" in named
    if not offset:
        return 0
    pad_id = config.get("pad_token_id")
    return (pad_id if isinstance(pad_id, int) else _ROBERTA_PAD_ID) + 1
