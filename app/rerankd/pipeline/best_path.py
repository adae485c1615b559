"""The order of documents whose neighbours prefer one another most: a Hamiltonian path of maximum weight. Pure.

Yang et al., "TSPRank: Bridging Pairwise and Listwise Methods with a Bilinear Travelling Salesman Model", 2024.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]

# The exact programme has 2^n n states.
MOST_EXACT: Final = 12
# Of several best paths the one nearest to the given order wins; less than a difference of two float32 probabilities.
_TIE: Final = 1e-10
_GAIN: Final = 1e-12


def best_path(weights: Weights) -> list[int]:
    """The order that maximizes the sum of `weights[a, b]` over its neighbours a, b. `weights` has shape [n, n], its
    rows and columns in an order that stands where nothing says otherwise. Exact for 12 places and fewer; above, a
    greedy path and the given order are both improved by reversing parts (2-opt), and the better one is returned.
    """
    count = len(weights)
    if count < 2:
        return list(range(count))
    weights = weights.copy()
    weights[np.arange(count - 1), np.arange(1, count)] += _TIE
    if count <= MOST_EXACT:
        return _exact(weights)
    paths = [_improved(np.array(start), weights) for start in (range(count), _greedy(weights))]
    best: list[int] = max(paths, key=lambda path: weight_of(path, weights)).tolist()
    return best


def weight_of(path: NDArray[np.int64] | list[int], weights: Weights) -> float:
    """The sum over neighbours."""
    return float(weights[path[:-1], path[1:]].sum())


def _exact(weights: Weights) -> list[int]:
    """Held and Karp's dynamic programme: the best way through a set of places that ends at one of them."""
    count = len(weights)
    sets = np.arange(2**count)
    sizes = np.bitwise_count(sets)
    best = np.full((2**count, count), -np.inf)
    before = np.zeros((2**count, count), dtype=np.int64)
    best[1 << np.arange(count), np.arange(count)] = 0
    for size in range(2, count + 1):
        for last in range(count):
            here = sets[(sizes == size) & (sets >> last & 1 == 1)]
            ways = best[here ^ (1 << last)] + weights[:, last]
            before[here, last] = ways.argmax(axis=1)
            best[here, last] = ways.max(axis=1)
    visited = 2**count - 1
    path = [int(best[visited].argmax())]
    while len(path) < count:
        last = path[-1]
        path.append(int(before[visited, last]))
        visited ^= 1 << last
    return path[::-1]


def _greedy(weights: Weights) -> list[int]:
    """From the place that wins most to the one that it beats most clearly, and so on."""
    left = np.ones(len(weights), dtype=np.bool_)
    path = [int((weights.sum(axis=1) - weights.sum(axis=0)).argmax())]
    left[path[0]] = False
    while left.any():
        path.append(int(np.where(left, weights[path[-1]], -np.inf).argmax()))
        left[path[-1]] = False
    return path


def _improved(path: NDArray[np.int64], weights: Weights) -> NDArray[np.int64]:
    """Reverse the part whose reversal gains most, as long as one does. Each step makes the path heavier, and a path of
    200 places takes some dozens.
    """
    count = len(path)
    # A place before the first and behind the last that prefers nothing.
    wide = np.pad(weights, (0, 1))
    for _ in range(4 * count):
        ends = np.concatenate(([count], path, [count]))
        forward = np.concatenate(([0.0], np.cumsum(weights[path[:-1], path[1:]])))
        backward = np.concatenate(([0.0], np.cumsum(weights[path[1:], path[:-1]])))
        inner = backward - forward
        enter, leave = wide[ends[:-2], path], wide[path, ends[2:]]
        # gain[i, j]: of the part from i to j, reversed.
        gain = (inner[None, :] - inner[:, None]) + wide[np.ix_(ends[:-2], path)] + wide[np.ix_(path, ends[2:])]
        gain -= enter[:, None] + leave[None, :]
        gain[np.tril_indices(count)] = -np.inf
        start, end = np.unravel_index(gain.argmax(), gain.shape)
        if gain[start, end] <= _GAIN:
            break
        path = np.concatenate((path[:start], path[start : end + 1][::-1], path[end + 1 :]))
    return path
