"""Learned sparse retrieval (SPLADE): query and document become weights of words, and the score is their dot product.

Formal, Piwowarski and Clinchant, "SPLADE", SIGIR 2021; with max pooling "SPLADE v2", arXiv 2109.10086.
"""

import json
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from rerankd.config.options import read_options
from rerankd.domain import FloatArray
from rerankd.errors import ConfigError
from rerankd.recognition.embedders import read_prompts
from rerankd.recognition.splade import SpladePooling, read_splade
from rerankd.recognition.tokenizer_settings import refuse_other_cuts
from rerankd.scorers.base import EncodedTexts, Kinds, Made, Role, ScorerSpec, VectorForm, Vectors, refuse_instruction
from rerankd.scorers.stored import STORED, Stored
from rerankd.scorers.text_encoder import TextEncoder, TextScorer
from rerankd.scorers.text_template import read_text_template
from rerankd.scorers.tokenizer_files import TokenizerFolder
from rerankd.tasks.encoding import Encoding
from rerankd.tasks.weigh_words import WeighWords

_DOT: Final = "dot"


class SpladeOptions(BaseModel):
    """`[model.options]` of the scorer `splade`."""

    model_config = ConfigDict(extra="forbid")

    stored: Stored = Field(
        default="float32",
        description="How precisely weights are compared and kept; float16 takes 6 bytes a word, not 8.",
    )


class Splade(TextScorer):
    def __init__(self, texts: TextEncoder, pooling: SpladePooling, *, pad_id: int, stored: Stored = "float32") -> None:
        super().__init__(texts, pad_id=pad_id)
        self.task = WeighWords()
        self.form = VectorForm(np.dtype([("token", "<u4"), ("weight", STORED[stored])]), (-1,))
        self.fingerprint = json.dumps(["splade", texts.fingerprint, repr(pooling), stored])

    @classmethod
    def load(cls, spec: ScorerSpec) -> "Splade":
        """Read tokenizer and configuration.

        Raises:
            ConfigError: a file is missing or says something that is not computed here.
        """
        options = read_options(spec.options, SpladeOptions, of="scorer 'splade'")
        read = TokenizerFolder.read(spec.folder)
        pooling = read_splade(read.files)
        similarity = read.files.sentence_transformers.get("similarity_fn_name") or _DOT
        if similarity != _DOT:
            raise ConfigError(
                f"{spec.folder}: weights of words are compared by {similarity!r}, and only {_DOT!r} is known"
            )
        refuse_other_cuts(read.files, side=read.truncation_side)
        length = read.length(spec.max_length)
        prompts = read_prompts(read.files, query=None, document=None)
        texts = TextEncoder(
            read.tokenizer, read_text_template(read), prompts, max_length={"query": length, "document": length}
        )
        return cls(texts, pooling, pad_id=read.pad_id, stored=options.stored)

    def encode(
        self, role: Role, texts: Sequence[str], *, max_tokens: int | None, instruction: str | None = None
    ) -> EncodedTexts[Encoding]:
        """Tokenize texts of one role.

        Raises:
            InvalidRequest: a query is too long, or there is an instruction.
        """
        refuse_instruction(instruction)
        return self._texts.encode(role, texts, max_tokens=max_tokens)

    def vectors(self, _text: Encoding, words: NDArray[np.void], /) -> Vectors:
        """The weights as they are kept."""
        return words.astype(self.form.dtype, copy=False)

    def compare(self, query: Vectors, documents: Sequence[Vectors], /) -> FloatArray:
        """The dot product of the query's weights with each document's."""
        # The last place stands for all words behind the query's; what comes out of a cache may name any.
        asked = np.zeros(2 + int(query["token"].max(initial=0)), dtype=np.float32)
        asked[query["token"]] = query["weight"]
        return np.array([_dot(asked, document) for document in documents], dtype=np.float32)

    def by_kind(self, kinds: Kinds[Made], /) -> Made:
        return kinds.vectors(self)


def _dot(asked: FloatArray, document: Vectors) -> np.float32:
    """`asked` is the query's weight of every word, shape [words]; the last one's is that of all words behind it."""
    return np.float32(
        (asked.take(document["token"], mode="clip") * document["weight"].astype(np.float32)).sum(dtype=np.float32)
    )
