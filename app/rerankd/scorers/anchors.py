"""Scores of a corpus for anchor queries, and what they say of documents that are not read. Pure, but for its file.

ANNCUR: Yadav et al., "Efficient Nearest Neighbor Search for Cross-Encoder Models using Matrix Factorization", EMNLP
2022. The anchor items are documents of the request itself: Yadav et al., "Efficient k-NN Search with Cross-Encoders
using Adaptive Multi-Round CUR Decomposition", Findings of EMNLP 2023.
"""

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

import numpy as np

from rerankd.domain import Document, FloatArray, IntArray
from rerankd.errors import ConfigError

_DIGEST_BYTES: Final = 16
_UNKNOWN: Final = -1


def digest_of(text: str) -> bytes:
    """By which the anchors know a document: its whole text."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest()


class Anchors:
    """`scores` has shape [documents, anchor queries]; `digests` are those of the documents' texts, in its order.
    `identity` tells models apart: their scores are estimated from scores of their own.
    """

    def __init__(self, scores: FloatArray, digests: Sequence[bytes], *, identity: str) -> None:
        self.scores = scores
        self.identity = identity
        self._row_of = {digest: row for row, digest in enumerate(digests)}

    def rows(self, documents: Sequence[str]) -> IntArray:
        """The row of each document in `scores`, shape [documents]; negative for one outside of the corpus, and for one
        with an image.
        """
        rows = (
            _UNKNOWN if isinstance(text, Document) else self._row_of.get(digest_of(text), _UNKNOWN)
            for text in documents
        )
        return np.fromiter(rows, dtype=np.int64, count=len(documents))

    def estimate(self, read: IntArray, values: FloatArray, others: IntArray, *, cutoff: float) -> FloatArray:
        """The scores that documents are expected to have: values · pinv(block of those read) · block of the others.

        Args:
            read: rows of the documents that are read, shape [anchors].
            values: their scores for the request's query, of the same shape.
            others: rows of the documents to estimate.
            cutoff: singular values below this share of the largest count as 0.

        Exact if the rows that are read span all others, and the query's scores combine those of anchor queries.
        """
        weights, *_ = np.linalg.lstsq(self.scores[read].astype(np.float64), values.astype(np.float64), rcond=cutoff)
        estimates: FloatArray = (self.scores[others] @ weights).astype(np.float32)
        return estimates

    def write(self, path: Path) -> None:
        """Write the file that `read` reads.

        Raises:
            OSError: it cannot be written.
        """
        digests = np.frombuffer(b"".join(self._row_of), dtype=np.uint8).reshape(-1, _DIGEST_BYTES)
        with path.open("wb") as file:
            np.savez(file, scores=self.scores, digests=digests, identity=np.array(self.identity))

    @classmethod
    def read(cls, path: Path, *, identity: str) -> "Anchors":
        """Read the anchors of the model with this identity.

        Raises:
            ConfigError: there is no such file, it is not one of `rerankd anchors`, or it was made with another model.
        """
        made = _read(path)
        if made.identity != identity:
            raise ConfigError(
                f"the anchors {path} hold scores of another model, or of other options of its scorer; run rerankd "
                "anchors again"
            )
        return made.anchors()


@dataclass(frozen=True, slots=True)
class _File:
    scores: FloatArray
    digests: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
    identity: str

    def anchors(self) -> Anchors:
        return Anchors(self.scores, [row.tobytes() for row in self.digests], identity=self.identity)


def _read(path: Path) -> _File:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            file = _File(arrays["scores"], arrays["digests"], str(arrays["identity"]))
    except OSError as error:
        raise ConfigError(f"cannot read the anchors {path} ({error.strerror or error})") from None
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        EOFError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ConfigError(f"{path} is not a file of anchors ({error}); run rerankd anchors") from None
    scores, digests = file.scores, file.digests
    if (
        scores.dtype != np.float32
        or scores.ndim != 2
        or not scores.size
        or not np.isfinite(scores).all()
        or digests.dtype != np.uint8
        or digests.shape != (len(scores), _DIGEST_BYTES)
        or len(np.unique(digests, axis=0)) < len(digests)
    ):
        raise ConfigError(
            f"{path} is not a file of anchors (it needs finite float32 scores of shape [documents, queries] and a "
            "digest of each document); run rerankd anchors"
        )
    return file


def identity_of(contents: Sequence[str], *, scorer: str) -> str:
    """Of a model: hashes over its files, and its scorer's fingerprint."""
    return blake2b(json.dumps([*contents, scorer]).encode(), digest_size=_DIGEST_BYTES).hexdigest()
