"""Cross-encoders: one sequence-classification pass over (query, document) gives the pair's score.

Nogueira and Cho, "Passage Re-ranking with BERT", 2019. A head of one output gives the logit itself. A head of several
needs the option `label`, the class that means "relevant"; the raw score is then that class's log-odds, so that its
sigmoid equals the class's softmax probability.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer

from app.domain import FloatArray
from app.errors import ConfigError, InvalidRequest
from app.options import read_options
from app.ranking import ACTIVATIONS, Activation
from app.scorers.base import EncodedPairs, ScorerSpec
from app.scorers.pair_template import PairTemplate, read_template
from app.scorers.tokenizer_files import load_tokenizer, longest_input, read_json

# The classes that sentence-transformers writes into a model's config, by their last name.
_TORCH_ACTIVATIONS: Final[Mapping[str, str]] = {"Sigmoid": "sigmoid", "Identity": "identity"}
_MIN_DOCUMENT_TOKENS = 16
# No tokenizer that we know of needs more characters for a token in running text; what lies beyond is not tokenised.
_CHARS_PER_TOKEN = 64


class CrossEncoderOptions(BaseModel):
    """`[model.options]` of the scorer `cross-encoder`."""

    model_config = ConfigDict(extra="forbid")

    activation: str | None = Field(default=None, description="`sigmoid` or `identity`; default: the model's own.")
    label: int | None = Field(default=None, ge=0, description='Which output means "relevant"; heads of several.')


class CrossEncoder:
    def __init__(
        self,
        tokenizer: Tokenizer,
        template: PairTemplate,
        *,
        max_length: int,
        pad_id: int,
        activation: str,
        label: int | None,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._label = label
        self.max_length = max_length
        self.pad_id = pad_id
        self.activation: Activation = ACTIVATIONS[activation]
        self.fingerprint = json.dumps(["cross-encoder", max_length, label])

    @classmethod
    def load(cls, spec: ScorerSpec) -> "CrossEncoder":
        """Read tokenizer and configuration from a Hugging Face folder.

        Raises:
            ConfigError: a file is missing, the head's meaning is unknown, or the tokenizer is unsuitable.
        """
        options = read_options(spec.options, CrossEncoderOptions, of="scorer 'cross-encoder'")
        config = read_json(spec.folder / "config.json")
        tokenizer = load_tokenizer(spec.folder)
        template = read_template(tokenizer)
        return cls(
            tokenizer,
            template,
            max_length=_max_length(spec, config, template),
            pad_id=int(config.get("pad_token_id") or 0),
            activation=_activation(spec.folder, config, options),
            label=_label(config, options),
        )

    def encode(self, query: str, documents: Sequence[str], *, max_document_tokens: int | None) -> EncodedPairs:
        """Tokenise the query once and all documents in one call; cut documents, never the query.

        Raises:
            InvalidRequest: the query leaves no room for a document.
        """
        query_ids = np.asarray(self._tokenizer.encode(query, add_special_tokens=False).ids, dtype=np.int64)
        room = self._room_beside(len(query_ids))
        if max_document_tokens is not None:
            room = min(room, max_document_tokens)
        shortened = [text[: room * _CHARS_PER_TOKEN] for text in documents]
        tokenised = self._tokenizer.encode_batch_fast(shortened, add_special_tokens=False)
        encodings = []
        dropped = np.zeros(len(documents), dtype=np.int64)
        for position, encoding in enumerate(tokenised):
            ids = encoding.ids
            encodings.append(self._template.join(query_ids, np.asarray(ids[:room], dtype=np.int64)))
            if len(ids) > room:
                dropped[position] = _whole_length(len(ids), shortened[position], documents[position]) - room
        return EncodedPairs(encodings, dropped)

    def interpret(self, logits: FloatArray) -> FloatArray:
        """Raw scores of shape [pairs] from logits of shape [pairs, outputs]."""
        if self._label is None:
            return logits[:, 0]
        others = np.delete(logits, self._label, axis=1).astype(np.float64)
        highest = others.max(axis=1)
        rest = highest + np.log(np.exp(others - highest[:, None]).sum(axis=1))
        log_odds: FloatArray = (logits[:, self._label] - rest).astype(np.float32)
        return log_odds

    def _room_beside(self, query_tokens: int) -> int:
        room = self.max_length - self._template.special_tokens - query_tokens
        if room < _MIN_DOCUMENT_TOKENS:
            longest = self.max_length - self._template.special_tokens - _MIN_DOCUMENT_TOKENS
            raise InvalidRequest(
                f"the query has {query_tokens} tokens; this model reads queries of at most {longest} tokens: "
                "shorten the query"
            )
        return room


def _whole_length(tokens: int, shortened: str, document: str) -> int:
    """Tokens of the whole document, estimated where only its beginning was tokenised."""
    return tokens if len(shortened) == len(document) else round(tokens * len(document) / len(shortened))


def _max_length(spec: ScorerSpec, config: Mapping[str, Any], template: PairTemplate) -> int:
    longest = longest_input(spec.folder, config)
    if spec.max_length is not None and spec.max_length > longest:
        raise ConfigError(f"max_length = {spec.max_length}, but the model in {spec.folder} reads {longest} tokens")
    max_length = spec.max_length or longest
    if max_length < template.special_tokens + 2 * _MIN_DOCUMENT_TOKENS:
        raise ConfigError(f"max_length = {max_length} leaves no room for a query and a document")
    return max_length


def _label(config: Mapping[str, Any], options: CrossEncoderOptions) -> int | None:
    names = config.get("id2label") or {}
    outputs = int(config.get("num_labels") or len(names) or 2)
    if outputs == 1:
        if options.label not in (None, 0):
            raise ConfigError(f"label = {options.label}, but this model's head has one output")
        return None
    if options.label is None or options.label >= outputs:
        raise ConfigError(
            f"this model's head has {outputs} outputs ({', '.join(map(str, names.values())) or 'unnamed'}); "
            f"say which one means relevant: options = {{ label = 0..{outputs - 1} }}"
        )
    return options.label


def _activation(folder: Path, config: Mapping[str, Any], options: CrossEncoderOptions) -> str:
    if options.activation is not None:
        if options.activation not in ACTIVATIONS:
            raise ConfigError(f"unknown activation {options.activation!r}; known: {', '.join(ACTIVATIONS)}")
        return options.activation
    name = _named_activation(folder, config)
    if name is None:
        return "sigmoid"
    short = name.rsplit(".", 1)[-1]
    if short not in _TORCH_ACTIVATIONS:
        raise ConfigError(
            f"the model's config names the activation {name!r}, which is not known; "
            f"set options = {{ activation = ... }}, one of: {', '.join(ACTIVATIONS)}"
        )
    return _TORCH_ACTIVATIONS[short]


def _named_activation(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The activation that sentence-transformers wrote down, in each of the places that it used over the years."""
    section = config.get("sentence_transformers") or {}
    saved = folder / "config_sentence_transformers.json"
    beside = read_json(saved) if saved.is_file() else {}
    for name in (
        section.get("activation_fn"),
        config.get("sbert_ce_default_activation_function"),
        beside.get("activation_fn"),
    ):
        if name:
            return str(name)
    return None
