"""Rerankers that read query and documents in one prompt, and compare the vectors at a marker behind each.

Wang et al., "jina-reranker-v3: Last but Not Late Interaction for Document Reranking", 2025. A document sees those
before it, and the query is read last. What does not fit into one prompt is read in blocks; every document is compared
with one query vector: the blocks' mean, each weighted by its best document.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer

from rerankd.concurrency.slices import Sliced
from rerankd.config.options import read_options
from rerankd.domain import FloatArray, IntArray
from rerankd.errors import ConfigError, InvalidRequest, TooLong
from rerankd.scorers.base import Edges, EncodedBlocks, Kinds, Made, ScorerSpec
from rerankd.scorers.beginnings import Part, Reach, read_parts
from rerankd.scorers.edges import token_edges
from rerankd.scorers.ranking import Activation, identity
from rerankd.scorers.templates import ControlTokenEscaper, single_token
from rerankd.scorers.tokenizer_files import TokenizerFolder, drops, ids_of
from rerankd.tasks.read_vectors import MarkedPrompt, ReadVectors

_DOCUMENT_MARKER: Final = "<|embed_token|>"
_QUERY_MARKER: Final = "<|rerank_token|>"
_MARKERS: Final = re.compile(f"{re.escape(_DOCUMENT_MARKER)}|{re.escape(_QUERY_MARKER)}")
_BEGINNING: Final = (
    "<|im_start|>system\n"
    "You are a search relevance expert who can determine a ranking of the passages based on how relevant they are to "
    "the query. If the query is a question, how relevant a passage is depends on how well it answers the question. If "
    "not, try to analyze the intent of the query and assess how well each passage satisfies the intent. If an "
    "instruction is provided, you should follow the instruction when determining the ranking.<|im_end|>\n"
    "<|im_start|>user\n"
)
_END: Final = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
_MIN_DOCUMENT_TOKENS: Final = 16


class LastButNotLateOptions(BaseModel):
    """`[model.options]` of the scorer `last-but-not-late`. The defaults are those of the authors' code."""

    model_config = ConfigDict(extra="forbid")

    instruction: str | None = Field(default=None, description="What the model is told where a request says nothing.")
    block: int = Field(default=125, ge=1, description="Most documents in one prompt.")
    document_tokens: int = Field(default=2048, ge=_MIN_DOCUMENT_TOKENS, description="Longer documents are cut.")
    query_tokens: int = Field(default=512, ge=1, description="Longer queries are refused.")


@dataclass(frozen=True, slots=True)
class _Frame:
    """What surrounds the documents of one request; all texts are clean. `tokens` is what a prompt without documents
    takes, `around` what stands around each document.
    """

    query: str
    instruction: str
    tokens: int
    around: int

    def write(self, documents: Sequence[str]) -> str:
        passages = "\n".join(map(_passage, range(len(documents)), documents))
        told = f"<instruct>\n{self.instruction}\n</instruct>\n" if self.instruction else ""
        return (
            f"{_BEGINNING}I will provide you with {len(documents)} passages, each indicated by a numerical identifier. "
            f"Rank the passages based on their relevance to query: {self.query}\n{told}{passages}\n"
            f"<query>\n{self.query}{_QUERY_MARKER}\n</query>{_END}"
        )


@dataclass(frozen=True, slots=True)
class _Clean:
    """A text as it stands in a prompt, and where its tokens lie."""

    text: str
    edges: Edges


class LastButNotLate:
    """Its scores are cosines, from -1 to 1. They compare inside of one request."""

    activation: Activation = staticmethod(identity)

    def __init__(self, tokenizer: Tokenizer, options: LastButNotLateOptions, *, max_length: int, pad_id: int) -> None:
        self._tokenizer = tokenizer
        self._options = options
        self._markers = [single_token(tokenizer, text, option=text) for text in (_DOCUMENT_MARKER, _QUERY_MARKER)]
        self._escape = ControlTokenEscaper(tokenizer, _BEGINNING + _END + _DOCUMENT_MARKER + _QUERY_MARKER)
        self.max_length = max_length
        self.pad_id = pad_id
        self.task = ReadVectors()
        self.fingerprint = json.dumps(["last-but-not-late", max_length, options.model_dump()])

    @classmethod
    def load(cls, spec: ScorerSpec) -> "LastButNotLate":
        """Read tokenizer and configuration.

        Raises:
            ConfigError: a file is missing, or the tokenizer knows no markers.
        """
        options = read_options(spec.options, LastButNotLateOptions, of="scorer 'last-but-not-late'")
        read = TokenizerFolder.read(spec.folder)
        if read.files.architecture != "JinaForRanking":
            raise ConfigError(
                f"{spec.folder}: config.json says {read.files.architecture or 'no architecture'}, and scorer "
                "'last-but-not-late' needs JinaForRanking (jina-reranker-v3)"
            )
        return cls(read.tokenizer, options, max_length=read.length(spec.max_length), pad_id=read.pad_id)

    def encode_blocks(
        self,
        query: str,
        documents: Sequence[str],
        *,
        max_document_tokens: int | None,
        instruction: str | None = None,
    ) -> Sliced[EncodedBlocks[MarkedPrompt]]:
        """Write the prompts of a request: as few blocks as the documents fit into, in their order. Too long documents
        are cut, the query never.

        Raises:
            InvalidRequest: the query is too long, or leaves no room for a document.
        """
        frame = self._frame(query, instruction)
        most = self._most_tokens(frame, max_document_tokens)
        texts: list[str] = []
        lengths, dropped = np.zeros((2, len(documents)), dtype=np.int64)
        for index, document in enumerate(documents):
            part = self._part(document, most)
            tokens = part.content.edges.tokens
            lengths[index] = length = min(tokens, most)
            dropped[index] = tokens + part.beyond(tokens) - length
            texts.append(part.content.text[: int(part.content.edges.characters[length])])
            yield
        bounds = self._bounds(lengths + frame.around, room=self.max_length - frame.tokens)
        prompts: list[MarkedPrompt] = []
        for start, end in pairwise(bounds):
            prompts.append(self._marked(frame, texts[start:end]))
            yield
        return EncodedBlocks(prompts, sizes=np.diff(bounds).tolist(), dropped=dropped)

    def interpret_blocks(self, blocks: Sequence[FloatArray], /) -> FloatArray:
        """Cosines of shape [documents] from each block's vectors of its documents and, last, of the query."""
        unit = [_normalised(block.astype(np.float64)) for block in blocks]
        weights = np.array([(1 + (block[:-1] @ block[-1]).max()) / 2 for block in unit])
        queries = np.stack([block[-1].astype(np.float64) for block in blocks])
        query = np.average(queries, axis=0, weights=weights if weights.sum() > 0 else None)
        cosines: FloatArray = (np.concatenate([block[:-1] for block in unit]) @ _normalised(query)).astype(np.float32)
        return cosines

    def drops(self, text: str) -> bool:
        """Whether the tokenizer leaves nothing of a short text."""
        return drops(self._tokenizer, _MARKERS.sub("", text))

    def by_kind(self, kinds: Kinds[Made], /) -> Made:
        return kinds.blocks(self)

    def _frame(self, query: str, instruction: str | None) -> _Frame:
        question = self._clean(query)
        tokens = len(ids_of(self._tokenizer, question))
        if tokens > self._options.query_tokens:
            problem = (
                f"the query has {tokens} tokens; this model reads queries of at most {self._options.query_tokens} "
                "tokens: shorten the query"
            )
            raise InvalidRequest(TooLong(problem=problem))
        said = self._options.instruction if instruction is None else instruction
        told = self._clean(said) if said else ""
        empty = _Frame(question, told, 0, 0)
        # With the longest number of a document, and where its ends merge with their neighbours less than by themselves.
        around = len(ids_of(self._tokenizer, f"\n{_passage(self._options.block, '')}")) + 2
        return _Frame(question, told, len(ids_of(self._tokenizer, empty.write([]))), around)

    def _most_tokens(self, frame: _Frame, asked: int | None) -> int:
        """How many tokens of a document are read.

        Raises:
            InvalidRequest: the query and the instruction leave too few.
        """
        room = self.max_length - frame.tokens - frame.around
        if room < _MIN_DOCUMENT_TOKENS:
            problem = (
                f"the prompt with this query has {frame.tokens} tokens before any document, the model reads "
                f"{self.max_length}: shorten the query or the instruction"
            )
            raise InvalidRequest(TooLong(problem=problem))
        return min(self._options.document_tokens, room, room if asked is None else asked)

    def _part(self, document: str, most: int) -> Part[_Clean]:
        (part,) = read_parts(
            [document], self._read, enough=lambda clean: clean.edges.tokens >= 2 * most, reach=Reach.of(most)
        )
        return part

    def _read(self, texts: Sequence[str]) -> list[_Clean]:
        """Cleaned before tokens are counted: an escaped control token is several."""
        clean = list(map(self._clean, texts))
        return list(map(_Clean, clean, token_edges(self._tokenizer, clean)))

    def _bounds(self, lengths: IntArray, *, room: int) -> list[int]:
        """Where blocks begin, and where the last one ends: each takes the documents that fit."""
        bounds, left = [0], room
        for index, length in enumerate(lengths.tolist()):
            if index - bounds[-1] == self._options.block or length > left:
                bounds.append(index)
                left = room
            left -= length
        return [*bounds, len(lengths)]

    def _marked(self, frame: _Frame, documents: Sequence[str]) -> MarkedPrompt:
        ids = ids_of(self._tokenizer, frame.write(documents))
        return MarkedPrompt(ids, np.flatnonzero(np.isin(ids, self._markers)))

    def _clean(self, text: str) -> str:
        """Without markers, as its authors do it, and with no control token of the prompt."""
        return self._escape(_MARKERS.sub("", text))


def _passage(number: int, document: str) -> str:
    return f'<passage id="{number}">\n{document}{_DOCUMENT_MARKER}\n</passage>'


def _normalised(vectors: FloatArray) -> FloatArray:
    unit: FloatArray = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return unit
