"""Generated permutations: a language model writes "[3] > [1] > ..." and the text is read as an order.

Sun et al., "Is ChatGPT Good at Search? Investigating Large Language Models as Re-Ranking Agents", 2023 (RankGPT);
Pradeep et al., "RankZephyr", 2023. The engine's outputs are not logits but what was written: ids of tokens, or bytes of
UTF-8 from an endpoint, padded with -1. Whatever is written, what comes of it is a permutation.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from typing import Final

import numpy as np
from tokenizers import Tokenizer

from rerankd.config.options import read_options
from rerankd.domain import FloatArray, IntArray, WindowPlan
from rerankd.errors import ConfigError
from rerankd.recognition.kinds import refuse_other_than_language_model
from rerankd.scorers.base import EncodedWindow, ScorerSpec
from rerankd.scorers.list_prompt import (
    ListPrompt,
    ListTemplate,
    WindowOptions,
    count_words,
    cut_words,
    first_words,
    fit,
    identifier_texts,
    refuse_instruction,
)
from rerankd.scorers.templates import Neutraliser, read_prompt_template
from rerankd.scorers.tokenizer_files import TokenizerFolder, drops, ids_of
from rerankd.tasks.encoding import Encoding

_ANSWER: Final = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL)
_THOUGHT_BEGINS, _THOUGHT_ENDS = "<think>", "</think>"
_BRACKETED: Final = re.compile(r"\[\s*(\w+)\s*\]")
_BARE: Final = re.compile(r"\b(\d+|[A-Z])\b")
_AROUND_A_NAME: Final = " \n\t.,:;>()\"'*"
# An endpoint tells nobody how much it reads; words are limited by the template.
_BYTES: Final = 2_000_000


class GenerativeTemplate(ListTemplate):
    """A template file of the method "generative". With `messages` the prompt goes to an endpoint as a system and a user
    message, and `chat` is not used. `answer_tokens` are left free behind the prompt.
    """

    chat: str = "{system}{user}"
    messages: bool = False
    answer_tokens: int = 200


class Generative:
    output_tokens: Sequence[int] = ()
    outputs: int | None = None

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        template: GenerativeTemplate,
        *,
        plan: WindowPlan,
        max_length: int,
        pad_id: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._identifiers = identifier_texts(template.identifiers, count=plan.window)
        neutralise = _unchanged if tokenizer is None else Neutraliser(tokenizer, template.chat)
        self._prompt = ListPrompt(template, self._identifiers, neutralise)
        self.plan = plan
        self.max_length = max_length
        self.pad_id = pad_id
        self.fingerprint = json.dumps(["generative", max_length, asdict(plan), template.model_dump()])

    @classmethod
    def load(cls, spec: ScorerSpec) -> "Generative":
        """Read the prompt template, and for a local model tokenizer and configuration.

        Raises:
            ConfigError: a file is missing, or no template is known for the model.
        """
        options = read_options(spec.options, WindowOptions, of="scorer 'generative'")
        template = read_prompt_template(spec, method="generative", name=options.template, shape=GenerativeTemplate)
        if options.identifiers is not None:
            template = template.model_copy(update={"identifiers": options.identifiers})
        if template.messages:
            if spec.max_length is not None:
                raise ConfigError(
                    f"max_length = {spec.max_length}: an endpoint counts its own tokens; leave max_length out"
                )
            return cls(None, template, plan=options.plan, max_length=_BYTES, pad_id=0)
        files = TokenizerFolder.read(spec.folder)
        refuse_other_than_language_model(files.files, scorer="generative")
        max_length = files.length(spec.max_length, usual=template.max_length)
        if max_length <= template.answer_tokens:
            raise ConfigError(
                f"max_length = {max_length}: the model in {spec.folder} reads {files.longest} tokens, of which "
                f"{template.answer_tokens} are left to the answer"
            )
        return cls(
            files.tokenizer,
            template,
            plan=options.plan,
            max_length=max_length - template.answer_tokens,
            pad_id=files.pad_id,
        )

    def encode_window(
        self,
        query: str,
        documents: Sequence[str],
        *,
        max_document_tokens: int | None,
        instruction: str | None = None,
    ) -> EncodedWindow:
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

        @cache
        def ids_with(words: int) -> IntArray:
            return self._ids(question, [cut_words(passage, words) for passage in passages])

        ids, words = fit(ids_with, most=most, max_length=self.max_length, candidates=len(documents))
        dropped = [
            max(0, count_words(passage) - words) + part.beyond(part.content)
            for passage, part in zip(passages, parts, strict=True)
        ]
        return EncodedWindow(Encoding(ids, len(ids)), np.array(dropped, dtype=np.int64))

    def drops(self, text: str) -> bool:
        """Whether the tokenizer leaves nothing of a short text. An endpoint's is not known."""
        return self._tokenizer is not None and drops(self._tokenizer, text)

    def interpret_window(self, outputs: FloatArray, *, candidates: int) -> FloatArray:
        """What was written, as scores that say its order; shape [candidates]. All are equal where it names nobody."""
        written = outputs[outputs >= 0].astype(np.int64).tolist()
        text = (
            bytes(written).decode("utf-8", "replace")
            if self._tokenizer is None
            else self._tokenizer.decode(written, skip_special_tokens=True)
        )
        scores = np.zeros(candidates, dtype=np.float32)
        if named_places(text, self._identifiers[:candidates]):
            order = read_permutation(text, self._identifiers[:candidates])
            scores[order] = -np.arange(candidates, dtype=np.float32)
        return scores

    def _ids(self, query: str, passages: Sequence[str]) -> IntArray:
        if self._tokenizer is None:
            return np.frombuffer(self._messages(query, passages), dtype=np.uint8).astype(np.int64)
        return ids_of(self._tokenizer, self._prompt.write(query, passages))

    def _messages(self, query: str, passages: Sequence[str]) -> bytes:
        messages = [{"role": "user", "content": self._prompt.user(query, passages)}]
        if self._template.system:
            messages.insert(0, {"role": "system", "content": self._template.system})
        return json.dumps(messages, ensure_ascii=False).encode("utf-8", "replace")


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


def _unchanged(text: str) -> str:
    """An endpoint puts messages into its template by itself."""
    return text
