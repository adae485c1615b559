"""Chooses documents to ask about: all of a corpus's topics, and no two documents that say the same. Pure; vectors are
unit vectors of shape [documents, size]. The method is DUQGen's (Chandradevan et al. 2024, arXiv 2404.02489).

Documents are clustered by k-means. From each cluster, in proportion to its size, documents are drawn with the softmax
of their cosine to its centroid, and thinned out by maximal marginal relevance (Carbonell and Goldstein 1998).
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.floating]
Places = NDArray[np.int64]

_ROUNDS: Final = 20
# Documents for each cluster, on average.
_PER_CLUSTER: Final = 4
# How many more are drawn than the marginal relevance keeps.
_DRAWN: Final = 3
# What likeness to the centroid counts against unlikeness to what is chosen.
_TRADE: Final = 0.5


def choose_documents(vectors: Vectors, count: int, *, seed: int) -> list[int]:
    """Positions of `count` documents, sorted; all if there are not more."""
    if count >= len(vectors):
        return list(range(len(vectors)))
    generator = np.random.default_rng(seed)
    cluster_of, centroids = k_means(vectors, max(1, count // _PER_CLUSTER), generator)
    chosen: list[int] = []
    for cluster, wanted in enumerate(_shares(np.bincount(cluster_of, minlength=len(centroids)), count)):
        if not wanted:
            continue
        members = np.flatnonzero(cluster_of == cluster)
        cosines = vectors[members] @ centroids[cluster]
        drawn = _draw(cosines, min(len(members), _DRAWN * wanted), generator)
        kept = marginal_relevance(vectors[members[drawn]], cosines[drawn], wanted)
        chosen += members[drawn[kept]].tolist()
    return sorted(chosen)


def k_means(vectors: Vectors, clusters: int, generator: np.random.Generator) -> tuple[Places, Vectors]:
    """Each vector's cluster, [documents], and unit centroids, [clusters, size], by cosine (spherical k-means)."""
    centroids = vectors[generator.choice(len(vectors), clusters, replace=False)].astype(np.float64)
    cluster_of = np.full(len(vectors), -1)
    for _ in range(_ROUNDS):
        nearest = (vectors @ centroids.T).argmax(axis=1)
        if np.array_equal(nearest, cluster_of):
            break
        cluster_of = nearest
        sums = np.zeros_like(centroids)
        np.add.at(sums, cluster_of, vectors)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        # A cluster that has lost its last vector stays where it was.
        centroids = np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), centroids)
    return cluster_of, centroids


def marginal_relevance(vectors: Vectors, relevance: Vectors, count: int) -> Places:
    """Positions of `count` vectors, chosen one by one: relevant, and unlike those that are chosen."""
    chosen: list[int] = []
    likeness = np.full(len(vectors), -1.0)
    for _ in range(min(count, len(vectors))):
        worth = _TRADE * relevance - (1 - _TRADE) * likeness
        worth[chosen] = -np.inf
        best = int(worth.argmax())
        chosen.append(best)
        likeness = np.maximum(likeness, vectors @ vectors[best])
    return np.array(chosen, dtype=np.int64)


def _draw(cosines: Vectors, count: int, generator: np.random.Generator) -> Places:
    weights = np.exp(cosines - cosines.max())
    return generator.choice(len(cosines), count, replace=False, p=weights / weights.sum())


def _shares(sizes: Places, count: int) -> list[int]:
    """Whole numbers in proportion to `sizes` that add up to `count` (largest remainders)."""
    exact = sizes * count / sizes.sum()
    shares = np.floor(exact).astype(np.int64)
    missing = count - int(shares.sum())
    shares[np.argsort(shares - exact, kind="stable")[:missing]] += 1
    return [int(share) for share in shares]
