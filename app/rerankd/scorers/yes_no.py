"""Language models that judge one document at a time: the logit of "yes" against that of "no" at the last position.

Nogueira et al., "Document Ranking with a Pretrained Sequence-to-Sequence Model", 2020 (there with an encoder-decoder);
Qwen3-Reranker (2025), mxbai-rerank-v2 / ProRank (2025) and bge-reranker-v2-gemma (2024) with causal models. The raw
score is logit(positive) - logit(negative), whose sigmoid is the softmax probability of the positive token; a template
without a negative token gives the positive logit itself.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from tokenizers import Tokenizer

from rerankd.config.options import read_options
from rerankd.domain import FloatArray, IntArray
from rerankd.errors import ConfigError, InvalidRequest, TooLong
from rerankd.recognition.kinds import answer_tokens, default_prompt, refuse_other_than_language_model
from rerankd.scorers.base import Edges, EncodedPairs, ScorerSpec
from rerankd.scorers.beginnings import Reach, read_parts
from rerankd.scorers.edges import token_edges
from rerankd.scorers.ranking import ACTIVATIONS, Activation, ActivationName
from rerankd.scorers.templates import Neutraliser, fill, placeholders, read_prompt_template, single_token
from rerankd.scorers.tokenizer_files import TokenizerFolder, drops
from rerankd.tasks.encoding import Encoding

_MIN_DOCUMENT_TOKENS = 16


class YesNoTemplate(BaseModel):
    """A template file of the method "yes-no". Each part of the prompt is tokenized by itself and the ids are joined;
    the document ends the part that it stands in, and is the only thing that is ever cut.
    """

    model_config = ConfigDict(extra="forbid")

    prompt: tuple[str, ...] = Field(min_length=1)
    positive: str
    negative: str | None = None
    instruction: str | None = Field(default=None, description="What {instruction} says where a request does not.")
    instruction_form: str = Field(default="{instruction}", description="How it is put; nothing where there is none.")
    max_length: int | None = Field(default=None, ge=64)

    @model_validator(mode="after")
    def _document_ends_its_part(self) -> "YesNoTemplate":
        parts = [part for part in self.prompt if "document" in placeholders(part)]
        if len(parts) != 1 or not parts[0].endswith("{document}") or parts[0].count("{document}") != 1:
            raise ValueError("prompt: exactly one part must hold {document}, at its end")
        if not any("query" in placeholders(part) for part in self.prompt[: self.prompt.index(parts[0]) + 1]):
            raise ValueError("prompt: {query} must come before {document}")
        unknown = {name for part in self.prompt for name in placeholders(part)} - {"query", "document", "instruction"}
        if unknown:
            raise ValueError(f"prompt: unknown placeholder {', '.join(sorted(unknown))}")
        return self

    @property
    def takes_instruction(self) -> bool:
        return any("instruction" in placeholders(part) for part in self.prompt)


class YesNoOptions(BaseModel):
    """`[model.options]` of the scorer `yes-no`."""

    model_config = ConfigDict(extra="forbid")

    template: str | None = Field(default=None, description="Default: the one that recognises the model's repository.")
    instruction: str | None = Field(default=None, description="Default: the template's.")
    activation: ActivationName = Field(default="sigmoid", description="`sigmoid` or `identity`.")


@dataclass(frozen=True, slots=True)
class _Frame:
    """The ids around one query's documents: `head` is all up to the part with the document, whose text begins with
    `opening`; `opening_tokens` are those of it that no document changes.
    """

    head: IntArray
    opening: str
    opening_tokens: IntArray
    tail: IntArray


class YesNo:
    def __init__(
        self,
        tokenizer: Tokenizer,
        template: YesNoTemplate,
        *,
        instruction: str | None,
        max_length: int,
        pad_id: int,
        activation: str,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._instruction = instruction
        self._neutralise = Neutraliser(tokenizer, "".join(template.prompt))
        self.max_length = max_length
        self.pad_id = pad_id
        self.activation: Activation = ACTIVATIONS[activation]
        positive = single_token(tokenizer, template.positive, option="positive")
        self.output_tokens: tuple[int, ...] = (positive,)
        if template.negative is not None:
            self.output_tokens += (single_token(tokenizer, template.negative, option="negative"),)
        self.outputs = len(self.output_tokens)
        self.fingerprint = json.dumps(["yes-no", max_length, instruction, template.model_dump()])

    @classmethod
    def load(cls, spec: ScorerSpec) -> "YesNo":
        """Read tokenizer, configuration and prompt template.

        Raises:
            ConfigError: a file is missing, no template is known for the model, or its answer is not one token.
        """
        options = read_options(spec.options, YesNoOptions, of="scorer 'yes-no'")
        template = read_prompt_template(spec, method="yes-no", name=options.template, shape=YesNoTemplate)
        read = TokenizerFolder.read(spec.folder)
        refuse_other_than_language_model(read.files, scorer="yes-no")
        _check_instruction(read, template, options)
        scorer = cls(
            read.tokenizer,
            template,
            instruction=options.instruction if options.instruction is not None else template.instruction,
            max_length=read.length(spec.max_length, usual=template.max_length),
            pad_id=read.pad_id,
            activation=options.activation,
        )
        _check_answers(read, scorer)
        return scorer

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        *,
        max_document_tokens: int | None,
        instruction: str | None = None,
        owner: str = "",  # noqa: ARG002 - nothing is kept
    ) -> EncodedPairs:
        """Tokenize what surrounds the documents once and all documents in one call; cut documents, nothing else.

        Raises:
            InvalidRequest: the query leaves no room for a document, or there is an instruction that the model's prompt
                has no place for.
        """
        frame = self._frame(query, instruction)
        room = self._room_in(frame)
        if max_document_tokens is not None:
            room = min(room, max_document_tokens)
        limit = len(frame.opening_tokens) + room
        parts = read_parts(
            documents,
            lambda texts: self._opened(frame.opening, texts),
            enough=lambda ids: len(ids) >= limit + room,
            reach=Reach.of(limit),
        )
        encodings = []
        dropped = np.zeros(len(documents), dtype=np.int64)
        for position, part in enumerate(parts):
            ids = np.array(part.content[:limit], dtype=np.int64)
            encodings.append(_join(frame, ids))
            dropped[position] = len(part.content) - len(ids) + part.beyond(len(part.content))
        return EncodedPairs(encodings, dropped)

    def _opened(self, opening: str, documents: Sequence[str]) -> list[list[int]]:
        """The ids of the part of the prompt that each document ends."""
        texts = [opening + self._neutralise(document) for document in documents]
        return [part.ids for part in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def room(self, query: str, instruction: str | None = None) -> int:
        """How many tokens of a document fit into the prompt.

        Raises:
            InvalidRequest: as `encode` says.
        """
        return self._room_in(self._frame(query, instruction))

    def edges(self, texts: Sequence[str]) -> list[Edges]:
        """Where the tokens of texts lie. Control tokens in them count as the one that they are here, though they are
        spelt out in the prompt: a passage full of them is cut a little, and that is reported.
        """
        return token_edges(self._tokenizer, texts)

    def drops(self, text: str) -> bool:
        """Whether the tokenizer leaves nothing of a short text."""
        return drops(self._tokenizer, text)

    def interpret(self, logits: FloatArray) -> FloatArray:
        """Raw scores of shape [pairs] from logits of shape [pairs, 1 or 2]."""
        return logits[:, 0] - logits[:, 1] if logits.shape[1] > 1 else logits[:, 0]

    def _frame(self, query: str, instruction: str | None) -> _Frame:
        if instruction is not None and not self._template.takes_instruction:
            raise InvalidRequest("this model does not take an instruction; leave it out")
        values = {"query": self._neutralise(query), "instruction": self._said(instruction)}
        texts = [fill(part, values) for part in self._template.prompt]
        at = next(index for index, part in enumerate(self._template.prompt) if part.endswith("{document}"))
        opening = texts[at].removesuffix("{document}")
        # The last token may merge with a document's beginning: it is never part of what documents share.
        return _Frame(
            head=self._ids(texts[:at]),
            opening=opening,
            opening_tokens=self._ids([opening])[:-1],
            tail=self._ids(texts[at + 1 :]),
        )

    def _said(self, instruction: str | None) -> str:
        said = self._instruction if instruction is None else self._neutralise(instruction)
        return fill(self._template.instruction_form, {"instruction": said}) if said else ""

    def _ids(self, texts: Sequence[str]) -> IntArray:
        ids = [self._tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        return np.array([one for part in ids for one in part], dtype=np.int64)

    def _room_in(self, frame: _Frame) -> int:
        taken = len(frame.head) + len(frame.opening_tokens) + 1 + len(frame.tail)
        room = self.max_length - taken
        if room < _MIN_DOCUMENT_TOKENS:
            problem = (
                f"the prompt with this query has {taken} tokens before any document, the model reads "
                f"{self.max_length}: shorten the query or the instruction"
            )
            raise InvalidRequest(TooLong(problem=problem))
        return room + 1


def _check_instruction(read: TokenizerFolder, template: YesNoTemplate, options: YesNoOptions) -> None:
    """Refuse to choose between two instructions where a request brings none."""
    said = default_prompt(read.files)
    if options.instruction is None and template.takes_instruction and said not in (None, template.instruction):
        raise ConfigError(
            f"{read.folder}: config_sentence_transformers.json says the instruction {said!r:.120}, the template "
            f"{template.instruction!r:.120}; choose one: options = {{ instruction = ... }}"
        )


def _check_answers(read: TokenizerFolder, scorer: YesNo) -> None:
    """Refuse a template that reads other tokens than the folder says."""
    said = answer_tokens(read.files)
    if said is not None and tuple(said) != scorer.output_tokens:
        names, ours = ([read.tokenizer.id_to_token(number) for number in ids] for ids in (said, scorer.output_tokens))
        raise ConfigError(
            f"{read.folder}: modules.json says that the score is read at the tokens {names}, the template reads "
            f"{ours}; write a template with the first as `positive` and `negative` (docs/models.md)"
        )


def _join(frame: _Frame, part: IntArray) -> Encoding:
    """All ids of one prompt; those that no document changes are its shared beginning."""
    shared = len(frame.opening_tokens)
    same = len(part) >= shared and bool((part[:shared] == frame.opening_tokens).all())
    return Encoding(np.concatenate((frame.head, part, frame.tail)), len(frame.head) + (shared if same else 0))
