"""Cross-encoders: one sequence-classification pass over (query, document) gives the pair's score.

Nogueira and Cho, "Passage Re-ranking with BERT", 2019. A head of one output gives the logit itself. A head of several
needs the option `label`, the one that means "relevant". What they mean is config.json's `problem_type`: classes of
which one holds (the raw score is the class's log-odds, whose sigmoid is its softmax probability), labels that hold or
not each by itself, or values.
"""

import json
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer

from rerankd.config.options import read_options
from rerankd.domain import FloatArray, IntArray
from rerankd.errors import ConfigError, InvalidRequest, TooLong
from rerankd.recognition.activations import ActivationSetting
from rerankd.recognition.heads import Head, read_activation, read_head, score_of
from rerankd.recognition.kinds import (
    refuse_other_than_cross_encoder,
    refuse_unknown_settings,
    refuse_unsaid_pairs,
)
from rerankd.recognition.native import native_form
from rerankd.recognition.tokenizer_settings import check_pair, gives_segments, refuse_other_cuts
from rerankd.scorers.base import Edges, EncodedPairs, Kinds, Made, ScorerSpec, refuse_instruction
from rerankd.scorers.beginnings import Reach, read_parts
from rerankd.scorers.document_tokenizer import DocumentTokenizer
from rerankd.scorers.edges import token_edges
from rerankd.scorers.pair_template import PairTemplate, read_joined_template, read_template
from rerankd.scorers.ranking import Activation, activation_of
from rerankd.scorers.token_cache import DocumentTokens, TokenCache
from rerankd.scorers.tokenizer_files import TokenizerFolder, drops
from rerankd.tasks.base import Task
from rerankd.tasks.classify import Classify
from rerankd.tasks.encoding import Encoding, stacked

_MIN_DOCUMENT_TOKENS = 16
# About 34,000 passages of 100 tokens.
_REMEMBERED_BYTES = 32 * 2**20
_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)


class CrossEncoderOptions(BaseModel):
    """`[model.options]` of the scorer `cross-encoder`."""

    model_config = ConfigDict(extra="forbid")

    activation: ActivationSetting | None = Field(
        default=None,
        description="`sigmoid`, `identity`, or `{ scale, bias }` for sigmoid(scale * score + bias); default: the "
        "model's own.",
    )
    label: int | None = Field(
        default=None, ge=0, description='Number of the output that means "relevant", for models with several.'
    )
    pairs: Literal["plain"] | None = Field(
        default=None,
        description="`plain`: the tokenizer joins query and document, for language models with a classifier's head "
        "that were trained so.",
    )


class CrossEncoder:
    def __init__(
        self,
        tokenizer: Tokenizer,
        template: PairTemplate,
        *,
        max_length: int,
        pad_id: int,
        activation: ActivationSetting,
        head: Head,
        read_query: Callable[[str], str] = str,
    ) -> None:
        """`read_query` says what the model reads of a query."""
        self._tokenizer = tokenizer
        self._documents = DocumentTokenizer(tokenizer)
        self._template = template
        self._head = head
        self._read_query = read_query
        self.task: Task[Any] = Classify(outputs=head.outputs)
        self._tokens = TokenCache(max_bytes=_REMEMBERED_BYTES)
        self.max_length = max_length
        self.pad_id = pad_id
        self.activation: Activation = activation_of(activation)
        self.fingerprint = json.dumps(["cross-encoder", max_length, head.label, head.problem])

    @classmethod
    def load(cls, spec: ScorerSpec) -> "CrossEncoder":
        """Read tokenizer and configuration from a Hugging Face folder.

        Raises:
            ConfigError: a file is missing, the head's meaning is unknown, or the tokenizer is unsuitable.
        """
        return cls._load(spec)

    @classmethod
    def _load(cls, spec: ScorerSpec) -> Self:
        options = read_options(spec.options, CrossEncoderOptions, of="scorer 'cross-encoder'")
        read = TokenizerFolder.read(spec.folder)
        native = native_form(read.files)
        template = _template(read, pairs=options.pairs)
        head = read_head(read.files, label=options.label)
        return cls(
            read.tokenizer,
            template,
            max_length=_with_room(read.length(spec.max_length), template),
            pad_id=read.pad_id,
            activation=options.activation or read_activation(read.files, head) or "sigmoid",
            head=head,
            read_query=normalized if native is not None and native.normalizes_queries else str,
        )

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        *,
        max_document_tokens: int | None,
        instruction: str | None = None,
        owner: str = "",
    ) -> EncodedPairs[Encoding]:
        """Tokenize the query once and all documents in one call; cut documents, never the query.

        Raises:
            InvalidRequest: the query leaves no room for a document, or there is an instruction.
        """
        refuse_instruction(instruction)
        query_ids = self._query_ids(query)
        room = self._room_beside(len(query_ids))
        if max_document_tokens is not None:
            room = min(room, max_document_tokens)
        known = self._tokens_of(documents, room=room, owner=owner)
        encodings = self._template.join_all(query_ids, [document.ids[:room] for document in known])
        dropped = np.array([one.total - min(len(one.ids), room) for one in known], dtype=np.int64)
        return EncodedPairs(encodings, dropped)

    def is_quick(self, query: str, documents: Sequence[str]) -> bool:
        """Whether encoding these takes microseconds a document."""
        return self._documents.is_quick([query, *documents])

    def room(self, query: str, instruction: str | None = None) -> int:
        """How many tokens of a document fit beside a query.

        Raises:
            InvalidRequest: the query leaves no room for a document, or there is an instruction.
        """
        refuse_instruction(instruction)
        return self._room_beside(len(self._query_ids(query)))

    def edges(self, texts: Sequence[str]) -> list[Edges]:
        """Where the tokens of texts lie."""
        return token_edges(self._tokenizer, texts)

    def drops(self, text: str) -> bool:
        """Whether the tokenizer leaves nothing of a short text."""
        return drops(self._tokenizer, text)

    def by_kind(self, kinds: Kinds[Made], /) -> Made:
        return kinds.pairs(self)

    def interpret(self, rows: Iterable[FloatArray], /) -> FloatArray:
        """Raw scores of shape [pairs] from the logits of each."""
        logits = stacked(rows)
        return score_of(self._head, logits)

    def _query_ids(self, query: str) -> IntArray:
        (ids,) = self._documents.tokenize([self._read_query(query)])
        return ids.astype(np.int64)

    def _tokens_of(self, documents: Sequence[str], *, room: int, owner: str) -> Sequence[DocumentTokens]:
        """At least `room` tokens of every document that has as many, remembered where that is faster."""
        if self._documents.is_fast:
            return self._document_tokens(documents, room=room)
        return self._tokens.get(
            documents,
            lambda texts: self._document_tokens(texts, room=room),
            room=room,
            most=Reach.of(room).most,
            owner=owner,
        )

    def _document_tokens(self, documents: Sequence[str], *, room: int) -> list[DocumentTokens]:
        """Each document's first tokens, at least `room` if it has that many. Its number of tokens is an estimate for a
        document of which only the beginning was tokenized.
        """
        beginnings = read_parts(
            documents, self._documents.tokenize, enough=lambda ids: len(ids) >= 2 * room, reach=Reach.of(room)
        )
        return [
            DocumentTokens(
                one.content if len(one.content) <= room else one.content[:room].copy(),
                len(one.content) + one.beyond(len(one.content)),
            )
            for one in beginnings
        ]

    def _room_beside(self, query_tokens: int) -> int:
        room = self.max_length - self._template.special_tokens - query_tokens
        if room < _MIN_DOCUMENT_TOKENS:
            longest = self.max_length - self._template.special_tokens - _MIN_DOCUMENT_TOKENS
            problem = (
                f"the query has {query_tokens} tokens; this model reads queries of at most {longest} tokens: "
                "shorten the query"
            )
            raise InvalidRequest(TooLong(problem=problem))
        return room


def normalized(query: str) -> str:
    """A query in lower case, without punctuation of ASCII, its words one space apart: as SQuAD compares answers."""
    return " ".join(query.lower().translate(_PUNCTUATION).split())


def _template(read: TokenizerFolder, *, pairs: str | None) -> PairTemplate:
    """How a pair becomes one sequence, if the folder's files all say that it becomes one so.

    Raises:
        ConfigError: one of them says otherwise; the message names it.
    """
    files = read.files
    refuse_other_than_cross_encoder(files)
    refuse_unknown_settings(files)
    native = native_form(files)
    if native is not None and native.separated_once:
        refuse_other_cuts(files, side=read.truncation_side)
        return read_joined_template(read.tokenizer)
    template = read_template(read.tokenizer)
    beginning = template.head.tolist()
    # A beginning of text in the middle of one separates nothing.
    separated = template.middle.tolist() not in ([], beginning)
    if pairs is None:
        refuse_unsaid_pairs(files, separated=separated)
    elif files.is_decoder and not read.names_pad:
        raise ConfigError(
            f"{files.folder}: no file names a padding token, by which this model finds the end of a text; name one "
            "that ends no text in tokenizer_config.json (pad_token) or config.json (pad_token_id)"
        )
    refuse_other_cuts(files, side=read.truncation_side)
    middle, tail = template.middle.tolist(), template.tail.tolist()
    check_pair(files, read.tokenizer, head=beginning, middle=middle, tail=tail)
    # A tokenizer may know segments that it does not give to its model.
    if template.segments and not gives_segments(files):
        template = replace(template, segments=False)
    return template


def _with_room(max_length: int, template: PairTemplate) -> int:
    if max_length < template.special_tokens + 2 * _MIN_DOCUMENT_TOKENS:
        raise ConfigError(f"max_length = {max_length} leaves no room for a query and a document; make it larger")
    return max_length
