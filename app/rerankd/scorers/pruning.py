"""Cross-encoders that also say which tokens of a document to keep.

Chirkova et al., "Provence: efficient and robust context pruning for retrieval-augmented generation", ICLR 2025. One
pass gives the pair's score and, by a second head, each token's probability of being kept.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from pydantic import Field

from rerankd.config.options import read_options
from rerankd.domain import FloatArray
from rerankd.errors import ConfigError
from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.native import native_form
from rerankd.scorers.base import EncodedPairs, ScorerSpec
from rerankd.scorers.cross_encoder import CrossEncoder, CrossEncoderOptions
from rerankd.tasks.prune import PrunablePair, Prune


class PruningOptions(CrossEncoderOptions):
    """`[model.options]` of the scorer `pruning`."""

    threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="What requests that name none prune at: 0 keeps all, 1 nothing; default: the authors'.",
    )


class PruningCrossEncoder(CrossEncoder):
    """A cross-encoder whose engine runs `prune`. `prune_threshold` is that of requests that name none."""

    prune_threshold: float

    @classmethod
    def load(cls, spec: ScorerSpec) -> "PruningCrossEncoder":
        """As a cross-encoder.

        Raises:
            ConfigError: as a cross-encoder's, or the model has no second head.
        """
        options = read_options(spec.options, PruningOptions, of="scorer 'pruning'")
        native = native_form(ModelFiles.read(spec.folder))
        if native is None or native.prune_threshold is None:
            raise ConfigError(
                f"{spec.folder} does not prune documents, as Provence and XProvence do; set scorer = 'cross-encoder'"
            )
        plain = {name: value for name, value in spec.options.items() if name != "threshold"}
        scorer = cls._load(replace(spec, options=plain))
        scorer.task = Prune()
        scorer.prune_threshold = native.prune_threshold if options.threshold is None else options.threshold
        scorer.fingerprint = json.dumps(["pruning", scorer.fingerprint])
        return scorer

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        *,
        max_document_tokens: int | None,
        instruction: str | None = None,
        owner: str = "",
    ) -> EncodedPairs[PrunablePair]:
        """As a cross-encoder, with the document's place in each pair.

        Raises:
            InvalidRequest: as a cross-encoder's.
        """
        encoded = super().encode(
            query, documents, max_document_tokens=max_document_tokens, instruction=instruction, owner=owner
        )
        template = self._template
        start = len(template.head) + len(self._query_ids(query)) + len(template.middle)
        end = -len(template.tail)
        pairs = [PrunablePair(one.ids, one.boundary, start, len(one.ids) + end) for one in encoded.encodings]
        return EncodedPairs(pairs, encoded.dropped)

    def interpret(self, rows: Iterable[FloatArray], /) -> FloatArray:
        """The raw scores, shape [pairs]."""
        return np.array([row[0] for row in rows], dtype=np.float32)

    def keep(self, pair: PrunablePair, row: FloatArray, /) -> FloatArray:
        """The log-odds that each token of a pair's document is kept, shape [document tokens]."""
        return row[1 + pair.document_from : 1 + pair.document_to].copy()
