"""Certified top-K: proves that no substitution of synonyms in a document changes which K documents are best. Pure.

The order is that of smoothed scores, the mean of a document's relevance over random substitutions of its words (CertDR,
Wu et al. 2022, arXiv 2209.06691). If an attacker changes R words, a mean of values from 0 to 1 moves by at most 1 minus
the product of the R smallest overlaps between what is drawn for a word and for its synonym. Means of n samples are
within sqrt(ln(2 / alpha) / 2n) of the truth (Hoeffding), with chance 1 - alpha each.
"""

from collections.abc import Iterable, Sequence
from math import log, prod, sqrt
from typing import Final

ALPHA: Final = 0.05


def largest_change(overlaps: Iterable[float], *, words: int) -> float:
    """By how much an attacker who changes at most `words` words can move a document's smoothed score."""
    return 1.0 - prod(sorted(overlaps)[:words])


def sampling_error(samples: int) -> float:
    """Of the difference between two means of `samples` values each."""
    return 2.0 * sqrt(log(2.0 / ALPHA) / (2.0 * samples))


def is_certified(means: Sequence[float], changes: Sequence[float], *, k: int, error: float) -> bool:
    """Whether the K best stay the K best: f_K - f_(K+1) - max(1 - prod overlaps) > error. `means` are smoothed scores
    from 0 to 1, `changes` the largest changes of the same documents.

    A list of at most K documents has none that could come in.
    """
    if len(means) <= k:
        return True
    ranked = sorted(means, reverse=True)
    return ranked[k - 1] - ranked[k] - max(changes) > error
