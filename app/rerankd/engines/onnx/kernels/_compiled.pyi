"""What module.cpp offers, compiled when the package is installed."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rerankd.domain import FloatArray

# A bias up to this one hides a key.
UNSEEN: float

def supported() -> bool:
    """Whether this processor has the instructions that the kernels are made of: AVX-512 with VNNI."""

class Linear:
    """A product with int8 weights of shape [in, out], both multiples of 64, a scale and a bias for each column."""

    def __init__(self, weights: NDArray[np.int8], *, scales: FloatArray, bias: FloatArray) -> None: ...

class Normalisation:
    def __init__(self, *, weight: FloatArray, bias: FloatArray, epsilon: float) -> None: ...

class Embeddings:
    """Sums of a vector of each table, normalised. Tables: int8 vectors of shape [rows, width], a scale for each.

    Raises:
        ValueError: sizes that do not fit, or a processor without the instructions.
    """

    def __init__(
        self, tables: Sequence[tuple[NDArray[np.int8], FloatArray]], *, normalisation: Normalisation
    ) -> None: ...
    def forward(self, indices: Sequence[NDArray[np.int64]]) -> FloatArray:
        """Hidden states, shape [sequences, length, width], from rows of the tables: for each table [sequences or 1,
        length]. On the calling thread, without the interpreter's lock.

        Raises:
            IndexError: a table has no such row.
        """

class Layer:
    """One layer; heads of 32 or 64. `score_scale` is what products of queries and keys are multiplied with; with
    `first_row` only each sequence's first token goes on, which is for the last layer alone.
    """

    def __init__(
        self,
        *,
        query_key_value: Linear,
        output: Linear,
        up: Linear,
        down: Linear,
        after_attention: Normalisation,
        after_feed_forward: Normalisation,
        heads: int,
        score_scale: float,
        first_row: bool = False,
    ) -> None: ...

class Layers:
    """Layers one after another.

    Raises:
        ValueError: sizes that do not fit, or a processor without the instructions.
    """

    def __init__(self, layers: Sequence[Layer]) -> None: ...
    def forward(self, hidden: FloatArray, bias: FloatArray) -> FloatArray:
        """What the layers make of hidden states, shape [sequences, length, width], which are overwritten: the same
        shape, or [sequences, 1, width]. `bias`, which may have sizes of 1 for sequences and queries, is added to
        attention's scores: [sequences, 1, queries, keys]. On the calling thread, without the interpreter's lock.
        """
