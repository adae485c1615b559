"""How long work takes on an engine: t(B, L) of a forward pass, learnt while it serves. Pure.

A pass of encodings with lengths l costs `overhead + per_token * sum(l) + per_square * sum(l^2)`: the products of the
layers grow with the tokens, attention with the squares of the lengths. The three are fitted by recursive least
squares that forgets old passes (Plackett 1950), since clocks, neighbours and the mix of requests change.
"""

from math import inf

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

_FORGETTING = 0.97
# The tokens and squares of a usual pass, so that all three factors are of one order of magnitude.
_SCALE: Vector = np.array([1.0, 512.0, 512.0 * 128.0])
_UNCERTAIN = 1e4
# Before so many passes nobody is refused for what the model thinks.
_PASSES_TO_TRUST = 20
# After many passes of one kind the fit may say anything of the others; the mean speed is the better guide then.
_TRUSTED = (0.5, 2.0)
# About twenty passes: of fewer the mean swings, and with it what is let in and what Retry-After says; more would not
# follow a processor whose neighbours wake up.
_MEMORY = 0.95
# The fastest pass is forgotten in a few thousand others.
_FADING = 1.001


class CostModel:
    """Nothing is `known` before a few passes; until then the mean speed is all there is."""

    def __init__(self) -> None:
        self._factors: Vector = np.zeros(3)
        self._uncertainty = np.eye(3) * _UNCERTAIN
        # Sums over recent passes, in which each counts less than the one after it.
        self._seconds = 0.0
        self._tokens = 0.0
        self._weight = 0.0
        self._passes = 0
        self._fastest = inf

    @property
    def known(self) -> bool:
        return self._passes >= _PASSES_TO_TRUST

    @property
    def seconds_per_token(self) -> float:
        """The mean of recent passes; 0 before the first."""
        return self._seconds / self._tokens if self._tokens else 0.0

    @property
    def slowdown(self) -> float:
        """How many times as long as in the fastest pass a token takes now; 1 before the first."""
        return max(1.0, self.seconds_per_token / self._fastest) if self._passes else 1.0

    def learn(self, *, tokens: int, squares: int, seconds: float) -> None:
        """Take in what one pass of so many tokens, and so many squares of lengths, took."""
        self._seconds = _MEMORY * self._seconds + seconds
        self._tokens = _MEMORY * self._tokens + tokens
        self._weight = _MEMORY * self._weight + 1
        self._passes += 1
        self._fastest = min(self._fastest * _FADING, seconds / tokens)
        given = np.array([1.0, tokens, squares]) / _SCALE
        spread = self._uncertainty @ given
        gain = spread / (_FORGETTING + given @ spread)
        self._factors += gain * (seconds - given @ self._factors)
        self._uncertainty = (self._uncertainty - np.outer(gain, spread)) / _FORGETTING
        # Passes of one kind only say nothing about the others; forgetting must not make that grow without bound.
        largest = float(np.trace(self._uncertainty))
        if largest > 3 * _UNCERTAIN:
            self._uncertainty *= 3 * _UNCERTAIN / largest

    def seconds(self, *, tokens: float, squares: float) -> float:
        """Time of one worker for so much work, cut into passes of the usual size; 0 before anything is known."""
        mean = tokens * self.seconds_per_token
        if not self.known:
            return mean
        passes = max(1.0, tokens * self._weight / self._tokens)
        fitted = float(np.array([passes, tokens, squares]) / _SCALE @ self._factors)
        least, most = _TRUSTED
        return min(max(fitted, least * mean), most * mean)
