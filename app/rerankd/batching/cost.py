"""How long work takes on an engine: t(B, L) of a forward pass, learnt while it serves. Pure.

A pass of encodings with lengths l costs `overhead + per_token * sum(l) + per_square * sum(l^2)`: the matmuls of the
layers grow with the tokens, attention with the squares of the lengths. The three are fitted by least squares that
forget old passes, since clocks, neighbours and the mix of requests change, and that are held near the mean speed where
recent passes say nothing (ridge regression, Hoerl and Kennard 1970): of passes of one kind the rest would be noise.
"""

from math import inf

# One number each for a pass, its tokens and its squares.
Vector = tuple[float, float, float]

_FORGETTING = 0.97
# The tokens and squares of a usual pass, so that all three factors are of one order of magnitude.
_USUAL_TOKENS = 512.0
_USUAL_SQUARES = 512.0 * 128.0
# The mean speed counts as much as this many passes.
_PRIOR = 1.0
# Before this many passes no request is rejected because of the model.
_PASSES_TO_TRUST = 20
# After many passes of one kind the fit may say anything of the others; the mean speed is the better guide then.
_TRUSTED = (0.5, 2.0)
# About twenty passes: of fewer the mean swings, and with it admission and Retry-After; more would not follow a CPU
# whose neighbours wake up.
_MEMORY = 0.95
# The fastest pass is forgotten in a few thousand others.
_FADING = 1.001


class CostModel:
    """Nothing is `known` before a few passes; until then the mean speed is all there is."""

    def __init__(self) -> None:
        self._factors: Vector = (0.0, 0.0, 0.0)
        # The normal equations: sums of what recent passes were, each of the three times each, and of what they took.
        self._seen = [0.0] * 6
        self._taken = [0.0] * 3
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

    def learn(self, *, tokens: int, squares: float, seconds: float) -> None:
        """Learn from the time of one pass, by its tokens and the squares of its lengths."""
        self._seconds = _MEMORY * self._seconds + seconds
        self._tokens = _MEMORY * self._tokens + tokens
        self._weight = _MEMORY * self._weight + 1
        self._passes += 1
        self._fastest = min(self._fastest * _FADING, seconds / tokens)
        one, token, square = _scaled(1.0, tokens, squares)
        moments = (one, token, square, token * token, token * square, square * square)
        self._seen = [_FORGETTING * old + new for old, new in zip(self._seen, moments, strict=True)]
        self._taken = [
            _FORGETTING * old + new * seconds for old, new in zip(self._taken, (one, token, square), strict=True)
        ]
        a, b, c, d, e, f = self._seen
        x, y, z = self._taken
        usual = self.seconds_per_token * _USUAL_TOKENS
        self._factors = _solve((a + _PRIOR, b, c, d + _PRIOR, e, f + _PRIOR), (x, y + _PRIOR * usual, z))

    def seconds(self, *, tokens: float, squares: float) -> float:
        """Time of one worker for this work, cut into passes of the usual size; 0 before anything is known."""
        mean = tokens * self.seconds_per_token
        if not self.known:
            return mean
        passes = max(1.0, tokens * self._weight / self._tokens)
        given = _scaled(passes, tokens, squares)
        fitted = sum(factor * number for factor, number in zip(self._factors, given, strict=True))
        least, most = _TRUSTED
        return min(max(fitted, least * mean), most * mean)


def _scaled(passes: float, tokens: float, squares: float) -> Vector:
    return passes, tokens / _USUAL_TOKENS, squares / _USUAL_SQUARES


def _solve(matrix: tuple[float, float, float, float, float, float], right: Vector) -> Vector:
    """By Cramer's rule, for a symmetric matrix of which the upper triangle is given: NumPy takes ten times as long, and
    this is done after every pass.
    """
    a, b, c, d, e, f = matrix
    x, y, z = right
    # The adjugate's upper triangle.
    aa, ab, ac = d * f - e * e, c * e - b * f, b * e - c * d
    bb, bc, cc = a * f - c * c, b * c - a * e, a * d - b * b
    determinant = a * aa + b * ab + c * ac
    return (
        (aa * x + ab * y + ac * z) / determinant,
        (ab * x + bb * y + bc * z) / determinant,
        (ac * x + bc * y + cc * z) / determinant,
    )
