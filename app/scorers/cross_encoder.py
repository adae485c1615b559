"""Cross-encoders: one sequence-classification pass over (query, document) gives the pair's score.

Nogueira and Cho, "Passage Re-ranking with BERT", 2019. A head of one output gives the logit itself. A head of several
needs the option `label`, the class that means "relevant"; the raw score is then that class's log-odds, so that its
sigmoid equals the class's softmax probability.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer

from app.domain import FloatArray
from app.errors import ConfigError, InvalidRequest
from app.options import read_options
from app.ranking import ACTIVATIONS, Activation
from app.scorers.base import Edges, EncodedPairs, ScorerSpec
from app.scorers.document_tokenizer import DocumentTokenizer
from app.scorers.edges import token_edges
from app.scorers.pair_template import PairTemplate, read_template
from app.scorers.token_cache import DocumentTokens, TokenCache
from app.scorers.tokenizer_files import TokenizerFolder, drops, read_optional_json

# The classes that sentence-transformers writes into a model's config, by their last name.
_TORCH_ACTIVATIONS: Final[Mapping[str, str]] = {"Sigmoid": "sigmoid", "Identity": "identity"}
_MIN_DOCUMENT_TOKENS = 16
# Of a long document only the beginning is tokenised: so many characters for each token that is read, which gives far
# more tokens than needed unless the text is mostly white space or very long words.
_CHARS_PER_TOKEN = 64
_LEAST_CHARS = 4096
# About 20,000 passages, in 20 MB.
_REMEMBERED_TOKENS = 2_000_000


class CrossEncoderOptions(BaseModel):
    """`[model.options]` of the scorer `cross-encoder`."""

    model_config = ConfigDict(extra="forbid")

    activation: str | None = Field(default=None, description="`sigmoid` or `identity`; default: the model's own.")
    label: int | None = Field(default=None, ge=0, description='Which output means "relevant"; heads of several.')


class CrossEncoder:
    output_tokens: Sequence[int] = ()

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
        self._documents = DocumentTokenizer(tokenizer)
        self._template = template
        self._label = label
        self._tokens = TokenCache(max_tokens=_REMEMBERED_TOKENS)
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
        files = TokenizerFolder.read(spec.folder)
        beside = read_optional_json(spec.folder / "config_sentence_transformers.json")
        template = read_template(files.tokenizer)
        # A tokenizer may know segments that it does not give to its model.
        if "token_type_ids" not in files.tokenizer_config.get("model_input_names", ["token_type_ids"]):
            template = replace(template, segments=False)
        _refuse_prompts(beside)
        label = _label(files.config, options)
        return cls(
            files.tokenizer,
            template,
            max_length=_with_room(files.length(spec.max_length), template),
            pad_id=files.pad_id,
            activation=_activation(files.config, beside, options, label=label),
            label=label,
        )

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        *,
        max_document_tokens: int | None,
        instruction: str | None = None,
    ) -> EncodedPairs:
        """Tokenise the query once and all documents in one call; cut documents, never the query.

        Raises:
            InvalidRequest: the query leaves no room for a document, or there is an instruction.
        """
        _refuse_instruction(instruction)
        query_ids = np.asarray(self._tokenizer.encode(query, add_special_tokens=False).ids, dtype=np.int64)
        room = self._room_beside(len(query_ids))
        if max_document_tokens is not None:
            room = min(room, max_document_tokens)
        encodings = []
        dropped = np.zeros(len(documents), dtype=np.int64)
        known = self._tokens.get(documents, lambda texts: list(self._document_tokens(texts, room=room)), room=room)
        for position, document in enumerate(known):
            encodings.append(self._template.join(query_ids, document.ids[:room]))
            dropped[position] = max(0, document.total - room)
        return EncodedPairs(encodings, dropped)

    def room(self, query: str, instruction: str | None = None) -> int:
        """How many tokens of a document fit beside a query.

        Raises:
            InvalidRequest: the query leaves no room for a document, or there is an instruction.
        """
        _refuse_instruction(instruction)
        return self._room_beside(len(self._tokenizer.encode(query, add_special_tokens=False).ids))

    def edges(self, texts: Sequence[str]) -> list[Edges]:
        """Where the tokens of texts lie."""
        return token_edges(self._tokenizer, texts)

    def drops(self, text: str) -> bool:
        """Whether the tokenizer leaves nothing of a short text."""
        return drops(self._tokenizer, text)

    def interpret(self, logits: FloatArray) -> FloatArray:
        """Raw scores of shape [pairs] from logits of shape [pairs, outputs]."""
        if self._label is None:
            return logits[:, 0]
        others = np.delete(logits, self._label, axis=1).astype(np.float64)
        highest = others.max(axis=1)
        rest = highest + np.log(np.exp(others - highest[:, None]).sum(axis=1))
        log_odds: FloatArray = (logits[:, self._label] - rest).astype(np.float32)
        return log_odds

    def _document_tokens(self, documents: Sequence[str], *, room: int) -> Iterator[DocumentTokens]:
        """Each document's first tokens, at least `room` if it has so many. How many it has in all is an estimate for a
        document of which only the beginning was tokenised.
        """
        chars = max(_LEAST_CHARS, room * _CHARS_PER_TOKEN)
        beginnings = self._documents.tokenize([text[:chars] for text in documents])
        for document, beginning in zip(documents, beginnings, strict=True):
            ids, total = beginning, len(beginning)
            if len(document) > chars:
                if total >= 2 * room:
                    total = round(total * len(document) / chars)
                else:
                    (ids,) = self._documents.tokenize([document])
                    total = len(ids)
            yield DocumentTokens(np.array(ids[:room], dtype=np.int32), total)

    def _room_beside(self, query_tokens: int) -> int:
        room = self.max_length - self._template.special_tokens - query_tokens
        if room < _MIN_DOCUMENT_TOKENS:
            longest = self.max_length - self._template.special_tokens - _MIN_DOCUMENT_TOKENS
            raise InvalidRequest(
                f"the query has {query_tokens} tokens; this model reads queries of at most {longest} tokens: "
                "shorten the query"
            )
        return room


def _refuse_instruction(instruction: str | None) -> None:
    if instruction is not None:
        raise InvalidRequest("what this model reads has no place for an instruction; leave it out")


def _refuse_prompts(beside: Mapping[str, Any]) -> None:
    """sentence-transformers puts a default prompt before the texts; scores without it would be other scores."""
    name = beside.get("default_prompt_name")
    if name is not None and (beside.get("prompts") or {}).get(name):
        raise ConfigError(
            f"config_sentence_transformers.json names the default prompt {name!r}, which this scorer does not apply; "
            "remove default_prompt_name if the model works without"
        )


def _with_room(max_length: int, template: PairTemplate) -> int:
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


def _activation(
    config: Mapping[str, Any], beside: Mapping[str, Any], options: CrossEncoderOptions, *, label: int | None
) -> str:
    if options.activation is not None:
        if options.activation not in ACTIVATIONS:
            raise ConfigError(f"unknown activation {options.activation!r}; known: {', '.join(ACTIVATIONS)}")
        return options.activation
    # What a config says of a head of several outputs is meant for each output, not for the log-odds of one.
    name = None if label is not None else _named_activation(config, beside)
    if name is None:
        return "sigmoid"
    short = name.rsplit(".", 1)[-1]
    if short not in _TORCH_ACTIVATIONS:
        raise ConfigError(
            f"the model's config names the activation {name!r}, which is not known; "
            f"set options = {{ activation = ... }}, one of: {', '.join(ACTIVATIONS)}"
        )
    return _TORCH_ACTIVATIONS[short]


def _named_activation(config: Mapping[str, Any], beside: Mapping[str, Any]) -> str | None:
    """The activation that sentence-transformers wrote down, in each of the places that it used over the years, in the
    order in which it reads them.
    """
    section = config.get("sentence_transformers") or {}
    for name in (
        beside.get("activation_fn"),
        section.get("activation_fn"),
        config.get("sbert_ce_default_activation_function"),
    ):
        if name:
            return str(name)
    return None
