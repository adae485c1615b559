"""Tries a model before it serves: it must give as many numbers as its scorer reads, and a pair's should be its own.

A pass over one pair proves nothing about batches. Some models read padding (FNet, ConvBERT, Nystromformer), some graphs
share one scale among all activations of a batch (onnxruntime's `quantize_dynamic`), some fail on two sequences at once.
So a few short texts are scored alone, and then in one batch with longer ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from rerankd.concurrency.slices import run_to_end
from rerankd.domain import FloatArray
from rerankd.engines.base import LogitsEngine
from rerankd.errors import ConfigError, InvalidRequest
from rerankd.scorers.base import (
    AnyBlockScorer,
    AnyComparisonScorer,
    AnyGroupScorer,
    AnyListScorer,
    AnyPairScorer,
    AnyVectorScorer,
    ReadsImages,
    Scorer,
)
from rerankd.tasks.encoding import Encoding

_PAIRS: Final = (
    ("x", "y"),
    ("bees", "Honey bees live in hives, and nobody knows for how long."),
)
_LONG: Final = ("tides", "The Moon pulls at the sea; the Sun, further away, pulls less, and so tides come and go. " * 6)
_LONG_TOKENS: Final = 64
_TRIED: Final = (*((*pair, None) for pair in _PAIRS), (*_LONG, _LONG_TOKENS))
# Up to this length a text as long as the model is said to read is tried too: its table of positions may be shorter.
_LONGEST_TRIED: Final = 1024

# How far a score may move in company, relative to the largest score but at least to 1, by what it is computed in. A GPU
# chooses other kernels, which add in another order, for other shapes: that moves a float32 score by its last bits, 1e-6
# to 1e-4. bfloat16 keeps 8 bits and float16 11: a dozen roundings to the next number. Integer matmuls are exact, but
# a float before them that moves by its last bit may flip a step of a token's 127: 1e-3. On a CPU nothing moved by
# more than 1e-5, in any precision; a scale that a batch shares moves scores by 0.05 and more.
_TOLERANCES: Final = (("bfloat16", 0.05), ("float16", 0.01), ("int8", 0.005), ("int4", 0.005))
_FLOAT32: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Probe:
    """How far a text's score moved between a pass of its own and one in company, and how far rounding may move it."""

    largest_difference: float
    tolerance: float

    @property
    def independent(self) -> bool:
        """Whether a text's score is its own, whatever else is in the batch."""
        return self.largest_difference <= self.tolerance


def probe(engine: LogitsEngine, scorer: Scorer, *, full_length: bool = True) -> Probe:
    """Score a few texts alone and in company; with `full_length` one that is as long as the model reads, too.

    Raises:
        ConfigError: a pass failed, or gave another number of outputs than the scorer reads, or no finite score.
    """
    samples = scorer.by_kind(_Sampling(full_length=full_length))
    outputs = scorer.task.outputs
    for encoding in samples.longest:
        _outputs(engine, [encoding], outputs)
    alone = samples.interpret([row for one in samples.encodings for row in _outputs(engine, [one], outputs)])
    together = samples.interpret(_outputs(engine, samples.encodings, outputs))
    if not np.isfinite(alone).all() or not np.isfinite(together).all():
        raise ConfigError(
            f"engine {engine.name} gave a score that is not a finite number for a plain text: the weights are broken, "
            "or too large for this precision (try float32)"
        )
    scale = max(1.0, float(np.abs(alone).max()))
    return Probe(float(np.abs(alone - together).max()), tolerance_of(engine.name) * scale)


def tolerance_of(engine: str) -> float:
    """How far scores of that engine may move by rounding, relative to the largest; its name says its precision."""
    return next((tolerance for precision, tolerance in _TOLERANCES if precision in engine), _FLOAT32)


@dataclass(frozen=True, slots=True)
class _Samples:
    """Texts to score, and what makes numbers of their outputs that are to be the same in company. `longest` need only
    give outputs.
    """

    encodings: Sequence[Any]
    longest: Sequence[Any]
    interpret: Callable[[Sequence[FloatArray]], FloatArray]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sampling:
    """With `full_length` one text is as long as the model reads."""

    full_length: bool

    def pairs(self, scorer: AnyPairScorer, /) -> _Samples:
        samples = scorer.samples if isinstance(scorer, ReadsImages) else _alone
        pairs = [(query, sample, most) for query, text, most in _TRIED for sample in samples(text)]
        encoded = [scorer.encode(query, [text], max_document_tokens=most).encodings[0] for query, text, most in pairs]
        longest: Sequence[Encoding] = ()
        if self.full_length and scorer.max_length <= _LONGEST_TRIED:
            words = "tides and the sea " * scorer.max_length
            longest = scorer.encode("x", samples(words), max_document_tokens=None).encodings
        return _Samples(encoded, longest, scorer.interpret)

    def lists(self, scorer: AnyListScorer, /) -> _Samples:
        """Windows of two candidates, and a longer one."""
        texts = [document for _, document in _PAIRS]
        windows = [(query, texts[:2]) for query, _ in _PAIRS] + [(_LONG[0], [*texts, _LONG[1]][: scorer.plan.window])]
        try:
            encodings = [scorer.encode_window(*window, max_document_tokens=None).encoding for window in windows]
        except InvalidRequest as error:
            raise ConfigError(f"max_length = {scorer.max_length} leaves no room for a window: {error}") from None
        return _Samples(encodings, (), lambda outputs: np.stack(outputs)[:, :2])

    def groups(self, scorer: AnyGroupScorer, /) -> _Samples:
        raise ConfigError(f"a model that writes text is not tried ({scorer.task.name})")

    def blocks(self, scorer: AnyBlockScorer, /) -> _Samples:
        """Requests of one block each, shorter ones and a longer one."""
        texts = [document for _, document in (*_PAIRS, _LONG)]
        requests = [(query, texts[:count]) for count, (query, _) in enumerate((*_PAIRS, _LONG), start=1)]
        try:
            encoded = [
                run_to_end(scorer.encode_blocks(*request, max_document_tokens=_LONG_TOKENS)) for request in requests
            ]
        except InvalidRequest as error:
            raise ConfigError(f"max_length = {scorer.max_length} leaves no room for a document: {error}") from None
        encodings = [encoding for one in encoded for encoding in one.encodings]
        return _Samples(
            encodings, (), lambda outputs: np.concatenate([scorer.interpret_blocks([row]) for row in outputs])
        )

    def vectors(self, scorer: AnyVectorScorer, /) -> _Samples:
        """Documents, and how similar each is to the first."""
        texts = [document for _, document in (*_PAIRS, _LONG)]
        encodings = scorer.encode("document", texts, max_tokens=_LONG_TOKENS).encodings
        longest: Sequence[Encoding] = ()
        if self.full_length and scorer.max_length <= _LONGEST_TRIED:
            longest = scorer.encode("document", ["tides and the sea " * scorer.max_length], max_tokens=None).encodings

        def interpret(outputs: Sequence[FloatArray]) -> FloatArray:
            vectors = list(map(scorer.vectors, encodings, outputs))
            return scorer.compare(vectors[0], vectors)

        return _Samples(encodings, longest, interpret)

    def comparisons(self, scorer: AnyComparisonScorer, /) -> _Samples:
        """Two short documents, and longer ones."""
        (query, first), (_, second) = _PAIRS
        long = "tides and the sea " * scorer.max_length
        try:
            compared = scorer.encode_comparisons(
                query, [first, second, _LONG[1], long], [(0, 1), (1, 0), (2, 1), (3, 3)], max_document_tokens=None
            )
        except InvalidRequest as error:
            raise ConfigError(f"max_length = {scorer.max_length} leaves no room for two documents: {error}") from None
        *encodings, longest = compared.encodings
        return _Samples(encodings, [longest] if self.full_length else (), scorer.interpret_comparisons)


def _alone(text: str) -> Sequence[str]:
    return [text]


def _outputs(engine: LogitsEngine, encodings: Sequence[Any], expected: int | None) -> Sequence[FloatArray]:
    try:
        outputs = engine.run(encodings)
    except Exception as error:
        tokens = max(len(encoding.ids) for encoding in encodings)
        what = f"one text of {tokens} tokens"
        if len(encodings) > 1:
            what = f"a batch of {len(encodings)} texts (each alone did not fail)"
        raise ConfigError(f"engine {engine.name} failed on {what}: {' '.join(str(error).split())[:300]!r}") from error
    if expected is None:
        return list(outputs)
    if outputs.ndim != 2 or len(outputs) != len(encodings):
        raise ConfigError(
            f"engine {engine.name} gave outputs of shape {list(outputs.shape)} for {len(encodings)} texts; a reranker "
            "gives one row for each: is this another kind of model?"
        )
    if outputs.shape[1] != expected:
        raise ConfigError(
            f"engine {engine.name} gives {outputs.shape[1]} outputs for a text, and by config.json (num_labels, "
            f"id2label) and the scorer there are {expected}: is this an embedding model's graph, or another model's "
            "config.json? Serve a classifier, or correct config.json"
        )
    return list(outputs)
