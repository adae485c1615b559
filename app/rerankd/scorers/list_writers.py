"""Prompts of a window of passages behind which a language model writes an answer: as token ids or as messages."""

import re
from collections.abc import Sequence
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np
from tokenizers import Tokenizer

from rerankd.errors import ConfigError
from rerankd.recognition.kinds import refuse_other_than_language_model
from rerankd.scorers.base import EncodedWindow, ScorerSpec, refuse_instruction
from rerankd.scorers.list_prompt import ListPrompt, ListTemplate, dropped_words, first_words, fit
from rerankd.scorers.templates import ControlTokenEscaper
from rerankd.scorers.tokenizer_files import TokenizerFolder, beginning_ids, drops, ids_of
from rerankd.tasks.base import Task
from rerankd.tasks.generate import Chat, Conversation, Generate, Message, Prompt
from rerankd.tasks.sample import Sample, SampleChat, Sampling

_THOUGHT_BEGINS, _THOUGHT_ENDS = "<think>", "</think>"
_ANSWER: Final = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL)
# An endpoint does not say how much its model reads. The template limits the words, this is for very long queries.
_MOST_CHARACTERS: Final = 2_000_000
_CHARACTERS_PER_TOKEN: Final = 4

T = TypeVar("T")


class WrittenTemplate(ListTemplate):
    """A template file of a method that reads what a model writes about a window. With `messages` the prompt goes to an
    endpoint as a system and a user message, and `chat` is not used. `answer_tokens` are left free behind the prompt.
    """

    chat: str = "{system}{user}"
    messages: bool = False
    answer_tokens: int = 200

    @property
    def begins_thought(self) -> bool:
        """Whether the prompt ends with the beginning of a thought, which the answer then lacks."""
        return not self.messages and self.chat.rstrip().endswith(_THOUGHT_BEGINS)


class Writer(Protocol[T]):
    """Makes a payload of a list prompt. A payload's length is in `unit`s, of which the model reads at
    most `longest`; `max_length` says the same in tokens.
    """

    @property
    def unit(self) -> str: ...

    @property
    def longest(self) -> int: ...

    @property
    def max_length(self) -> int: ...

    @property
    def pad_id(self) -> int: ...

    def clean(self, text: str) -> str:
        """Make a caller's text harmless: it must not read as a control token."""

    def write(self, prompt: ListPrompt, query: str, passages: Sequence[str]) -> T: ...

    def length(self, payload: T) -> int: ...

    def drops(self, text: str) -> bool:
        """Whether the tokenizer leaves nothing of a short text."""

    def generating(self) -> Task[T]:
        """The task that writes one text behind each prompt."""

    def sampling(self, how: Sampling) -> Task[T]:
        """The task that draws several."""


class TokenWriter:
    """Writes token ids, for an engine that has the model's weights."""

    unit = "tokens"

    def __init__(self, tokenizer: Tokenizer, template: WrittenTemplate, *, max_length: int, pad_id: int) -> None:
        self._tokenizer = tokenizer
        self._answer_tokens = template.answer_tokens
        self._leading = beginning_ids(tokenizer) if template.tokenizer_beginning else np.empty(0, dtype=np.int64)
        self.clean = ControlTokenEscaper(tokenizer, template.chat)
        self.max_length = self.longest = max_length
        self.pad_id = pad_id

    def write(self, prompt: ListPrompt, query: str, passages: Sequence[str]) -> Prompt:
        ids = ids_of(self._tokenizer, prompt.write(query, passages))
        return Prompt(np.concatenate((self._leading, ids)), max_tokens=self._answer_tokens)

    def length(self, payload: Prompt) -> int:
        return len(payload.ids)

    def drops(self, text: str) -> bool:
        return drops(self._tokenizer, text)

    def generating(self) -> Generate:
        return Generate(decode=self._decode)

    def sampling(self, how: Sampling) -> Sample:
        return Sample(decode=self._decode, sampling=how)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


class MessageWriter:
    """Writes messages, for a server that tokenizes them itself and puts them into its model's chat template."""

    unit = "characters"
    longest = _MOST_CHARACTERS
    max_length = _MOST_CHARACTERS // _CHARACTERS_PER_TOKEN
    pad_id = 0

    def __init__(self, template: WrittenTemplate) -> None:
        self._beginning = (Message("system", template.system),) if template.system else ()

    def clean(self, text: str) -> str:
        """Only what is no Unicode is replaced."""
        return text.encode("utf-8", "replace").decode()

    def write(self, prompt: ListPrompt, query: str, passages: Sequence[str]) -> Conversation:
        return Conversation((*self._beginning, Message("user", prompt.user(query, passages))))

    def length(self, payload: Conversation) -> int:
        return sum(len(message.content) for message in payload.messages)

    def drops(self, text: str) -> bool:  # noqa: ARG002 - the server's tokenizer is not known
        return False

    def generating(self) -> Chat:
        return Chat()

    def sampling(self, how: Sampling) -> SampleChat:
        return SampleChat(how, logprobs=False)


class WrittenWindows(Generic[T]):
    """What scorers share whose model writes about a window: how its prompt is written."""

    def __init__(self, writer: Writer[T], template: WrittenTemplate, identifiers: Sequence[str]) -> None:
        self._writer = writer
        self._template = template
        self._identifiers = identifiers
        self._prompt = ListPrompt(template, identifiers, writer.clean)
        self.max_length = writer.max_length
        self.pad_id = writer.pad_id

    def _whole(self, written: str) -> str:
        """What a model wrote, with the beginning of its thought where the prompt has that."""
        return f"{_THOUGHT_BEGINS}{written}" if self._template.begins_thought else written

    def encode_window(
        self,
        query: str,
        documents: Sequence[str],
        *,
        max_document_tokens: int | None,
        instruction: str | None = None,
    ) -> EncodedWindow[T]:
        """Write the prompt of one window; where it is too long, every passage keeps the same number of first words.

        Raises:
            InvalidRequest: a few words of each passage do not fit beside the query, or there is an instruction.
        """
        refuse_instruction(instruction)
        question = self._prompt.clean(query)
        most = self._template.words_for(len(documents))
        if max_document_tokens is not None:
            # A word is at least a token.
            most = min(most, max_document_tokens)
        parts = first_words(documents, most)
        passages = [
            self._prompt.clean(document[: part.characters]) for document, part in zip(documents, parts, strict=True)
        ]

        payload, kept = fit(
            lambda kept: self._writer.write(self._prompt, question, kept),
            passages,
            length=self._writer.length,
            most=most,
            longest=self._writer.longest,
            unit=self._writer.unit,
        )
        return EncodedWindow(payload, dropped_words(parts, kept))

    def drops(self, text: str) -> bool:
        """Whether the tokenizer leaves nothing of a short text. An endpoint's is not known."""
        return self._writer.drops(text)


def load_writer(spec: ScorerSpec, template: WrittenTemplate, *, scorer: str) -> Writer[Any]:
    """What writes a template's prompts. For a local model tokenizer and configuration are read.

    Raises:
        ConfigError: a file is missing, or the answer leaves no room for a prompt.
    """
    if template.messages:
        if spec.max_length is not None:
            raise ConfigError(
                f"max_length = {spec.max_length}: an endpoint counts its own tokens; leave max_length out"
            )
        return MessageWriter(template)
    files = TokenizerFolder.read(spec.folder)
    refuse_other_than_language_model(files.files, scorer=scorer)
    max_length = files.length(spec.max_length, usual=template.max_length)
    if max_length <= template.answer_tokens:
        raise ConfigError(
            f"max_length = {max_length}: the model in {spec.folder} reads {files.longest} tokens, of which "
            f"{template.answer_tokens} are left to the answer"
        )
    length = max_length - template.answer_tokens
    return TokenWriter(files.tokenizer, template, max_length=length, pad_id=files.pad_id)


def answer_in(text: str) -> str:
    """What a model answers: behind its thought, and inside of <answer> where it writes that. A thought without an end
    has no answer behind it.
    """
    if _THOUGHT_ENDS in text:
        text = text.rsplit(_THOUGHT_ENDS, 1)[1]
    elif _THOUGHT_BEGINS in text:
        return ""
    answers = _ANSWER.findall(text)
    return str(answers[-1]) if answers else text
