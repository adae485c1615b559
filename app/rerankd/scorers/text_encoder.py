"""Texts of queries and documents as sequences of their own, each behind its role's prompt, and scorers of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from tokenizers import Tokenizer

from rerankd.domain import IntArray
from rerankd.errors import ConfigError, InvalidRequest, TooLong
from rerankd.recognition.embedders import Prompts
from rerankd.scorers.base import Edges, EncodedTexts, Role, refuse_instruction
from rerankd.scorers.beginnings import Reach, read_parts
from rerankd.scorers.document_tokenizer import DocumentTokenizer
from rerankd.scorers.edges import token_edges
from rerankd.scorers.ranking import Activation, identity
from rerankd.scorers.text_template import TextTemplate
from rerankd.scorers.tokenizer_files import drops, ids_of
from rerankd.tasks.embed import EncodedText

_MIN_TOKENS: Final = 4


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A role's prompt, how many tokens it has, and how many of a sequence's first tokens are no part of its vector.
    Sequences of the role have at most `length` tokens.
    """

    text: str
    tokens: int
    unpooled: int
    length: int


class TextEncoder:
    """Cuts documents to the `max_length` of their role, and refuses queries that are longer than that of theirs, unless
    it `cuts_queries`. Without `pools_prompt` the prompt's tokens are left out of the vector.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: TextTemplate,
        prompts: Prompts,
        *,
        max_length: Mapping[Role, int],
        pools_prompt: bool = True,
        cuts_queries: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._documents = DocumentTokenizer(tokenizer)
        self._template = template
        self._cuts_queries = cuts_queries
        self.max_length = max(max_length.values())
        texts: Mapping[Role, str] = {"query": prompts.query, "document": prompts.document}
        self._prompts = {
            role: self._prompt(text, length=max_length[role], pooled=pools_prompt) for role, text in texts.items()
        }
        for role in self._prompts:
            if self.room(role) < _MIN_TOKENS:
                raise ConfigError(f"max_length = {max_length[role]} leaves no room for a {role}; make it larger")
        self.fingerprint = json.dumps([max_length, prompts.query, prompts.document, pools_prompt])

    def room(self, role: Role) -> int:
        """How many tokens of a text fit beside its role's prompt."""
        prompt = self._prompts[role]
        return prompt.length - self._template.special_tokens - prompt.tokens

    def encode(self, role: Role, texts: Sequence[str], *, max_tokens: int | None) -> EncodedTexts[EncodedText]:
        """Tokenize texts, in one call.

        Raises:
            InvalidRequest: a query is too long.
        """
        prompt, room = self._prompts[role], self.room(role)
        limit = prompt.tokens + (room if max_tokens is None else min(room, max_tokens))
        parts = read_parts(
            [prompt.text + text for text in texts] if prompt.text else texts,
            self._documents.tokenize,
            enough=lambda ids: len(ids) >= 2 * limit,
            reach=Reach.of(limit),
        )
        dropped = np.array([max(0, len(part.content) - limit) + part.beyond(len(part.content)) for part in parts])
        if role == "query" and dropped.any() and not self._cuts_queries:
            raise InvalidRequest(
                TooLong(problem=f"the query is {dropped.max()} tokens too long: this model reads {room}; shorten it")
            )
        ids = [np.array(part.content[:limit], dtype=np.int64) for part in parts]
        return EncodedTexts([self._sequence(one, prompt) for one in ids], dropped)

    def check_query(self, query: str) -> None:
        """Refuse a query that is too long, unless queries are cut.

        Raises:
            InvalidRequest: it is too long.
        """
        if not self._cuts_queries:
            self.encode("query", [query], max_tokens=None)

    def edges(self, texts: Sequence[str]) -> list[Edges]:
        """Where the tokens of texts lie."""
        return token_edges(self._tokenizer, texts)

    def drops(self, text: str) -> bool:
        """Whether the tokenizer leaves nothing of a short text."""
        return drops(self._tokenizer, text)

    def _prompt(self, text: str, *, length: int, pooled: bool) -> _Prompt:
        tokens = len(ids_of(self._tokenizer, text)) if text else 0
        return _Prompt(text, tokens, 0 if pooled or not text else len(self._template.head) + tokens, length)

    def _sequence(self, ids: IntArray, prompt: _Prompt) -> EncodedText:
        sequence = self._template.around(ids)
        return EncodedText(sequence, len(sequence), prompt.unpooled)


class TextScorer:
    """What scorers share that read texts apart; they take no instruction."""

    def __init__(self, texts: TextEncoder, *, pad_id: int) -> None:
        self._texts = texts
        self.max_length = texts.max_length
        self.pad_id = pad_id
        self.activation: Activation = identity

    def query_room(self) -> int:
        """How many tokens of a query the model reads."""
        return self._texts.room("query")

    def room(self, query: str, instruction: str | None = None) -> int:
        """How many tokens of a document the model reads.

        Raises:
            InvalidRequest: the query is too long, or there is an instruction.
        """
        refuse_instruction(instruction)
        self._texts.check_query(query)
        return self._texts.room("document")

    def edges(self, texts: Sequence[str]) -> list[Edges]:
        """Where the tokens of texts lie."""
        return self._texts.edges(texts)

    def drops(self, text: str) -> bool:
        """Whether the tokenizer leaves nothing of a short text."""
        return self._texts.drops(text)
