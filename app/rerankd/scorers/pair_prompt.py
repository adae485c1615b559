"""Prompts that show a language model one query and one document: written, and cut to what fits.

Only the document is ever cut. What surrounds it is tokenized once per request as far as that gives the same tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from tokenizers import Tokenizer

from rerankd.domain import IntArray
from rerankd.errors import ConfigError, InvalidRequest, TooLong
from rerankd.recognition.activations import ActivationSetting
from rerankd.recognition.chat_template import STRIPPED, Strips
from rerankd.recognition.kinds import ModelFiles, default_prompt
from rerankd.scorers.base import Edges, EncodedPairs, refuse_instruction
from rerankd.scorers.beginnings import Reach, read_parts
from rerankd.scorers.edges import token_edges
from rerankd.scorers.ranking import Activation, activation_of
from rerankd.scorers.templates import ControlTokenEscaper, fill, placeholders
from rerankd.scorers.tokenizer_files import beginning_ids, drops
from rerankd.tasks.encoding import Encoding, PromptEncoding
from rerankd.tasks.generate import Prompt

_MIN_DOCUMENT_TOKENS: Final = 16
_TRIED: Final = (("what is love", "Baby don't hurt me."), (" a ", "b \n"), ("größe", "漢字 🎉"))


class PairTemplateFile(BaseModel):
    """What a template file says of the prompt. Each part of it is tokenized by itself and the ids are joined; exactly
    one holds the document.
    """

    model_config = ConfigDict(extra="forbid")
    places: ClassVar[frozenset[str]] = frozenset(["query", "document", "instruction"])

    prompt: tuple[str, ...] = Field(min_length=1)
    instruction: str | None = Field(default=None, description="What {instruction} says where a request does not.")
    instruction_form: str = Field(default="{instruction}", description="How it is put; nothing where there is none.")
    tokenizer_beginning: bool = Field(default=False, description="Before it stands what the tokenizer puts before all.")
    strips: Strips = Field(default="nothing", description="What query and document lose at their ends.")
    ending_tokens: tuple[int, ...] = Field(default=(), description="Ids behind the prompt, where no text makes them.")
    max_length: int | None = Field(default=None, ge=64)

    @model_validator(mode="after")
    def _has_places(self) -> "PairTemplateFile":
        text = "".join(self.prompt)
        if text.count("{document}") != 1:
            raise ValueError("prompt: exactly one part must hold {document}, once")
        if "{query}" not in text:
            raise ValueError("prompt: one part must hold {query}")
        unknown = placeholders(text) - self.places
        if unknown:
            raise ValueError(f"prompt: unknown placeholder {', '.join(sorted(unknown))}")
        return self


def check_instruction(files: ModelFiles, *, said: str | None, template: str | None) -> None:
    """Refuse to choose between a folder's instruction and a template's where a request brings none. `said`: what the
    operator chose.

    Raises:
        ConfigError: the two differ.
    """
    own = default_prompt(files)
    if said is None and own not in (None, template):
        raise ConfigError(
            f"{files.folder}: config_sentence_transformers.json says the instruction {own!r:.120}, the template "
            f"{template!r:.120}; choose one: options = {{ instruction = ... }}"
        )


def parts_of(text: str, tokenizer: Tokenizer) -> tuple[str, ...]:
    """A prompt of one text, in parts that are tokenized one by one and give the same tokens: cut before control tokens,
    so that not all of it is tokenized again for every document.
    """
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    at = text.index("{document}")
    before = max((text.rfind(token, 0, at) for token in added), default=-1)
    behind = min((place for token in added if (place := text.find(token, at)) > 0), default=len(text))
    parts = tuple(part for part in (text[: max(before, 0)], text[max(before, 0) : behind], text[behind:]) if part)
    return parts if all(_same(parts, pair, tokenizer) for pair in _TRIED) else (text,)


def _same(parts: Sequence[str], pair: tuple[str, str], tokenizer: Tokenizer) -> bool:
    values = {"query": pair[0], "document": pair[1], "instruction": pair[0]}
    texts = [fill(part, values) for part in parts]
    apart = [number for text in texts for number in tokenizer.encode(text, add_special_tokens=False).ids]
    return apart == list(tokenizer.encode("".join(texts), add_special_tokens=False).ids)


@dataclass(frozen=True, slots=True)
class _Frame:
    """What surrounds one query's documents. `head` and `tail` are the ids of the parts before and behind that of the
    document, whose text is `opening`, document, `closing`; `opening_tokens` are those of it that no document changes.
    """

    head: IntArray
    opening: str
    opening_tokens: IntArray
    closing: str
    closing_tokens: IntArray
    tail: IntArray

    def join(self, part: IntArray) -> Encoding:
        """All ids of one prompt; those that no document changes are its shared beginning."""
        shared = len(self.opening_tokens)
        same = len(part) >= shared and bool((part[:shared] == self.opening_tokens).all())
        start = len(self.head)
        ids = np.concatenate((self.head, part, self.tail))
        return PromptEncoding(ids, start + (shared if same else 0), (start, start + len(part)))


class PairPrompt:
    """Encodes pairs into a prompt; `instruction` None: nothing is said where a request brings none. `also` holds
    control tokens that the prompt may have beside those of the template.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: PairTemplateFile,
        *,
        instruction: str | None,
        max_length: int,
        also: str = "",
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._instruction = instruction
        self.escape = ControlTokenEscaper(tokenizer, "".join(template.prompt) + also)
        self._ending = np.array(template.ending_tokens, dtype=np.int64)
        self._strip = STRIPPED[template.strips]
        self._leading = beginning_ids(tokenizer) if template.tokenizer_beginning else np.empty(0, dtype=np.int64)
        self.max_length = max_length

    @property
    def takes_instruction(self) -> bool:
        return any("instruction" in placeholders(part) for part in self._template.prompt)

    def encode(
        self, query: str, documents: Sequence[str], *, max_document_tokens: int | None, instruction: str | None
    ) -> EncodedPairs[Encoding]:
        """Tokenize what surrounds the documents once and all documents in one call; cut documents, nothing else.

        Raises:
            InvalidRequest: the query leaves no room for a document, or there is an instruction that the model's prompt
                has no place for.
        """
        if self._template.strips != "nothing":
            documents = [self._strip("", document)[1] for document in documents]
        frame = self._frame(query, instruction)
        room = self._room_in(frame)
        if max_document_tokens is not None:
            room = min(room, max_document_tokens)
        limit = len(frame.opening_tokens) + room
        parts = read_parts(
            documents,
            lambda texts: self._tokenize([frame.opening + self.escape(text) for text in texts]),
            enough=lambda ids: len(ids) >= limit + room,
            reach=Reach.of(limit),
        )
        whole = [len(part.content) <= limit and not part.unread for part in parts]
        closed = iter(self._closed(frame, [text for text, fits in zip(documents, whole, strict=True) if fits]))
        encodings = []
        dropped = np.zeros(len(documents), dtype=np.int64)
        for position, (part, fits) in enumerate(zip(parts, whole, strict=True)):
            ids = np.array(part.content[:limit], dtype=np.int64)
            dropped[position] = len(part.content) - len(ids) + part.beyond(len(part.content))
            joined = np.concatenate((ids, frame.closing_tokens))
            if fits and frame.closing:
                together = np.array(next(closed), dtype=np.int64)
                joined = together if len(together) <= limit + len(frame.closing_tokens) else joined
            encodings.append(frame.join(joined))
        return EncodedPairs(encodings, dropped)

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

    def written(self, query: str, instruction: str | None, *, mark: str = "") -> tuple[str, str]:
        """The text of the prompt before a document and behind it; `mark` is written before the query's text.

        Raises:
            InvalidRequest: there is an instruction that the prompt has no place for.
        """
        before, behind = "".join(self._template.prompt).split("{document}")
        values = self._values(query, instruction, mark=mark)
        return fill(before, values), fill(behind, values)

    def _closed(self, frame: _Frame, documents: Sequence[str]) -> list[list[int]]:
        """The ids of the document's part with what stands behind the document there: it may merge with its end."""
        if not frame.closing:
            return []
        return self._tokenize([frame.opening + self.escape(text) + frame.closing for text in documents])

    def _frame(self, query: str, instruction: str | None) -> _Frame:
        values = self._values(query, instruction)
        at = next(index for index, part in enumerate(self._template.prompt) if "{document}" in part)
        texts = [fill(part, values) for part in self._template.prompt]
        opening, closing = (fill(side, values) for side in self._template.prompt[at].split("{document}"))
        # The last token may merge with a document's beginning: it is never part of what documents share.
        return _Frame(
            head=np.concatenate((self._leading, self._ids(texts[:at]))),
            opening=opening,
            opening_tokens=self._ids([opening])[:-1],
            closing=closing,
            closing_tokens=self._ids([closing]),
            tail=np.concatenate((self._ids(texts[at + 1 :]), self._ending)),
        )

    def _values(self, query: str, instruction: str | None, *, mark: str = "") -> dict[str, str]:
        refuse_instruction(instruction, takes=self.takes_instruction)
        return {"query": mark + self.escape(self._strip(query, "")[0]), "instruction": self._said(instruction)}

    def _said(self, instruction: str | None) -> str:
        said = self._instruction if instruction is None else self.escape(instruction)
        return fill(self._template.instruction_form, {"instruction": said}) if said else ""

    def _ids(self, texts: Sequence[str]) -> IntArray:
        return np.array([one for part in self._tokenize(texts) for one in part], dtype=np.int64)

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        return [part.ids for part in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _room_in(self, frame: _Frame) -> int:
        taken = len(frame.head) + len(frame.opening_tokens) + 1 + len(frame.closing_tokens) + len(frame.tail)
        room = self.max_length - taken
        if room < _MIN_DOCUMENT_TOKENS:
            problem = (
                f"the prompt with this query has {taken} tokens before any document, the model reads "
                f"{self.max_length}: shorten the query or the instruction"
            )
            raise InvalidRequest(TooLong(problem=problem))
        return room + 1


class PromptedPairs:
    """What scorers of pairs in a prompt share: how pairs are written. What the model's outputs mean is theirs."""

    def __init__(self, prompt: PairPrompt, *, pad_id: int, activation: ActivationSetting) -> None:
        self._prompt = prompt
        self.max_length = prompt.max_length
        self.pad_id = pad_id
        self.activation: Activation = activation_of(activation)

    def room(self, query: str, instruction: str | None = None) -> int:
        """As `PairPrompt.room`."""
        return self._prompt.room(query, instruction)

    def edges(self, texts: Sequence[str]) -> list[Edges]:
        """As `PairPrompt.edges`."""
        return self._prompt.edges(texts)

    def drops(self, text: str) -> bool:
        """As `PairPrompt.drops`."""
        return self._prompt.drops(text)


class EncodedInPrompts(PromptedPairs):
    """Scorers whose model reads the prompt and writes nothing."""

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        *,
        max_document_tokens: int | None,
        instruction: str | None = None,
        owner: str = "",  # noqa: ARG002 - nothing is kept
    ) -> EncodedPairs[Encoding]:
        """As `PairPrompt.encode`."""
        return self._prompt.encode(query, documents, max_document_tokens=max_document_tokens, instruction=instruction)


class AnsweredPairs(PromptedPairs):
    """Scorers whose model writes an answer of at most `_answer_tokens` tokens behind the prompt."""

    _answer_tokens: int

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        *,
        max_document_tokens: int | None,
        instruction: str | None = None,
        owner: str = "",  # noqa: ARG002 - nothing is kept
    ) -> EncodedPairs[Prompt]:
        """As `PairPrompt.encode`, with room for an answer."""
        pairs = self._prompt.encode(query, documents, max_document_tokens=max_document_tokens, instruction=instruction)
        return EncodedPairs([Prompt(one.ids, self._answer_tokens) for one in pairs.encodings], pairs.dropped)
