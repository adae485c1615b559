"""Generated permutations: a language model writes "[3] > [1] > ..." and the text is read as an order.

Sun et al., "Is ChatGPT Good at Search? Investigating Large Language Models as Re-Ranking Agents", 2023 (RankGPT);
Pradeep et al., "RankZephyr", 2023. Whatever is written, what comes of it is a permutation.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final, Generic, Literal, Protocol, TypeVar

import numpy as np
from pydantic import Field
from tokenizers import Tokenizer

from rerankd.config.options import read_options
from rerankd.domain import FloatArray, WindowPlan
from rerankd.errors import ConfigError
from rerankd.recognition.kinds import refuse_other_than_language_model
from rerankd.scorers.base import EncodedWindow, Kinds, Made, ScorerSpec, refuse_instruction
from rerankd.scorers.list_prompt import (
    ListPrompt,
    ListTemplate,
    WindowOptions,
    dropped_words,
    first_words,
    fit,
    identifier_texts,
)
from rerankd.scorers.templates import ControlTokenEscaper, read_prompt_template
from rerankd.scorers.tokenizer_files import TokenizerFolder, beginning_ids, drops, ids_of
from rerankd.tasks.base import Task
from rerankd.tasks.generate import Chat, Conversation, Generate, Generated, Message, Prompt

_ANSWER: Final = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL)
_THOUGHT_BEGINS, _THOUGHT_ENDS = "<think>", "</think>"
_BRACKETED: Final = re.compile(r"\[\s*(\w+)\s*\]")
_BARE: Final = re.compile(r"\b(\d+|[A-Z])\b")
_AROUND_A_NAME: Final = " \n\t.,:;>()\"'*"
# An endpoint does not say how much its model reads. The template limits the words, this is for very long queries.
_MOST_CHARACTERS: Final = 2_000_000
_CHARACTERS_PER_TOKEN: Final = 4

T = TypeVar("T")


class GenerativeTemplate(ListTemplate):
    """A template file of the method "generative". With `messages` the prompt goes to an endpoint as a system and a user
    message, and `chat` is not used. `answer` says whether the model writes an order or names the best passage only.
    `answer_tokens` are left free behind the prompt.
    """

    chat: str = "{system}{user}"
    messages: bool = False
    answer: Literal["order", "best"] = "order"
    answer_tokens: int = 200

    @property
    def begins_thought(self) -> bool:
        """Whether the prompt ends with the beginning of a thought, which the answer then lacks."""
        return not self.messages and self.chat.rstrip().endswith(_THOUGHT_BEGINS)


class GenerativeOptions(WindowOptions):
    """`[model.options]` of the scorer `generative`."""

    answer_tokens: int | None = Field(default=None, ge=1, description="Default: the template's.")


class Writer(Protocol[T]):
    """Makes a payload of a list prompt, for one task. A payload's length is in `unit`s, of which the model reads at
    most `longest`; `max_length` says the same in tokens.
    """

    @property
    def task(self) -> Task[T]: ...

    @property
    def unit(self) -> str: ...

    @property
    def longest(self) -> int: ...

    @property
    def max_length(self) -> int: ...

    def clean(self, text: str) -> str:
        """Make a caller's text harmless: it must not read as a control token."""

    def write(self, prompt: ListPrompt, query: str, passages: Sequence[str]) -> T: ...

    def length(self, payload: T) -> int: ...

    def drops(self, text: str) -> bool:
        """Whether the tokenizer leaves nothing of a short text."""


class TokenWriter:
    """Writes token ids, for an engine that has the model's weights."""

    unit = "tokens"

    def __init__(self, tokenizer: Tokenizer, template: GenerativeTemplate, *, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._answer_tokens = template.answer_tokens
        self._leading = beginning_ids(tokenizer) if template.tokenizer_beginning else np.empty(0, dtype=np.int64)
        self.clean = ControlTokenEscaper(tokenizer, template.chat)
        self.max_length = self.longest = max_length
        self.task = Generate(decode=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)))

    def write(self, prompt: ListPrompt, query: str, passages: Sequence[str]) -> Prompt:
        ids = ids_of(self._tokenizer, prompt.write(query, passages))
        return Prompt(np.concatenate((self._leading, ids)), max_tokens=self._answer_tokens)

    def length(self, payload: Prompt) -> int:
        return len(payload.ids)

    def drops(self, text: str) -> bool:
        return drops(self._tokenizer, text)


class MessageWriter:
    """Writes messages, for a server that tokenizes them itself and puts them into its model's chat template."""

    unit = "characters"
    longest = _MOST_CHARACTERS
    max_length = _MOST_CHARACTERS // _CHARACTERS_PER_TOKEN
    task = Chat()

    def __init__(self, template: GenerativeTemplate) -> None:
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


class Generative(Generic[T]):
    def __init__(self, writer: Writer[T], template: GenerativeTemplate, *, plan: WindowPlan, pad_id: int) -> None:
        self._writer = writer
        self._template = template
        self._identifiers = identifier_texts(template.identifiers, count=plan.window)
        self._prompt = ListPrompt(template, self._identifiers, writer.clean)
        self.names_best = template.answer == "best"
        self.task = writer.task
        self.plan = plan
        self.max_length = writer.max_length
        self.pad_id = pad_id
        self.fingerprint = json.dumps(["generative", self.max_length, asdict(plan), template.model_dump()])

    @classmethod
    def load(cls, spec: ScorerSpec) -> "Generative[Any]":
        """Read the prompt template, and for a local model tokenizer and configuration.

        Raises:
            ConfigError: a file is missing, or no template is known for the model.
        """
        options = read_options(spec.options, GenerativeOptions, of="scorer 'generative'")
        template = read_prompt_template(
            spec, scorer="generative", name=options.template, shapes={"generative": GenerativeTemplate}
        )
        changes = {"identifiers": options.identifiers, "answer_tokens": options.answer_tokens}
        template = template.model_copy(update={name: value for name, value in changes.items() if value is not None})
        if template.messages:
            if spec.max_length is not None:
                raise ConfigError(
                    f"max_length = {spec.max_length}: an endpoint counts its own tokens; leave max_length out"
                )
            return Generative(MessageWriter(template), template, plan=options.plan(template), pad_id=0)
        files = TokenizerFolder.read(spec.folder)
        refuse_other_than_language_model(files.files, scorer="generative")
        max_length = files.length(spec.max_length, usual=template.max_length)
        if max_length <= template.answer_tokens:
            raise ConfigError(
                f"max_length = {max_length}: the model in {spec.folder} reads {files.longest} tokens, of which "
                f"{template.answer_tokens} are left to the answer"
            )
        writer = TokenWriter(files.tokenizer, template, max_length=max_length - template.answer_tokens)
        return Generative(writer, template, plan=options.plan(template), pad_id=files.pad_id)

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

    def by_kind(self, kinds: Kinds[Made], /) -> Made:
        return kinds.lists(self)

    def interpret_window(self, result: Generated, /, *, candidates: int) -> FloatArray:
        """What was written, as scores that say its order; shape [candidates]. All are equal where it names none, or
        several where it should name the best.
        """
        text = f"{_THOUGHT_BEGINS}{result.text}" if self._template.begins_thought else result.text
        scores = np.zeros(candidates, dtype=np.float32)
        named = named_places(text, self._identifiers[:candidates])
        if self.names_best:
            if len(named) == 1:
                scores[named] = 1
        elif named:
            order = read_permutation(text, self._identifiers[:candidates])
            scores[order] = -np.arange(candidates, dtype=np.float32)
        return scores


def read_permutation(text: str, identifiers: Sequence[str]) -> list[int]:
    """Places of candidates in the order that a text says: what it names twice or wrongly is left out, what it does not
    name follows in input order.
    """
    named = named_places(text, identifiers)
    return [*named, *(place for place in range(len(identifiers)) if place not in named)]


def named_places(text: str, identifiers: Sequence[str]) -> list[int]:
    """Places of the candidates that a text names, in its order; none: it is a refusal, or noise. A thought is not an
    answer, and one without an end has no answer behind it.
    """
    place_of = {identifier: place for place, identifier in enumerate(identifiers)}
    answer = _answer(text)
    named = dict.fromkeys(place_of[name] for name in _BRACKETED.findall(answer) if name in place_of)
    if named:
        return list(named)
    bare = dict.fromkeys(place_of[name] for name in _BARE.findall(answer) if name in place_of)
    # "I cannot rank these 4 passages" orders nothing.
    return list(bare) if len(bare) > 1 or answer.strip(_AROUND_A_NAME) in place_of else []


def _answer(text: str) -> str:
    if _THOUGHT_ENDS in text:
        text = text.rsplit(_THOUGHT_ENDS, 1)[1]
    elif _THOUGHT_BEGINS in text:
        return ""
    answers = _ANSWER.findall(text)
    return str(answers[-1]) if answers else text
