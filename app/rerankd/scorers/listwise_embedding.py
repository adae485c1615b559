"""Embedding models whose query is embedded together with the first documents: a listwise prompt as an enhanced query.

Liu et al., "E2Rank: Your Text Embedding can Also be an Effective and Efficient Listwise Reranker", 2025. A document's
vector is its own and is the same for every query; the score is the dot product of unit vectors.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer

from rerankd.config.options import read_options
from rerankd.domain import FloatArray
from rerankd.errors import ConfigError
from rerankd.recognition.embedders import Prompts
from rerankd.recognition.files import number_of
from rerankd.scorers.base import EncodedTexts, Kinds, Made, Role, ScorerSpec, VectorForm, Vectors
from rerankd.scorers.list_prompt import fit
from rerankd.scorers.stored import STORED, Stored
from rerankd.scorers.templates import ControlTokenEscaper, single_token
from rerankd.scorers.text_encoder import TextEncoder, TextScorer
from rerankd.scorers.text_template import TextTemplate, read_text_template
from rerankd.scorers.tokenizer_files import TokenizerFolder, ids_of
from rerankd.tasks.embed import Embed, EncodedText

_END: Final = "<|endoftext|>"
# As the authors' eval.py writes it, Qwen 3's chat with an empty thought.
_BEGINNING: Final = "<|im_start|>user\n"
_ENDING: Final = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
_INSTRUCTION: Final = (
    "Given a web search query and some relevant documents, rerank the documents that answer the query:"
)
_WORDS: Final = 1024
# No more of a document is looked at for its words.
_CHARACTERS: Final = 64 * _WORDS
# No prompt's tokens are this long in the mean.
_CHARACTERS_PER_TOKEN: Final = 32


class ListwiseEmbeddingOptions(BaseModel):
    """`[model.options]` of the scorer `listwise-embedding`."""

    model_config = ConfigDict(extra="forbid")

    documents: int = Field(
        default=20, ge=0, description="How many of a request's first documents the query is read with."
    )
    instruction: str = Field(default=_INSTRUCTION, description="What the model is told where a request says nothing.")
    stored: Stored = Field(
        default="float32", description="How precisely vectors are compared and kept; float16 takes half the memory."
    )


class ListwiseEmbedding(TextScorer):
    def __init__(
        self,
        tokenizer: Tokenizer,
        template: TextTemplate,
        options: ListwiseEmbeddingOptions,
        *,
        width: int,
        max_length: int,
        pad_id: int,
    ) -> None:
        lengths: Mapping[Role, int] = {"query": max_length, "document": max_length}
        end = np.array([single_token(tokenizer, _END, option=_END)], dtype=np.int64)
        ended = TextTemplate(template.head, np.concatenate((end, template.tail)))
        super().__init__(TextEncoder(tokenizer, ended, Prompts("", ""), max_length=lengths), pad_id=pad_id)
        self._prompts = TextEncoder(tokenizer, template, Prompts("", ""), max_length=lengths)
        self._tokenizer = tokenizer
        self._options = options
        self._escape = ControlTokenEscaper(tokenizer, _BEGINNING + _ENDING)
        self.task = Embed(outputs=width, pooling="lasttoken")
        self.form = VectorForm(np.dtype(STORED[options.stored]), (width,))
        self.fingerprint = json.dumps(["listwise-embedding", max_length, options.model_dump()])

    @classmethod
    def load(cls, spec: ScorerSpec) -> "ListwiseEmbedding":
        """Read tokenizer and configuration.

        Raises:
            ConfigError: a file is missing, or the tokenizer lacks the end of a text.
        """
        options = read_options(spec.options, ListwiseEmbeddingOptions, of="scorer 'listwise-embedding'")
        read = TokenizerFolder.read(spec.folder)
        width = number_of(read.files.config, "hidden_size", of=spec.folder / "config.json")
        if width is None:
            raise ConfigError(f"{spec.folder / 'config.json'}: hidden_size is missing; download the model again")
        return cls(
            read.tokenizer,
            read_text_template(read),
            options,
            width=width,
            max_length=read.length(spec.max_length),
            pad_id=read.pad_id,
        )

    def query_over(self, query: str, documents: Sequence[str], instruction: str | None) -> str:
        """The prompt of a query with the first of a request's documents. If it is too long, all of these keep the same
        number of first words.

        Raises:
            InvalidRequest: the query, or the instruction, leaves no room for a few words of each.
        """
        read = documents[: self._options.documents]
        passages = [self._clean(document) for document in read]
        told = self._options.instruction if instruction is None else instruction
        beginning, asked = self._escape(told), self._escape(query)
        room = self._prompts.room("query")

        def write(kept: Sequence[str]) -> str:
            listed = "\n".join(f"[{number}] {passage}" for number, passage in enumerate(kept, start=1))
            return f"{_BEGINNING}{beginning}\nDocuments:\n{listed}\nSearch Query: {asked}{_ENDING}"

        def length(prompt: str) -> int:
            # Megabytes are not tokenized to learn that they are too long.
            if len(prompt) > _CHARACTERS_PER_TOKEN * room:
                return room + 1
            return len(ids_of(self._tokenizer, prompt))

        prompt, _ = fit(write, passages, length=length, most=_WORDS, longest=room)
        return prompt

    def encode(
        self, role: Role, texts: Sequence[str], *, max_tokens: int | None, instruction: str | None = None
    ) -> EncodedTexts[EncodedText]:
        """Tokenize documents, or prompts of `query_over`, which the instruction is part of.

        Raises:
            InvalidRequest: a prompt is too long.
        """
        del instruction
        if role == "query":
            return self._prompts.encode(role, texts, max_tokens=max_tokens)
        encoded = self._texts.encode(role, list(map(self._clean, texts)), max_tokens=max_tokens)
        beyond = np.array([_words_beyond(text) for text in texts], dtype=np.int64)
        return EncodedTexts(encoded.encodings, encoded.dropped + beyond)

    def room(self, query: str, instruction: str | None = None) -> int:
        """How many tokens of a document the model reads."""
        del query, instruction
        return self._texts.room("document")

    def vectors(self, _encoding: EncodedText, vector: FloatArray, /) -> Vectors:
        """The vector as it is kept."""
        return vector.astype(self.form.dtype, copy=False)

    def compare(self, query: Vectors, documents: Sequence[Vectors], /) -> FloatArray:
        """The dot product of the query's vector with each document's."""
        # Not a matmul, which adds up a row in an order that depends on how many others there are.
        dots: FloatArray = np.einsum(
            "dw,w->d", np.stack(documents).astype(np.float32, copy=False), query.astype(np.float32)
        )
        return dots

    def by_kind(self, kinds: Kinds[Made], /) -> Made:
        return kinds.vectors(self)

    def _clean(self, document: str) -> str:
        """A document's first words on one line, with no control token in them."""
        return self._escape(" ".join(document[:_CHARACTERS].split()[:_WORDS]))


def _words_beyond(document: str) -> int:
    """How many words of a document are not looked at, about."""
    words = len(document[:_CHARACTERS].split())
    unread = max(0, len(document) - _CHARACTERS) * words // _CHARACTERS
    return max(0, words - _WORDS) + unread
