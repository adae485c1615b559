"""Late interaction (ColBERT): each token of the query finds the token of the document that is most like it.

Khattab and Zaharia, "ColBERT", SIGIR 2020. The score is MaxSim: the sum, over the query's tokens, of the largest dot
product with a token of the document. Markers, query expansion and skipped words are those of the model's files.
"""

import json
from collections.abc import Sequence
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import AddedToken, Tokenizer

from rerankd.config.options import read_options
from rerankd.domain import FloatArray, IntArray
from rerankd.errors import ConfigError
from rerankd.recognition.files import read_optional_json
from rerankd.recognition.late_interaction import Expansion, LateInteraction, read_late_interaction
from rerankd.recognition.tokenizer_settings import content_of, refuse_other_cuts
from rerankd.scorers.base import EncodedTexts, Kinds, Made, Role, ScorerSpec, VectorForm, Vectors, refuse_instruction
from rerankd.scorers.stored import STORED, Stored
from rerankd.scorers.text_encoder import TextEncoder, TextScorer
from rerankd.scorers.text_template import read_text_template
from rerankd.scorers.tokenizer_files import TokenizerFolder
from rerankd.tasks.embed_tokens import EmbedTokens, ExpandedText

_FILLING: Final = ("mask_token", "eos_token")
# The score of a document of which nothing is compared: below that of any other.
_NOTHING: Final = np.float32(-1e9)


class LateInteractionOptions(BaseModel):
    """`[model.options]` of the scorer `late-interaction`."""

    model_config = ConfigDict(extra="forbid")

    stored: Stored = Field(
        default="float32", description="How precisely vectors are compared and kept; float16 takes half the memory."
    )


class LateInteractionScorer(TextScorer):
    def __init__(
        self,
        texts: TextEncoder,
        model: LateInteraction,
        *,
        filling: int | None,
        skipped: Sequence[int],
        pad_id: int,
        stored: Stored = "float32",
    ) -> None:
        """`filling` is the id that queries are filled with, `skipped` are those of skipped words."""
        super().__init__(texts, pad_id=pad_id)
        self._expansion = model.expansion
        self._filling = filling
        self._skipped = np.array(skipped, dtype=np.int64)
        self._skips = model.skips
        self._mean = model.similarity == "meanmaxsim"
        self.task = EmbedTokens()
        self.form = VectorForm(np.dtype(STORED[stored]), (-1, model.width))
        said = [texts.fingerprint, repr(model.expansion), filling, list(skipped), list(model.skips), self._mean, stored]
        self.fingerprint = json.dumps(["late-interaction", *said])

    @classmethod
    def load(cls, spec: ScorerSpec) -> "LateInteractionScorer":
        """Read tokenizer and configuration, in any of the three layouts.

        Raises:
            ConfigError: a file is missing or says something that is not computed here.
        """
        options = read_options(spec.options, LateInteractionOptions, of="scorer 'late-interaction'")
        read = TokenizerFolder.read(spec.folder)
        model = read_late_interaction(read.files)
        refuse_other_cuts(read.files, side=read.truncation_side)
        _add_markers(read.tokenizer, model.markers)
        longest = read.length(spec.max_length)
        texts = TextEncoder(
            read.tokenizer,
            read_text_template(read),
            model.prompts,
            max_length={
                "query": min(longest, _query_length(model) or longest),
                "document": min(longest, model.document_length or longest),
            },
            cuts_queries=True,
        )
        return cls(
            texts,
            model,
            filling=_filling(read, model.expansion),
            skipped=_ids(read, model.skipped),
            pad_id=read.pad_id,
            stored=options.stored,
        )

    def encode(
        self, role: Role, texts: Sequence[str], *, max_tokens: int | None, instruction: str | None = None
    ) -> EncodedTexts[ExpandedText]:
        """Tokenize texts of one role behind its marker; queries are cut, and filled up.

        Raises:
            InvalidRequest: there is an instruction.
        """
        refuse_instruction(instruction)
        encoded = self._texts.encode(role, texts, max_tokens=max_tokens)
        return EncodedTexts([self._text(role, one.ids) for one in encoded.encodings], encoded.dropped)

    def vectors(self, text: ExpandedText, vectors: FloatArray, /) -> Vectors:
        """The vectors of the tokens that are compared, as they are kept."""
        compared = vectors if text.compared is None else vectors[text.compared]
        return compared.astype(self.form.dtype, copy=False)

    def compare(self, query: Vectors, documents: Sequence[Vectors], /) -> FloatArray:
        """MaxSim of the query with each document, in float32."""
        # One by one: a matmul over all of them adds up in an order that depends on the others.
        asked = query.astype(np.float32, copy=False)
        values = np.array([_max_sim(asked, document) for document in documents], dtype=np.float32)
        return values / np.float32(len(query)) if self._mean else values

    def by_kind(self, kinds: Kinds[Made], /) -> Made:
        return kinds.vectors(self)

    def _text(self, role: Role, ids: IntArray) -> ExpandedText:
        unattended = 0
        expansion = self._expansion
        if role == "query" and expansion is not None and len(ids) < expansion.length:
            filling = np.full(expansion.length - len(ids), self._filling, dtype=np.int64)
            unattended = 0 if expansion.attended else len(filling)
            ids = np.concatenate((ids, filling))
        compared = None
        if role in self._skips and len(self._skipped):
            compared = ~np.isin(ids, self._skipped)
        return ExpandedText(ids, len(ids), unattended, compared)


def _max_sim(query: FloatArray, document: Vectors) -> np.float32:
    if not len(document):
        return _NOTHING
    similarities: FloatArray = query @ document.astype(np.float32, copy=False).T
    return np.float32(similarities.max(axis=1).sum())


def _query_length(model: LateInteraction) -> int | None:
    expansion = model.expansion
    if expansion is None:
        return model.query_length
    if expansion.least:
        return None if model.query_length is None else max(model.query_length, expansion.length)
    return expansion.length


def _add_markers(tokenizer: Tokenizer, markers: Sequence[str]) -> None:
    """Make one token of each marker that the vocabulary holds, as it was in training: text alone would be cut up."""
    for marker in markers:
        for name in (marker, *marker.split()[:1]):
            if marker.split() and tokenizer.token_to_id(name) is not None:
                if tokenizer.encode(name, add_special_tokens=False).tokens != [name]:
                    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True)])
                break


def _filling(read: TokenizerFolder, expansion: Expansion | None) -> int | None:
    """The id of the token that queries are filled with; None where they are not.

    Raises:
        ConfigError: no file names it.
    """
    if expansion is None:
        return None
    others = read_optional_json(read.folder / "special_tokens_map.json")
    named = [content_of(said.get(key)) for key in _FILLING for said in (read.files.tokenizer_config, others)]
    for token in (expansion.token, *named):
        known = None if token is None else read.tokenizer.token_to_id(token)
        if known is not None:
            return int(known)
    raise ConfigError(
        f"{read.folder}: no file names the token that queries are filled with; name it in tokenizer_config.json "
        "(mask_token)"
    )


def _ids(read: TokenizerFolder, words: Sequence[str]) -> list[int]:
    """The ids of words that are tokens."""
    unknown = content_of(read.files.tokenizer_config.get("unk_token"))
    known = {word: read.tokenizer.token_to_id(word) for word in words if word != unknown}
    return sorted({number for number in known.values() if number is not None})
