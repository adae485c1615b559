"""Bi-encoders: query and document are embedded apart, and the similarity of the two vectors is the score.

Reimers and Gurevych, "Sentence-BERT", EMNLP 2019. Pooling, prompts and similarity are those of the model's
sentence-transformers files.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rerankd.config.options import read_options
from rerankd.domain import FloatArray
from rerankd.recognition.embedders import (
    Similarity,
    read_prompts,
    read_similarity,
    refuse_other_than_embedder,
)
from rerankd.recognition.modules import ModularHead, read_embedding_head
from rerankd.recognition.tokenizer_settings import refuse_other_cuts
from rerankd.scorers.base import EncodedTexts, Kinds, Made, Role, ScorerSpec, VectorForm, Vectors, refuse_instruction
from rerankd.scorers.stored import STORED, Stored
from rerankd.scorers.text_encoder import TextEncoder, TextScorer
from rerankd.scorers.text_template import read_text_template
from rerankd.scorers.tokenizer_files import TokenizerFolder
from rerankd.tasks.embed import Embed, EncodedText

_SHORTEST: Final = np.float32(1e-12)


class BiEncoderOptions(BaseModel):
    """`[model.options]` of the scorer `bi-encoder`."""

    model_config = ConfigDict(extra="forbid")

    query_prompt: str | None = Field(
        default=None, description='What every query begins with, such as "query: "; default: what the files say.'
    )
    document_prompt: str | None = Field(default=None, description="The same for every document.")
    stored: Stored = Field(
        default="float32", description="How precisely vectors are compared and kept; float16 takes half the memory."
    )


class BiEncoder(TextScorer):
    def __init__(
        self, texts: TextEncoder, head: ModularHead, *, pad_id: int, similarity: Similarity, stored: Stored = "float32"
    ) -> None:
        super().__init__(texts, pad_id=pad_id)
        self._similarity = SIMILARITIES[similarity]
        self.task = Embed(outputs=head.outputs)
        self.form = VectorForm(np.dtype(STORED[stored]), (head.outputs,))
        self.fingerprint = json.dumps(["bi-encoder", texts.fingerprint, similarity, stored])

    @classmethod
    def load(cls, spec: ScorerSpec) -> "BiEncoder":
        """Read tokenizer and configuration from a sentence-transformers folder.

        Raises:
            ConfigError: a file is missing or says something that is not computed here, or no file says a prompt that
                the model is known to need.
        """
        options = read_options(spec.options, BiEncoderOptions, of="scorer 'bi-encoder'")
        read = TokenizerFolder.read(spec.folder)
        refuse_other_than_embedder(read.files)
        refuse_other_cuts(read.files, side=read.truncation_side)
        head, length = read_embedding_head(read.files), read.length(spec.max_length)
        texts = TextEncoder(
            read.tokenizer,
            read_text_template(read),
            read_prompts(read.files, query=options.query_prompt, document=options.document_prompt),
            max_length={"query": length, "document": length},
            pools_prompt=head.pools_prompt,
        )
        similarity = read_similarity(read.files)
        return cls(texts, head, pad_id=read.pad_id, similarity=similarity, stored=options.stored)

    def encode(
        self, role: Role, texts: Sequence[str], *, max_tokens: int | None, instruction: str | None = None
    ) -> EncodedTexts[EncodedText]:
        """Tokenize texts of one role behind its prompt.

        Raises:
            InvalidRequest: a query is too long, or there is an instruction.
        """
        refuse_instruction(instruction)
        return self._texts.encode(role, texts, max_tokens=max_tokens)

    def vectors(self, _encoding: EncodedText, vector: FloatArray, /) -> Vectors:
        """The vector as it is kept."""
        return vector.astype(self.form.dtype, copy=False)

    def compare(self, query: Vectors, documents: Sequence[Vectors], /) -> FloatArray:
        """The similarity of the query's vector to each document's."""
        return self._similarity(np.stack(documents).astype(np.float32, copy=False), query.astype(np.float32))

    def by_kind(self, kinds: Kinds[Made], /) -> Made:
        return kinds.vectors(self)


def _cosine(documents: FloatArray, query: FloatArray) -> FloatArray:
    lengths = np.maximum(np.linalg.norm(documents, axis=1) * np.linalg.norm(query), _SHORTEST)
    cosines: FloatArray = _dot(documents, query) / lengths
    return cosines


def _dot(documents: FloatArray, query: FloatArray) -> FloatArray:
    # Not a matmul, which adds up a row in an order that depends on how many others there are.
    dots: FloatArray = np.einsum("dw,w->d", documents, query)
    return dots


def _euclidean(documents: FloatArray, query: FloatArray) -> FloatArray:
    distances: FloatArray = np.linalg.norm(documents - query, axis=1)
    return -distances


def _manhattan(documents: FloatArray, query: FloatArray) -> FloatArray:
    distances: FloatArray = np.abs(documents - query).sum(axis=1)
    return -distances


# Higher is more similar: distances are negative. Documents have shape [documents, width], the query [width].
SIMILARITIES: Final[Mapping[Similarity, Callable[[FloatArray, FloatArray], FloatArray]]] = {
    "cosine": _cosine,
    "dot": _dot,
    "euclidean": _euclidean,
    "manhattan": _manhattan,
}
