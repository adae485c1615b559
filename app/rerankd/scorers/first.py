"""FIRST: a window of candidates is ranked by one prefill, from the logits of their identifiers at the first place.

Reddy et al., "FIRST: Faster Improved Listwise Reranking with Single Token Decoding", 2024. A model that would generate
"[C] > [A] > ..." says with the logits of the letters at its first identifier already how it ranks all of them. Only
these rows of the head are taken, exactly: reading the most probable tokens instead loses identifiers.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal

import numpy as np
from pydantic import Field
from tokenizers import Tokenizer

from rerankd.config.options import read_options
from rerankd.domain import FloatArray, IntArray, WindowPlan
from rerankd.errors import ConfigError
from rerankd.recognition.kinds import refuse_other_than_language_model
from rerankd.scorers.base import EncodedWindow, Kinds, Made, ScorerSpec, refuse_instruction
from rerankd.scorers.list_prompt import (
    ListPrompt,
    ListTemplate,
    WindowOptions,
    dropped_words,
    fit,
    identifier_texts,
    passages_of,
)
from rerankd.scorers.templates import ControlTokenEscaper, read_prompt_template
from rerankd.scorers.tokenizer_files import TokenizerFolder, beginning_ids, drops, ids_of
from rerankd.tasks.encoding import Encoding
from rerankd.tasks.read_tokens import ReadTokens

Read = Literal["bracket", "generated-bracket", "prompt"]

_PROBE_QUERY = "what is a probe"
_PROBE_PASSAGES = ("A probe is a small test.", "It rains (mostly) in spring")


class FirstTemplate(ListTemplate):
    """A template file of the method "first". `read` says after what the identifiers' logits are read, which checkpoints
    differ in: the prompt with "[" written behind it (`bracket`); the prompt and the token "[" that the model would
    generate (`generated-bracket`; `bracket_token` names it where it is not the tokenizer's own "["); the prompt alone
    (`prompt`, for models that answer without brackets).
    """

    read: Read = "bracket"
    bracket_token: str | None = None


class FirstOptions(WindowOptions):
    """`[model.options]` of the scorer `first`."""

    read: Read | None = Field(default=None, description="Default: the template's.")


class First:
    names_best = False

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: FirstTemplate,
        *,
        plan: WindowPlan,
        max_length: int,
        pad_id: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        identifiers = identifier_texts(template.identifiers, count=plan.window)
        self._prompt = ListPrompt(template, identifiers, ControlTokenEscaper(tokenizer, template.chat))
        self.plan = plan
        self.max_length = max_length
        self.pad_id = pad_id
        self._leading = beginning_ids(tokenizer) if template.tokenizer_beginning else np.empty(0, dtype=np.int64)
        self._ending = self._bracket_ids()
        self.task = ReadTokens(tuple(self._identifier_id(identifier) for identifier in identifiers))
        if len(set(self.task.tokens)) < len(identifiers):
            raise ConfigError(f"this tokenizer does not tell the identifiers {', '.join(identifiers)} apart")
        self.fingerprint = json.dumps(["first", max_length, asdict(plan), template.model_dump()])

    @classmethod
    def load(cls, spec: ScorerSpec) -> "First":
        """Read tokenizer, configuration and prompt template, and check that every identifier is one token.

        Raises:
            ConfigError: a file is missing, no template is known for the model, or its tokenizer does not suit it.
        """
        options = read_options(spec.options, FirstOptions, of="scorer 'first'")
        template = read_prompt_template(spec, scorer="first", name=options.template, shapes={"first": FirstTemplate})
        changes = {"identifiers": options.identifiers, "read": options.read}
        template = template.model_copy(update={name: value for name, value in changes.items() if value is not None})
        files = TokenizerFolder.read(spec.folder)
        refuse_other_than_language_model(files.files, scorer="first")
        return cls(
            files.tokenizer,
            template,
            plan=options.plan(template),
            max_length=files.length(spec.max_length, usual=template.max_length),
            pad_id=files.pad_id,
        )

    def encode_window(
        self,
        query: str,
        documents: Sequence[str],
        *,
        max_document_tokens: int | None,
        instruction: str | None = None,
    ) -> EncodedWindow[Encoding]:
        """Write the prompt of one window; where it is too long, every passage keeps the same number of first words.

        Raises:
            InvalidRequest: a few words of each passage do not fit beside the query, or there is an instruction.
        """
        refuse_instruction(instruction)
        question = self._prompt.clean(query)
        most = self._template.words_for(len(documents))
        parts, passages = passages_of(self._tokenizer, self._prompt, documents, words=most, tokens=max_document_tokens)

        ids, kept = fit(
            lambda kept: self._ids(self._prompt.write(question, kept)),
            passages,
            length=len,
            most=most,
            longest=self.max_length,
        )
        boundary = self._shared_tokens(ids, self._prompt.opening(question, count=len(documents)))
        return EncodedWindow(Encoding(ids, boundary), dropped_words(parts, kept))

    def drops(self, text: str) -> bool:
        """Whether the tokenizer leaves nothing of a short text."""
        return drops(self._tokenizer, text)

    def by_kind(self, kinds: Kinds[Made], /) -> Made:
        return kinds.lists(self)

    def interpret_window(self, outputs: FloatArray, /, *, candidates: int) -> FloatArray:
        """The identifiers' logits, comparable inside of this window only; shape [candidates]."""
        return outputs[:candidates]

    def _ids(self, prompt: str) -> IntArray:
        text = f"{prompt}[" if self._template.read == "bracket" else prompt
        return np.concatenate((self._leading, ids_of(self._tokenizer, text), self._ending))

    def _shared_tokens(self, ids: IntArray, opening: str) -> int:
        """Tokens that all windows with this query begin with; the opening's last may merge with a passage."""
        shared = np.concatenate((self._leading, ids_of(self._tokenizer, opening)[:-1]))
        return len(shared) if bool((ids[: len(shared)] == shared).all()) else 0

    def _bracket_ids(self) -> IntArray:
        """What follows a prompt's own ids: nothing, or the bracket that the model would generate."""
        if self._template.read != "generated-bracket":
            return np.empty(0, dtype=np.int64)
        if self._template.bracket_token is not None:
            token = self._tokenizer.token_to_id(self._template.bracket_token)
            if token is None:
                raise ConfigError(f"bracket_token = {self._template.bracket_token!r} is not in this vocabulary")
            return np.array([token], dtype=np.int64)
        prompt = self._prompt.write(_PROBE_QUERY, _PROBE_PASSAGES)
        before, after = (self._tokenizer.encode(text, add_special_tokens=False).ids for text in (prompt, f"{prompt}["))
        if after[:-1] != before:
            raise ConfigError(
                "the tokenizer merges the prompt's end with '[', so that the token which the model generates is not "
                "known; name it: bracket_token in the template"
            )
        return np.array(after[-1:], dtype=np.int64)

    def _identifier_id(self, identifier: str) -> int:
        """The one token that an identifier adds behind the prompt.

        Raises:
            ConfigError: it adds several, or changes what stands before it: the logits would be those of other tokens.
        """
        prompt = self._prompt.write(_PROBE_QUERY, _PROBE_PASSAGES)
        start = prompt if self._template.read == "prompt" else f"{prompt}["
        before, after = (
            self._tokenizer.encode(text, add_special_tokens=False).ids for text in (start, start + identifier)
        )
        if after[:-1] != before:
            raise ConfigError(
                f"identifier {identifier!r} is not one token of its own behind {start[-12:]!r} in this tokenizer; use "
                "other identifiers, a smaller window (numbers: up to 9 with most tokenizers), or another way to read"
            )
        return int(after[-1])
